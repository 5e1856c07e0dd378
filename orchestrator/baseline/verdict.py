"""verdict.json: the verdict of a night, from which its summary, the history and the pages are made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from taugrid.errors import Exit, UserError
from taugrid.eval.gate.verdict import Verdict, exit_of
from taugrid.eval.nights import NightModel
from taugrid.orchestrator.baseline.compared import BaselineComparison
from taugrid.orchestrator.baseline.snapshot import ImagesOfNight, Software
from taugrid.run_id import FORMAT, require_format
from taugrid.words import with_urls

VERDICT = "verdict.json"
"""The file beside the run of a complete night."""


@dataclass(frozen=True)
class NightScore:
    """A scored cell of a night."""

    cell: str
    name: str
    label: str
    """The cell's settings, the same every night (`matching.labels`)."""
    settings: dict[str, Any]
    metrics: dict[str, float]
    weights_sha256: str | None


@dataclass(frozen=True)
class NightBaseline:
    """What a night was compared with."""

    place: str
    """A baseline file or a run directory."""
    id: str | None
    """SHA-256 of the baseline's Parquet file; None for a run."""
    accepted: str | None
    reason: str | None
    model: tuple[NightModel, ...]
    git_commit: str | None


@dataclass(frozen=True)
class NightVerdict:
    night: str
    name: str
    time: str
    """When it was reached, UTC, ISO 8601."""
    result: Verdict | Literal["no baseline", "incomplete"]
    missing: dict[str, str]
    """Cells that could not be finished -> why; the same command goes on with them."""
    failed: dict[str, str]
    """Labels of cells that can never be scored -> why."""
    not_judged: tuple[str, ...]
    """Reasons for exit code 5."""
    baseline: NightBaseline | None
    model: tuple[NightModel, ...]
    images: ImagesOfNight | None
    scores: tuple[NightScore, ...]
    comparison: BaselineComparison | None
    software: Software
    next: str | None = None
    """The next step, in words."""
    strips: Mapping[str, str] | None = None
    """Label -> path from the summary, of the pictures of the worst cells."""
    format: int = FORMAT

    @property
    def exit(self) -> Exit:
        return exit_of(self.result, self.missing, self.not_judged)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        plain: dict[str, Any] = TypeAdapter(NightVerdict).dump_python(self, mode="json")
        return plain

    @classmethod
    def read(cls, value: Mapping[str, Any], folder: Path) -> "NightVerdict":
        """The verdict in the JSON of a night's folder; `UserError` if another version of taugrid wrote it."""
        require_format(value, folder)
        try:
            return TypeAdapter(cls).validate_python(value)
        except ValidationError:
            raise UserError(f"{with_urls(str(folder))} was judged by another version of taugrid; remove it") from None
