"""Files from the Hugging Face hub, downloaded to its usual cache or, without a network, read from it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from taugrid.config.model import HUB_ID
from taugrid.errors import MissingInput


def snapshot(
    identifier: str,
    files: Sequence[str],
    key: str,
    commit: str | None = None,
    kind: str = "model",
    download: bool = True,
) -> Path:
    """The folder, named after its commit, with a repository's files that match one of the shell patterns `files`.

    `identifier` is `org/name`, or `org/name@revision`, which `commit` (40 hex digits) replaces; `key` is that of the
    config, for messages; `kind` is `model` or `dataset`. Without `download`, only the cache is searched, and it may
    lack some of the files. Raises `MissingInput` if there are none."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    match = HUB_ID.fullmatch(identifier)
    assert match is not None, "callers ask is_hub_id first"
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        folder = snapshot_download(
            match["name"],
            repo_type=kind,
            revision=commit or match["revision"],
            allow_patterns=list(files),
            local_files_only=not download,
        )
    except Exception as error:  # its HTTP library's errors, and that library changes with its major version
        if not download:
            raise MissingInput(f"{key}: {identifier} is not in the cache yet; a run downloads it") from None
        cause = (isinstance(error, FileNotFoundError) and error.__cause__) or error
        raise MissingInput(
            f"{key}: {identifier} is not a folder, and {constants.ENDPOINT} can't provide it ({type(cause).__name__}), "
            f"nor can the cache {constants.HF_HUB_CACHE}; check its name and revision, set HF_TOKEN if it is private "
            "or has terms to accept, or give a folder"
        ) from error
    return Path(folder)
