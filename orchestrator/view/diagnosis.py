"""The output of `taugrid verify`: the problems with their fixes, and the verdict."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from taugrid.errors import UserError
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.plan.scoring import scoring_of, without_downloads
from taugrid.orchestrator.plan.sources import RECORD
from taugrid.orchestrator.report.reported import FILE as REPORTED
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import Damage, RunDir
from taugrid.orchestrator.rundir.lease import Lease
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.view.verify import NOT_SAMPLED, NOT_SCORED, NOT_TRAINED, Verified, lacking_pages
from taugrid.orchestrator.work import work_kinds
from taugrid.run_id import FILE as RUN_FILE
from taugrid.words import counted

RUN = "run"
"""The command that repairs files for which there is no other command."""


class NextStep(NamedTuple):
    """A command that repairs some damage or, in `words`, what the user must decide."""

    command: str | None
    words: str


UNUSED = "the present config does not use it; delete it"
"""The fix for a damaged file of a different protocol, or of a cell that the config lacks: no run reads it."""


def next_steps(damages: Sequence[Damage], run: Run) -> list[NextStep]:
    plan, rundir = run.plan, run.rundir
    unused = _unused(damages, run) | _of_other_cells(damages, plan, rundir)
    folders = {damage.path.parent for damage in damages}
    concerned = (cell for cell in plan.cells if rundir.samples / cell.name in folders)
    planned = {rundir.sample_part(cell, shard) for cell in concerned for shard in cell.shards}
    own = {kind.folder: kind.stage for kind in work_kinds() if kind.stage not in ("sample", "evaluate")}
    unused |= {damage.path for damage in damages if damage.path.name == RECORD}
    unused -= {rundir.model_record(model.id) for model in (*plan.models, *plan.guides)}
    return [
        NextStep(None, UNUSED) if damage.path in unused else _next_step(damage, rundir, own, damage.path in planned)
        for damage in damages
    ]


def _unused(damages: Sequence[Damage], run: Run) -> set[Path]:
    """The damaged scores and features that the config's scoring does not use; none if that is unknown now."""
    plan, rundir = run.plan, run.rundir
    of_scoring = {rundir.scores, rundir.features}
    inside = [damage.path for damage in damages if not damage.fix and of_scoring & set(damage.path.parents)]
    existing = {path for path in inside if rundir.storage.exists(path)}
    if not existing:
        return set()
    try:
        scoring = scoring_of(without_downloads(run.config), plan, rundir.extractor)
    except UserError:
        return set()
    folder, reference = rundir.extractor_folder(scoring.extractor), scoring.reference
    used = set(rundir.reference_parts(folder, reference))
    for cell in (cell for part in run.at_each_size for cell in part.cells):
        key = scoring.id(cell)
        used |= {rundir.score(cell, key), rundir.influence(cell, key)}
        used |= {rundir.feature_part(folder, cell, shard) for shard in cell.shards}
    return existing - used


def _of_other_cells(damages: Sequence[Damage], plan: Plan, rundir: RunDir) -> set[Path]:
    """The damaged reconstructions and interpolations of cells that the plan does not have."""
    unused: set[Path] = set()
    for kind in work_kinds():
        if kind.stage not in ("sample", "evaluate"):
            folder, names = rundir.root / kind.folder, tuple(f"{cell.name}-" for cell in kind.cells_of(plan))
            inside = (damage.path for damage in damages if folder in damage.path.parents)
            unused |= {path for path in inside if not path.parent.name.startswith(names)}
    return unused


def _next_step(damage: Damage, rundir: RunDir, own: dict[str, str], is_planned: bool) -> NextStep:
    path = damage.path
    if path == rundir.samples:
        return NextStep(None, "use a config that has these cells, or remove their folders")
    if damage.fix:
        return NextStep(None, damage.fix)
    folder = path.relative_to(rundir.root).parts[0]
    if folder == rundir.samples.name and not is_planned:
        return NextStep(None, "remove it: it belongs to no cell of the config")
    of_report = (
        rundir.provenance,
        rundir.plan,
        rundir.report,
        rundir.root / REPORTED,
        *(folder / path.name for folder in (rundir.tables, rundir.figures)),
        rundir.model_record(path.parent.name),
    )
    command = f"taugrid {'report' if path in of_report else own.get(folder, RUN)} {rundir.shown}"
    is_folder = path in (*of_report, rundir.root / RUN_FILE) and path.name in rundir.storage.level(path.parent).folders
    if is_folder:  # a run sets other damaged files aside itself
        return NextStep(None, f"it is a folder, but a file belongs there; move it away, and `{command}` makes the file")
    return NextStep(command, "")


