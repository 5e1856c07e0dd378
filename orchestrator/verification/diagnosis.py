"""What `verify` says: each problem with what to do about it, and the verdict."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from taugrid.orchestrator.run import Run
from taugrid.orchestrator.verification.next_steps import NextStep, in_words, next_steps, remarks, unfinished_in_words
from taugrid.orchestrator.verification.verify import Verified
from taugrid.words import counted


@dataclass(frozen=True)
class Diagnosis:
    """The result of one `verify`."""

    run: Run
    images: int
    """How many were decoded."""
    verified: Verified

    @cached_property
    def _steps(self) -> list[NextStep]:
        return next_steps(self.verified.damages, self.run)

    @cached_property
    def damaged(self) -> list[dict[str, Any]]:
        """Each problem: the file, the cell that it is of, what is wrong, and what to do."""
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
        """All of it, for `--json`."""
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
        """How much was looked at, and whether all is well."""
        intact = "what is there is intact" if self.verified.unfinished else "everything is intact"
        verdict = f"{counted(len(self.damaged), 'problem')} found" if self.damaged else intact
        removed = sum(self.run.rundir.has_removed_images(cell) for cell in self.run.plan.cells)
        of_removed = f"; images removed: {counted(removed, 'cell')}, whose records are checked" if removed else ""
        return f"{counted(self.images, 'image')} decoded{of_removed}; {verdict}"

    @property
    def advice(self) -> list[str]:
        """The commands that solve the problems, what is left to make, and what else is worth knowing."""
        rundir = self.run.rundir
        return [*in_words(self._steps), *unfinished_in_words(self.verified.unfinished, rundir), *remarks(rundir)]
