"""`delt-hpc bench stages`: images per second of squeeze, rank, recover and evaluate by their default settings."""
