"""What people see while taugrid works: `state.py` has how far a session is, and `display.py` shows it."""

from taugrid.orchestrator.progress.display import Progress

__all__ = ["Progress"]