def unfinished_in_words(unfinished: Sequence[Damage], rundir: RunDir, refused: bool = False) -> list[str]:
    """A line with the numbers of files that were never made; none if nothing is missing.

    `refused`: the directory has cells that the config lacks, so no run goes on.
    """
    counts = Counter(lack.reason for lack in unfinished)
    nouns = {NOT_TRAINED: "model", NOT_SAMPLED: "shard", NOT_SCORED: "cell"}
    phrases = [f"{counted(counts[reason], noun)} {reason}" for reason, noun in nouns.items() if counts[reason]]
    if not phrases:
        return []
    holder = Lease(rundir).live_holder()
    continues = f"`taugrid {RUN} {rundir.shown}` continues" + (" once samples/ fits the config" if refused else "")
    if holder is not None:
        continues = f"a driver is running here ({holder})"
    return [f"{', '.join(phrases)}; {continues}"]


def remarks(rundir: RunDir) -> list[str]:
    """Remarks on missing pages and unreadable lines of the ledger, which are not damage."""
    remarks = []
    if any(rundir.committed_cells()) and not rundir.storage.exists(rundir.root / RUN_FILE):
        remarks.append(f"{RUN_FILE}: not there; the next run gives the directory a new id")
    if lines := rundir.ledger.unreadable_lines():
        remarks.append(f"ledger.jsonl: {counted(lines, 'line')} can't be read; the next run reads those files again")
    if lacking := lacking_pages(rundir):
        remarks.append(f"{', '.join(lacking)}: not there; `taugrid report {rundir.shown}` makes them")
    return remarks


def in_words(steps: Sequence[NextStep]) -> list[str]:
    """A line for each command, with the number of problems that it solves."""
    commands = [step.command for step in steps if step.command is not None]
    if len(set(commands)) == 1 and len(commands) == len(steps):
        return [f"`{commands[0]}` solves {'all of them' if len(steps) > 1 else 'it'}"]
    return [f"`{command}` solves {commands.count(command):,} of them" for command in dict.fromkeys(commands)]


@dataclass(frozen=True)
class Diagnosis:
    run: Run
    images: int
    """The number of decoded images."""
    verified: Verified

    @cached_property
    def _steps(self) -> list[NextStep]:
        return next_steps(self.verified.damages, self.run)

    @cached_property
    def damaged(self) -> list[dict[str, Any]]:
        """The problems: file, cell or other owner, reason and fix."""
        return [
            {
                "path": (shown := self.run.rundir.relative(damage.path)),
                "of": self.run.plan.label_in(shown),
                "reason": damage.reason,
                "next": step.command or step.words,
            }
            for damage, step in zip(self.verified.damages, self._steps, strict=True)
        ]

    @property
    def document(self) -> dict[str, Any]:
        rundir = self.run.rundir
        lacking = [{"path": rundir.relative(one.path), "reason": one.reason} for one in self.verified.unfinished]
        return {"dir": rundir.shown, "images": self.images, "damaged": self.damaged, "unfinished": lacking}

    @property
    def problems(self) -> list[str]:
        lines = []
        for damage, step in zip(self.damaged, self._steps, strict=True):
            more = f"; {step.words}" if step.words not in damage["reason"] else ""
            of = f" ({damage['of']})" if damage["of"] else ""
            lines.append(f"{damage['path']}{of}: {damage['reason']}{more}")
        return lines

    @property
    def verdict(self) -> str:
        """The number of decoded images, and whether there are problems."""
        lacking = [*self.verified.unfinished, *remarks(self.run.rundir)]
        scored = self.run.rundir.storage.list(self.run.rundir.scores, "*.json")
        intact = "everything is intact" if scored and not lacking else "what is there is intact"
        intact += "" if scored else "; no cell is scored"
        verdict = f"{counted(len(self.damaged), 'problem')} found" if self.damaged else intact
        removed = sum(map(Listing(self.run.rundir).has_removed_images, self.run.plan.cells))
        of_removed = f"; images removed: {counted(removed, 'cell')}, whose records are checked" if removed else ""
        return f"{counted(self.images, 'image')} decoded{of_removed}; {verdict}"

    @property
    def advice(self) -> list[str]:
        """The commands that solve the problems, the unfinished work, and remarks."""
        rundir = self.run.rundir
        refused = any(damage.path == rundir.samples for damage in self.verified.damages)
        unfinished = unfinished_in_words(self.verified.unfinished, rundir, refused)
        return [*in_words(self._steps), *unfinished, *remarks(rundir)]
