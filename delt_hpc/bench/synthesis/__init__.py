"""`delt-hpc bench synthesis`: whole recovery iterations, engine by engine."""
