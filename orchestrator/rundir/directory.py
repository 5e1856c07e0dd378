"""The run directory as a whole: its paths, integrity, models and lock."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from taugrid.orchestrator.rundir.integrity import Integrity
from taugrid.orchestrator.rundir.lease import Lease, sole_driver
from taugrid.orchestrator.rundir.models import ModelRecords
from taugrid.run_id import claim


class RunDir(Integrity, ModelRecords):
    """One run's folder. Everything in it is read and written through its `storage`."""

    def lock(
        self, break_lock: bool = False, say: Callable[[str], None] = lambda text: None
    ) -> AbstractContextManager[Lease]:
        """Keep a second driver out; see `sole_driver`."""
        return sole_driver(self, break_lock, say)

    def claim(self) -> None:
        """Give the directory its id, if it has none, so that jobs can tell it from others. Call it under the lock."""
        self.run = claim(self.root, self.storage)
