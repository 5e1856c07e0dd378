"""More images for cells whose order is undecided: `taugrid run --until told-apart`.

A look compares the scores that exist, and doubles N of the undecided cells. Every session begins with the first look,
from the scores on disk, so an interrupted run goes on where it was.
"""

from collections.abc import Callable, Iterator
from math import ceil, log2
from typing import Any, NamedTuple

from taugrid.errors import UserError
from taugrid.eval.metrics.frechet import SAMPLES_PER_DIMENSION
from taugrid.eval.tables.alike import Contenders, columns, look
from taugrid.eval.tables.differences import differences
from taugrid.eval.tables.long_form import FID, STAND_INS
from taugrid.grids import SEEDS
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.plan.scoring import Scoring
from taugrid.orchestrator.report import requested
from taugrid.orchestrator.report.collect import Rows, collect
from taugrid.orchestrator.report.write import quality_table
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.grown import read_sizes, resized, write_sizes
from taugrid.registry.metrics import MetricColumn
from taugrid.words import counted, listed

NAMED = 4  # cells that a line names; the rest are counted


class Until(NamedTuple):
    """What `--until told-apart[=KEY] --max N` asks for. `key` is that of the grid along which neighbours are compared;
    None: cells are compared with the best of their column. `most` is the largest N."""

    key: str | None
    most: int

    @classmethod
    def of(cls, text: str | None, most: int | None) -> "Until | None":
        """What --until and --max ask for, if they are given; raises `UserError` if they say something else."""
        if text is None and most is None:
            return None
        if text is None or most is None:
            lacking = "--until needs --max" if most is None else "--max needs --until"
            raise UserError(f"{lacking}; give both, as in --until told-apart --max 20000")
        what, equals, key = text.partition("=")
        if what != "told-apart" or (equals and not key):
            raise UserError(f"--until {text}: give told-apart, or told-apart=KEY with a key of the grid")
        return cls(key or None, most)

    def smallest(self, plan: Plan) -> int:
        """The N of all cells, with which looks begin. Raises `UserError` if they differ in N or in a seed, or this N or
        the number of labels does not fit `most`."""
        sizes = sorted({cell.settings.num_samples for cell in plan.cells})
        if len(sizes) > 1:
            given = " and ".join(f"{n:,}" for n in sizes)
            raise UserError(f"--until compares cells of one N, and these have {given}; give all the same num_samples")
        if self.most < sizes[0]:
            raise UserError(f"--max {self.most} is below sample.num_samples: {sizes[0]}; give a larger number")
        if seeds := [seed for seed in SEEDS if len({cell.values.get(seed) for cell in plan.cells}) > 1]:
            raise UserError(
                f"--until: the cells differ in {seeds[0]}, and more images don't tell means over seeds apart; add "
                "seeds to the grid, or choose one with --only"
            )
        rows = [cell.label_rule.rows for cell in plan.cells if cell.label_rule is not None]
        if fewest := min((n for n in rows if n is not None and n < self.most), default=None):
            raise UserError(
                f"--max {self.most:,}: sample.labels has labels for {fewest:,} samples alone; give a smaller --max or "
                "a longer file"
            )
        return sizes[0]

    def along(self, configured: Plan) -> str | None:
        """The column of quality.csv for `key`; `UserError` if the whole grid has no neighbours along it."""
        return None if self.key is None else requested.compared_along("--until", self.key, configured)


