"""A run: its config, its plan and its directory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from taugrid.config import Config
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.plan.scoring import Scoring, scoring_of
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.grown import at_larger_sizes, grown


@dataclass(frozen=True, eq=False)
class Run:
    """A config with its plan and its run directory, made by `opened.py`.

    `RunDir` is the directory alone; `RunView` (view/run.py) is the read-only view of a run in the Python API.
    """

    config: Config
    configured: Plan
    """The plan with the config's N. Tables show it."""
    rundir: RunDir
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Cell id -> the N to which it grew (grown.json)."""

    @cached_property
    def plan(self) -> Plan:
        """The plan with the N to which cells grew: what the directory holds, or will."""
        return grown(self.configured, self.sizes)

    def scoring(self) -> Scoring:
        """How cells are scored, as recorded; if the config asks for another way, reference and weights are opened."""
        if (recorded := self.rundir.recorded_scoring(self.config)) is None:
            return scoring_of(self.config, self.plan, self.rundir.extractor)
        return scoring_of(self.config, self.plan, lambda config: recorded.extractor, lambda given: recorded.reference)

    @property
    def at_each_size(self) -> list[Plan]:
        """The plan as configured, and then for each N to which cells grew the cells with as many images, at that N."""
        return [self.configured, *at_larger_sizes(self.configured, self.sizes)]
