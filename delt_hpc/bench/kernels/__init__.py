"""`delt-hpc bench kernels`: the operators of a recovery iteration, one by one."""
