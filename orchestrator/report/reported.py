"""report.json: the hashes of a run's tables, figures and page, as the last session wrote them.

A session removes it when it begins and writes it at its end, so files that a killed session left are not called
damaged.
"""

import hashlib
from pathlib import Path

from taugrid.orchestrator.rundir.paths import Paths
from taugrid.storage import read_sealed, together, write_sealed

FILE = "report.json"
FILES = ("tables/*.*", "figures/*.*", "report.html")


def keep(run: Paths) -> None:
    """Write report.json, with the hashes of the files as they are now."""
    write_sealed(run.root / FILE, {"files": _hashes(run)}, run.storage)


def changed_files(run: Paths) -> list[Path]:
    """The files that are not as they were written; report.json itself, if that has changed."""
    value, hashes = read_sealed(run.root / FILE, run.storage), _hashes(run)
    if value is None:
        return [run.root / FILE] if run.storage.exists(run.root / FILE) else []
    return [run.root / name for name, sha256 in value["files"].items() if hashes.get(name, sha256) != sha256]


def _hashes(run: Paths) -> dict[str, str]:
    """Name below the run directory -> SHA-256; in a bucket the files are looked up and read together."""
    found = together(run.storage, lambda pattern: run.storage.stats(run.root, pattern), FILES)
    paths = [path for stats in found for path in stats]
    read = zip(paths, together(run.storage, run.storage.read, paths), strict=True)
    return {run.relative(path): hashlib.sha256(data).hexdigest() for path, data in read}
