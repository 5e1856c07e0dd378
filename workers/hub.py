"""Files from the Hugging Face hub: into its usual cache, or out of it where there is no network."""

import sys
from collections.abc import Sequence
from pathlib import Path

from taugrid.config.model import HUB_ID
from taugrid.errors import UserError


def snapshot(identifier: str, files: Sequence[str], key: str, commit: str | None = None, kind: str = "model") -> Path:
    """The folder that holds those files of a repository that match one of the patterns `files`.

    It is named by the commit. What the cache has of a known commit is not asked for again.

    Args:
        identifier: `org/name`, or `org/name@revision`.
        files: patterns as the shell has them, on paths within the repository.
        key: of the config, for messages.
        commit: 40 hex digits, in place of the revision.
        kind: `model` or `dataset`.

    Raises:
        UserError: if it can't be had, saying why.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    found = HUB_ID.fullmatch(identifier)
    assert found is not None, "callers ask is_hub_id first"
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        folder = snapshot_download(
            found["name"], repo_type=kind, revision=commit or found["revision"], allow_patterns=list(files)
        )
    except Exception as error:  # of its HTTP library's, which is another one in each of its major versions
        raise UserError(
            f"{key}: {identifier} is no folder, and not to be had from the hub: {_reason(error)}"
        ) from error
    return Path(folder)


def _reason(error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{constants.ENDPOINT} wants you to accept its terms there, and HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"{constants.ENDPOINT} has nothing of that name (or it is private: set HF_TOKEN)"
    if isinstance(error, RevisionNotFoundError):
        return f"{constants.ENDPOINT} has no such revision of it"
    if constants.is_offline_mode():
        tried = "HF_HUB_OFFLINE is set"
    else:
        cause = error.__cause__ or error
        line = next(iter(str(cause).splitlines()), "")
        tried = f"{constants.ENDPOINT} gave {type(cause).__name__}: {line}"
    return (
        f"{tried}, and the cache {constants.HF_HUB_CACHE} does not hold all of it; give a folder, or fill that cache "
        "where there is a network (set HF_HUB_CACHE to one that is filled)"
    )
