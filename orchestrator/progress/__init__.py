"""What people see while taugrid works: `state.py` tracks a session, `display.py` shows it.

`state.py` and `workers.py` are pure: they take events with their times. `status --watch` feeds the same state from the
events on disk (`watch.py`).
"""

from taugrid.orchestrator.progress.display import Progress

__all__ = ["Progress"]
