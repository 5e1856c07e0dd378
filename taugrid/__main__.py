"""`python -m taugrid` is `taugrid`."""

from taugrid.orchestrator.cli.main import main

main()
