"""The output of `taugrid verify`: the problems with their fixes, and the verdict."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import Damage, RunDir
from taugrid.orchestrator.rundir.lease import Lease
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.view.verify import NOT_SAMPLED, NOT_SCORED, NOT_TRAINED, Verified, lacking_pages
from taugrid.words import counted


def unfinished_in_words(unfinished: Sequence[Damage], rundir: RunDir) -> list[str]:
    """A line with the numbers of files that were never made; none if nothing is missing."""
    counts = Counter(lack.reason for lack in unfinished)
    nouns = {NOT_TRAINED: "model", NOT_SAMPLED: "shard", NOT_SCORED: "cell"}
    phrases = [f"{counted(counts[reason], noun)} {reason}" for reason, noun in nouns.items() if counts[reason]]
    if not phrases:
        return []
    holder = Lease(rundir).live_holder()
    continues = f"`taugrid run {rundir.shown}` continues"
    if holder is not None:
        continues = f"a driver is running here ({holder})"
    return [f"{', '.join(phrases)}; {continues}"]


def remarks(rundir: RunDir) -> list[str]:
    """Remarks on missing pages and unreadable lines of the ledger, which are not damage."""
    remarks = []
    if lines := rundir.ledger.unreadable_lines():
        remarks.append(f"ledger.jsonl: {counted(lines, 'line')} can't be read; the next run reads those files again")
    if lacking := lacking_pages(rundir):
        remarks.append(f"{', '.join(lacking)}: not there; `taugrid report {rundir.shown}` makes them")
    return remarks


@dataclass(frozen=True)
class Diagnosis:
    run: Run
    images: int
    """The number of decoded images."""
    verified: Verified

    @cached_property
    def damaged(self) -> list[dict[str, Any]]:
        """The problems: file, cell or other owner, reason, and what to do: the fix, or a command."""
        rundir = self.run.rundir
        return [
            {
                "path": (shown := rundir.relative(damage.path)),
                "of": self.run.plan.label_in(shown),
                "reason": damage.reason,
                "next": damage.fix or f"taugrid run {rundir.shown}",
            }
            for damage in self.verified.damages
        ]

    @property
    def document(self) -> dict[str, Any]:
        rundir = self.run.rundir
        lacking = [{"path": rundir.relative(one.path), "reason": one.reason} for one in self.verified.unfinished]
        return {"dir": rundir.shown, "images": self.images, "damaged": self.damaged, "unfinished": lacking}

    @property
    def problems(self) -> list[str]:
        lines = []
        for shown, damage in zip(self.damaged, self.verified.damages, strict=True):
            more = f"; {damage.fix}" if damage.fix not in damage.reason else ""
            of = f" ({shown['of']})" if shown["of"] else ""
            lines.append(f"{shown['path']}{of}: {damage.reason}{more}")
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
        """The command that makes damaged files again, the unfinished work, and remarks."""
        rundir = self.run.rundir
        damaged = sum(not damage.fix for damage in self.verified.damages)
        again = f"`taugrid run {rundir.shown}` makes {counted(damaged, 'file')} again; delete what it leaves damaged"
        unfinished = unfinished_in_words(self.verified.unfinished, rundir)
        return [*([again] if damaged else []), *unfinished, *remarks(rundir)]