class Growth:
    """The looks of one session at the cells of `selected`, and what they came to; `say` gets a line for each look.

    `sizes` is cell id -> N, as far as the looks went. `undecided` are the cells whose order the last look left
    undecided; before the first, all. Raises `UserError` if they can't be told apart: no score has standard errors, or
    they differ in N or in a seed."""

    def __init__(self, run: Run, selected: Plan, scoring: Scoring, until: Until, say: Callable[[str], None]) -> None:
        ids = {cell.id for cell in selected.cells}
        self._run, self._scoring, self._most, self._say = run, scoring, until.most, say
        self._plan = run.configured.with_cells(cell for cell in run.configured.cells if cell.id in ids)
        self._least, self._along = until.smallest(self._plan), until.along(run.configured)
        extractor, metrics = scoring.extractor, scoring.feasible(self._least).settings.metrics
        needed = SAMPLES_PER_DIMENSION * extractor.dimensions
        others = {column.name for column in STAND_INS} - {FID.name}
        if not others & set(metrics) and (FID.name not in metrics or self._least < needed):
            raise UserError(
                f"--until: no score has a standard error at N = {self._least:,}; FID's begins at N = {needed:,} with "
                f"{extractor.name}, and KID's often below: add kid to evaluate.metrics, or raise sample.num_samples"
            )
        self._looks = ceil(log2(self._most / self._least)) + 1
        self._column: MetricColumn = FID
        self.sizes = {cell.id: self._least for cell in self._plan.cells}
        self.undecided = set(self.sizes)

    def parts(self) -> Iterator[Plan]:
        """The cells of each look, at its N. Their scores must be made before the next is asked for."""
        part, groups = self._plan, list[Contenders]()
        same, untested = set[str](), set[str]()
        for number in range(1, self._looks + 1):
            yield part
            rows = collect(part, self._run.rundir, self._scoring)
            if number == 1:
                groups = self._first_groups(rows)
                compared = {cell for group in groups for cell in group}
            evidence = rows.evidence.of(self._column.name)
            if number == 1 and not any(len(evidence.influences.keys() & group) > 1 for group in groups):
                self._say("warning: --until has nothing to compare: no two cells of a column have a standard error")
                return
            found = look(groups, {row["cell"]: row for row in rows.rows}, evidence, self._column, self._looks)
            groups = found.groups
            same |= found.same
            untested |= found.untested
            self.undecided = found.undecided | untested
            n = part.cells[0].settings.num_samples
            larger = min(2 * n, self._most)
            then = f", N {n:,} -> {larger:,}" if groups and larger > n else f" at N = {n:,}"
            counts = f"{len(self.undecided)} of {counted(len(compared), 'cell')} undecided"
            self._say(f"look {number} of {self._looks}: {counts}{then}")
            if not groups or larger == n:
                break
            before = read_sizes(self._run.rundir)  # the larger N is recorded before anything is sampled
            after = before | {cell: max(larger, before.get(cell, 0)) for cell in found.undecided}
            if after != before:
                write_sizes(self._run.rundir, after)
            self.sizes |= dict.fromkeys(found.undecided, larger)
            part = resized(self._plan, dict.fromkeys(found.undecided, larger))
        self._say_outcome(same)

    def _first_groups(self, rows: Rows) -> list[Contenders]:
        """The cells that are compared with each other, by the first score that has standard errors of most cells."""
        self._column = max(STAND_INS, key=lambda column: len(rows.evidence.of(column.name).influences))
        if self._column is not FID:
            reasons = listed(list(dict.fromkeys(rows.evidence.reasons.values())), 1, "reason", "; ")
            no_error = f"FID has no standard error at N = {self._least:,} ({reasons})"
            self._say(f"cells are told apart by {self._column.title}: {no_error}")
        if self._along is None:
            table = quality_table(self._run, rows)
            return columns(table.arranged(table.layout).tables(self._column))
        pairs = differences(rows.rows, rows.evidence)
        return [[pair["cell_a"], pair["cell_b"]] for pair in pairs if pair["along"] == self._along]

    def _say_outcome(self, same: set[str]) -> None:
        about = {
            "undecided": self.undecided,
            "no N tells these from another cell, because both have the same samples": same,
        }
        for text, cells in about.items():
            if cells:
                labels = [cell.label for cell in self._plan.cells if cell.id in cells]
                self._say(f"{text}: {listed(labels, NAMED, 'cell', '; ')}")
        told = self.as_dict()
        sampled, otherwise, largest = told["images"], told["images_if_all_had_grown"], max(self.sizes.values())
        if largest == self._least:
            self._say("no cell had to grow")
        else:
            self._say(
                f"{sampled:,} images of {counted(len(self.sizes), 'cell')}; with N = {largest:,} for each, "
                f"{otherwise:,}: {1 - sampled / otherwise:.0%} saved"
            )

    def as_dict(self) -> dict[str, Any]:
        """What the looks came to, for --json."""
        return {
            "metric": self._column.name,
            "undecided": sorted(self.undecided),
            "num_samples": dict(sorted(self.sizes.items())),
            "images": sum(self.sizes.values()),
            "images_if_all_had_grown": max(self.sizes.values()) * len(self.sizes),
        }
