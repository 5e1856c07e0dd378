"""The control plane: configuration, planning, dispatch, the run directory and the command line. Imports no torch."""

__version__ = "0.1.0"
