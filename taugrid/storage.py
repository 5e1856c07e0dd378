"""Files that appear whole or not at all."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taugrid.hashing import json_sha256


def user_cache() -> Path:
    """Taugrid's folder in the user's cache: data sets, decoded images, statistics of references."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "taugrid"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that takes the place of `path` at the end, or vanishes on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN is a ValueError, because other readers refuse it."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any | None:
    """A JSON file's value, or None where the file is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """`write_json` of an object, with the SHA-256 of its canonical JSON under the key `sha256`."""
    write_json(path, value | {SEAL: json_sha256(value)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote, or None where the file is missing or anything in it has changed since."""
    value = read_json(path)
    if not isinstance(value, dict):
        return None
    seal = value.pop(SEAL, None)
    try:
        return value if seal == json_sha256(value) else None
    except ValueError:  # NaN, which is never written
        return None


SEAL = "sha256"
