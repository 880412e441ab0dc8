"""The hot loops, one module per device with the same names.  `cpu` is numba."""
