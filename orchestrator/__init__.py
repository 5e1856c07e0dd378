"""The control plane: planning, dispatch, the run directory, reports and the command line. Imports no torch."""
