"""Checkpoints of a training that goes on elsewhere: patterns in a grid's `model.checkpoint`, resolved to folders.

A value may be a pattern such as `runs/x/step-*`, or `{newest: 3, of: runs/x/step-*}`. What a run directory has sampled
stays: models/<id>/model.json records each checkpoint, so tomorrow's newest do not orphan today's.
"""

import fnmatch
import glob
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taugrid.config import Config
from taugrid.errors import UserError
from taugrid.grids import CHECKPOINT as KEY
from taugrid.grids import values_by_key, with_values
from taugrid.hashing import json_sha256
from taugrid.workers.network.checkpoint import read_checkpoint

SETTLED_SECONDS = 30.0  # a folder in which a file was written more recently may still be being written


def resolve_patterns(
    config: Config, recorded: Iterable[str], stay: bool = False, dry: bool = False
) -> tuple[Config, tuple[str, ...]]:
    """`config` with each pattern replaced by the folders that match it in natural order, and notes for the user.

    Args:
        config: as loaded.
        recorded: the paths of checkpoints that the run directory has records of; those that match stay.
        stay: a pattern that some of them match is not looked up again: it is what it was.
        dry: a pattern that nothing matches stays as it is, in place of a checkpoint that comes later.

    Raises:
        UserError: for a bad value or, unless `dry` is set, a pattern that nothing matches.
    """
    known = list(dict.fromkeys(recorded))
    notes: list[str] = []

    def resolved(key: str, values: list[Any]) -> list[Any]:
        found: list[Any] = []
        for value in values if key == KEY else ():
            pattern = _pattern(value)
            folders = [value] if pattern is None else _folders(*pattern, known, stay, notes)
            if pattern is not None and not folders:
                if not dry:
                    raise UserError(
                        f"grid: {KEY}: no checkpoint matches {pattern[0]}; give a pattern of diffusers folders"
                    )
                folders = [pattern[0]]
            found += [folder for folder in folders if folder not in found]
        return found if key == KEY else values

    grid = [with_values(mapping, resolved) for mapping in config.grid]
    return config if grid == config.grid else config.model_copy(update={"grid": grid}), tuple(notes)


def checkpoints_in(grid: Iterable[Mapping[str, Any]]) -> list[str]:
    """The paths that a grid names under `model.checkpoint`."""
    named = [value for mapping in grid for value in values_by_key(mapping).get(KEY, ())]
    return [value for value in named if isinstance(value, str)]


def _pattern(value: Any) -> tuple[str, int | None] | None:
    """The text of a pattern, and how many of the newest it means; None: the value is a path."""
    if isinstance(value, Mapping):
        newest, text = value.get("newest"), value.get("of")
        if set(value) != {"newest", "of"} or type(newest) is not int or newest < 1 or not isinstance(text, str):
            raise UserError(f"grid: {KEY}: {dict(value)} must be a path, a pattern, or {{newest: 3, of: PATTERN}}")
        return text, newest
    if isinstance(value, str) and glob.has_magic(value) and not Path(value).exists():
        return value, None
    return None


def _folders(pattern: str, newest: int | None, recorded: list[str], stay: bool, notes: list[str]) -> list[str]:
    before = [path for path in recorded if _matches(Path(path).parts, Path(pattern).parts)]
    if stay and before:
        return sorted(before, key=natural)
    whole = Path(pattern)
    found_now = Path(whole.anchor).glob(str(whole.relative_to(whole.anchor)))
    matching = [str(path) for path in found_now if path.is_dir()]
    ready = [path for path in sorted(matching, key=natural) if _is_ready(path)]
    if waiting := sorted(set(matching) - set(ready), key=natural):
        names = ", ".join(Path(path).name for path in waiting[:3])
        notes.append(f"{KEY}: passed over, because still being written or not complete: {names}; run again later")
    chosen = ready if newest is None else ready[-newest:]
    return _once_each(sorted({*chosen, *before}, key=natural), notes)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether `glob` would find a path by a pattern, both in parts, if it is still there: `*` stays within a folder."""
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatch.fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _once_each(paths: list[str], notes: list[str]) -> list[str]:
    """The paths without those whose network an earlier one has: it is evaluated once."""
    chosen: dict[str, str] = {}
    for path in paths:
        try:
            found = read_checkpoint(path)
            vae = found.vae and found.vae.identity
            content = json_sha256([found.weights_sha256, found.unet_config, found.diffusion.recorded, vae])
        except UserError:  # its folder is gone; the record says what it was
            content = path
        if content in chosen:
            notes.append(f"{KEY}: {Path(path).name} is the same network as {Path(chosen[content]).name}; left out")
        else:
            chosen[content] = path
    return list(chosen.values())


def natural(path: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers in names by value: step-900 before step-1000."""
    parts = re.split(r"(\d+)", path)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def _is_ready(path: str) -> bool:
    """Whether the folder holds a complete checkpoint with no writes for `SETTLED_SECONDS`."""
    folder = Path(path)
    try:
        if (folder / "unet").is_dir() and not (folder / "model_index.json").is_file():
            return False  # a pipeline's index is written last
        times = [file.stat().st_mtime for file in folder.rglob("*") if file.is_file()]
        if not times or time.time() - max(times) < SETTLED_SECONDS:
            return False
        read_checkpoint(path)
    except (UserError, OSError):
        return False
    return True
