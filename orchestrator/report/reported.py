"""report.json: what the tables, figures and page of a run were last made from, and the hashes of these files.

A session removes it when it begins and writes it at its end, so files that a killed session left are not called
damaged.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from taugrid.hashing import json_sha256
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.storage import Stat, read_json, read_sealed, together, write_sealed

FILE = "report.json"
FILES = ("tables/*.*", "figures/*.*", "report.html")
SOURCES = ("scores/*", "by-label/*", "samples/*/*", "removed/*", "models/*/train/*", "grown.json")
"""What a report is made from, besides the plan and provenance.json."""


class Reported(NamedTuple):
    sources: str = ""
    """A hash of what the report was made from; empty: nothing was reported yet."""
    warnings: Sequence[str] = ()
    """The warnings of report.html."""
    files: Mapping[str, str] = {}
    """Name below the run directory -> SHA-256."""

    def is_current(self, run: Paths, missing: Mapping[str, str]) -> bool:
        """Whether a new report would be the same, and all files are as they were written."""
        return self.sources == sources(run, missing) and self.files == _hashes(run)


def take(run: Paths) -> Reported:
    """What report.json says. The file is removed."""
    value = read_sealed(run.root / FILE, run.storage)
    run.storage.delete(run.root / FILE)
    return Reported() if value is None else Reported(**value)


def keep(run: Paths, reported: Reported) -> None:
    """Write report.json, with the hashes of the files as they are now."""
    write_sealed(run.root / FILE, reported._replace(files=_hashes(run))._asdict(), run.storage)


def sources(run: Paths, missing: Mapping[str, str]) -> str:
    """A hash of what a report is made from; `missing` has the reasons of cells without a score."""
    versions = {run.relative(path): stat.version for path, stat in _stats(run, SOURCES)}
    documents = list(together(run.storage, lambda path: read_json(path, run.storage), [run.plan, run.provenance]))
    return json_sha256([documents, versions, dict(missing)])


def changed_files(run: Paths) -> list[Path]:
    """The files that are not as they were written; report.json itself, if that has changed."""
    value, hashes = read_sealed(run.root / FILE, run.storage), _hashes(run)
    if value is None:
        return [run.root / FILE] if run.storage.exists(run.root / FILE) else []
    return [run.root / name for name, sha256 in value["files"].items() if hashes.get(name, sha256) != sha256]


def _hashes(run: Paths) -> dict[str, str]:
    paths = [path for path, _ in _stats(run, FILES)]
    read = zip(paths, together(run.storage, run.storage.read, paths), strict=True)
    return {run.relative(path): hashlib.sha256(data).hexdigest() for path, data in read}


def _stats(run: Paths, patterns: Sequence[str]) -> Iterator[tuple[Path, Stat]]:
    """The files of a run that match one of the patterns; in a bucket these are looked up together."""
    for found in together(run.storage, lambda pattern: run.storage.stats(run.root, pattern), patterns):
        yield from found.items()
