"""Published FIDs of solvers for another network (numbers/solvers_edm.csv): a table apart from any run's."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from taugrid.eval.tables.entries import MISSING
from taugrid.eval.tables.published.counterparts import lines
from taugrid.eval.tables.rows import Row, write_files
from taugrid.protocol import ProtocolFields
from taugrid.registry.samplers import DEFAULT
from taugrid.words import markdown_table

STEM = "published-solvers"
"""The name of the file in tables/, without its suffix."""
ABOUT = (
    "FID of 50,000 samples of **another network**: EDM's unconditional one for CIFAR10 (edm-cifar10-32x32-uncond-vp), "
    "from sigma 80 to 0.002 without a step to 0, as zju-pi/diff-sampler prints it (diff-solvers-main/README.md). "
    "Network, process, times, reference statistics and the implementation of FID are not this run's, so neither the "
    "numbers nor their differences can be compared with those of this run. Columns are network evaluations."
)


def concerns(rows: Iterable[Row], protocols: Mapping[str, ProtocolFields]) -> bool:
    """Whether a run has rows of a sampler other than ddim that are scored against CIFAR10."""
    of_others = [row for row in rows if row["sampler"] != DEFAULT]
    return any(protocols[row["protocol"]]["reference"]["dataset"] == "cifar10" for row in of_others)


def solvers_markdown() -> str:
    """The published numbers as a table in GitHub's Markdown, a row for each solver."""
    published = lines("solvers_edm")
    counts = sorted({int(line["network_evaluations"]) for line in published})
    fids = {(line["solver"], int(line["network_evaluations"])): line["fid"] for line in published}
    schedules = {line["solver"]: line["schedule"] for line in published}
    rows = [
        [solver, schedule, *(fids.get((solver, count), MISSING) for count in counts)]
        for solver, schedule in schedules.items()
    ]
    table = markdown_table(["solver", "times", *map(str, counts)], "ll" + "r" * len(counts), rows)
    return f"# Solvers, as published for another network\n\n{ABOUT}\n\n{table}\n"


def write_solvers(folder: Path) -> None:
    write_files(folder, STEM, md=solvers_markdown())
