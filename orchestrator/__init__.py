"""The control plane: configuration, planning, dispatch, the run directory and the command line. Imports no torch."""
