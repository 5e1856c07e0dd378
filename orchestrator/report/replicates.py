"""Finds cells of a plan that differ only in a seed, and whether they are enough to distinguish settings."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from taugrid.grids import BETWEEN, SEEDS, TRAINING
from taugrid.orchestrator.plan.cells import Cell, Model, Plan
from taugrid.orchestrator.plan.sources import Trained
from taugrid.words import listed

NAMED = 4
"""Settings that a line names. The rest are counted."""


def label_without_seeds(cell: Cell) -> str:
    """The label that a cell and its replicates share, such as "schedule=cosine · S=50 eta=0"."""
    naming = replace(cell.naming, keys=tuple(key for key in cell.naming.keys if key not in SEEDS))
    own = naming.cell(cell.values, cell.settings.steps, cell.eta)
    return BETWEEN.join(filter(None, [naming.model(cell.values), own]))


def unequal(cells: Iterable[Cell], such: str = "") -> list[str]:
    """A line that names settings with fewer replicates than others, if there are any; `such` as in "scored "."""
    counts = Counter(map(label_without_seeds, cells))
    most = max(counts.values(), default=0)
    fewer = [f"{label} ({count})" for label, count in counts.items() if count < most]
    if not fewer:
        return []
    return [f"settings with fewer than {most} {such}replicates (in brackets, their number): {listed(fewer, NAMED)}"]


NOT_SCORED = "not scored: "


def unscored(cells: Iterable[Cell]) -> list[str]:
    """A line that names `cells`, if there are any, because a table does not show why they have no score."""
    labels = [cell.label for cell in cells]
    return [f"{NOT_SCORED}{listed(labels, NAMED, 'cell', '; ')}"] if labels else []


def compared_trainings(plan: Plan) -> list[Model]:
    """The models that are trained here and differ in a setting, if each is trained with one seed only; else none."""
    trained = [model for model in plan.models if isinstance(model.source, Trained)]
    with_seed = TRAINING in plan.cells[0].naming.keys
    return [] if with_seed or len(trained) < 2 else trained


ONE_TRAINING = (
    "each setting is trained once: a single training can't tell whether a difference between settings is more than "
    f"luck; {TRAINING}: [0, 1, 2] in the grid shows means over trainings and their spread"
)
