"""The one check that a path stays in the run directory: every read, write and removal of a storage passes it."""

from pathlib import Path

from taugrid.errors import UserError
from taugrid.words import with_urls


def check_inside(path: Path, root: Path | None) -> None:
    """Raise `UserError` if a path is not `root` or below it. None: any path may be used.

    Files of a run directory name others: by ids, by numbers, by names of extractors. Whoever made the directory may
    have written anything there.
    """
    if root is None:
        return
    inner, whole = str(path), str(root).rstrip("/")
    if inner == whole or (inner.startswith(f"{whole}/") and ".." not in inner[len(whole) :].split("/")):
        return
    raise UserError(
        f"{with_urls(inner)} is outside {with_urls(str(root))}; its files name a wrong id or path, so do not use a "
        "directory of unknown origin"
    )
