"""grown.json: the N of cells that got more images than the config says, because their order was undecided.

N is in no id, so a cell keeps its id, its folder and the scores at its smaller N.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.storage import read_sealed, write_sealed

FILE = "grown.json"


def read_sizes(run: Paths) -> dict[str, int]:
    """Cell id -> N, of each cell that grew; empty if none did or the file is damaged."""
    sizes = (read_sealed(run.root / FILE, run.storage) or {}).get("num_samples")
    return {cell: n for cell, n in sizes.items() if isinstance(n, int)} if isinstance(sizes, dict) else {}


def write_sizes(run: Paths, sizes: Mapping[str, int]) -> None:
    """Record the N of each cell that grew, before its images are sampled."""
    write_sealed(run.root / FILE, {"num_samples": dict(sorted(sizes.items()))}, run.storage)


def grown(plan: Plan, sizes: Mapping[str, int]) -> Plan:
    """The plan whose cells have the larger of their own N and that in `sizes`; the plan itself if none is larger."""
    larger = {cell.id for cell in plan.cells if sizes.get(cell.id, 0) > cell.settings.num_samples}
    if not larger:
        return plan
    return replace(plan, cells=tuple(at(cell, sizes[cell.id]) if cell.id in larger else cell for cell in plan.cells))


def at_larger_sizes(plan: Plan, sizes: Mapping[str, int]) -> Iterator[Plan]:
    """For each N to which cells of the plan grew, ascending: the cells with at least as many images, at that N."""
    larger = {cell.id: n for cell in plan.cells if (n := sizes.get(cell.id, 0)) > cell.settings.num_samples}
    for n in sorted(set(larger.values())):
        yield resized(plan, {cell: n for cell, its in larger.items() if its >= n})


def resized(plan: Plan, sizes: Mapping[str, int]) -> Plan:
    """The cells in `sizes` alone, each with the N there."""
    return plan.with_cells(at(cell, sizes[cell.id]) for cell in plan.cells if cell.id in sizes)


def at(cell: Cell, num_samples: int) -> Cell:
    return replace(cell, settings=cell.settings.model_copy(update={"num_samples": num_samples}))
