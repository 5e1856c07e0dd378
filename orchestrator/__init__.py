"""The control plane: planning, dispatch, the run directory, reports and the command line. Imports no torch."""

STAGES = ("train", "sample", "evaluate", "report")  # the stages of `taugrid run`, in their order
