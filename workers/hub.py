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

    Args:
        identifier: `org/name`, or `org/name@revision`.
        files: patterns on paths within the repository. Files of a known commit are not downloaded again.
        key: the key of the config, for messages.
        commit: 40 hex digits; replaces the revision.
        kind: `model` or `dataset`.
        download: if False, only the cache is searched, and it may lack some of the files.

    Raises:
        MissingInput: if the files are not available; the message says why.
    """
    from huggingface_hub import snapshot_download

    match = HUB_ID.fullmatch(identifier)
    assert match is not None, "callers ask is_hub_id first"
    _keep_bars_out_of_logs()
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
        raise MissingInput(
            f"{key}: {identifier} is not a folder, and the hub can't provide it: {_reason(error)}"
        ) from error
    return Path(folder)


def _keep_bars_out_of_logs() -> None:
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def _reason(error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"you must accept its terms at {constants.ENDPOINT} and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"{constants.ENDPOINT} has nothing by that name (if it is private, set HF_TOKEN)"
    if isinstance(error, RevisionNotFoundError):
        return f"{constants.ENDPOINT} has no such revision of it"
    if constants.is_offline_mode():
        tried = "HF_HUB_OFFLINE is set"
    else:
        cause = error.__cause__ or error
        line = next(iter(str(cause).splitlines()), "")
        tried = f"{constants.ENDPOINT} gave {type(cause).__name__}: {line}"
    return (
        f"{tried}, and the cache {constants.HF_HUB_CACHE} does not hold all of it; give a folder, fill the cache where "
        "there is a network, or set HF_HUB_CACHE to a full one"
    )
