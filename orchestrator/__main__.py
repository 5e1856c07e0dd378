"""`python -m orchestrator` is `taugrid`, from a checkout that is not installed."""

from orchestrator.cli import main

main()
