"""Finds, downloads and checks the extractors' files of weights. Imports no torch."""

import http.client
import os
import re
import shutil
import urllib.request
from pathlib import Path

from taugrid.hashing import file_sha256
from taugrid.registry.extractors import HubWeights, KnownExtractor, PublishedWeights
from taugrid.storage import replacing

DOWNLOAD_TIMEOUT_SECONDS = 10.0
"""Timeout for a connection, and for silence during a download: a user without a network should soon know."""


class MissingWeights(ValueError):
    """A file of weights is not there, or could not be downloaded."""


def find_weights(extractor: KnownExtractor, weights: str | None, download: bool = True) -> Path | None:
    """The file that `evaluate.weights` means for `extractor`, with `download` fetched if it is published and missing.

    None: the weights ship with taugrid, or there are none.

    Raises:
        MissingWeights: if the file is missing or can't be downloaded.
        ValueError: if the extractor takes no file, or the file is damaged or a program other than the published one.
    """
    name, source = extractor.name, extractor.weights
    if weights is not None:
        if source is None:
            raise ValueError(f"evaluate.weights: {name} has no weights; remove the key")
        if isinstance(source, HubWeights):
            raise ValueError(f"{name} takes no path of weights in torch-fidelity; remove evaluate.weights")
        return given_weights(weights)
    if isinstance(source, HubWeights):
        return _hub_weights(name, source)
    if isinstance(source, PublishedWeights):
        return _published_weights(name, source, download)
    return None


def given_weights(weights: str) -> Path:
    """The absolute path of an existing file; MissingWeights if there is none."""
    path = Path(weights).expanduser().absolute()
    if not path.is_file():
        raise MissingWeights(f"evaluate.weights: there is no file {path}")
    return path


def _published_weights(name: str, source: PublishedWeights, download: bool) -> Path:
    path = torch_hub_folder() / "checkpoints" / source.file_name
    if not path.is_file() and not download:
        raise MissingWeights(f"the weights of {name} are not downloaded yet; a run gets {source.url}")
    if not path.is_file():
        _download(name, source.url, path)
    digest = file_sha256(path)
    if not digest.startswith(_announced(path.name)):
        raise ValueError(f"{path} is damaged: SHA-256 {digest[:12]}... does not match its name; delete it")
    return path


def _download(name: str, url: str, path: Path) -> None:
    """Download `url` to `path`, completely and with the SHA-256 that the file's name announces, or not at all."""
    try:
        with replacing(path) as temporary:
            with temporary.open("wb") as file, urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as answer:
                shutil.copyfileobj(answer, file)
            digest = file_sha256(temporary)
            if not digest.startswith(_announced(path.name)):
                raise OSError(f"the download has SHA-256 {digest[:12]}...")
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())[:200]
        raise MissingWeights(
            f"the weights of {name} are missing and can't be downloaded ({reason}): "
            f"get {url} on another machine and put it at {path}, or give a file with evaluate.weights: PATH"
        ) from None


def _announced(file_name: str) -> str:
    """The start of the SHA-256 in a file's name, as in torch's hub: weights-6726825d.pth."""
    found = re.search(r"-([0-9a-f]{8,64})\.", file_name)
    assert found is not None, file_name
    return found[1]


def require_published(extractor: KnownExtractor, path: Path, digest: str) -> None:
    """ValueError if `path`, with SHA-256 `digest`, is a program other than the published one."""
    source = extractor.weights
    if not isinstance(source, PublishedWeights) or not source.is_program:
        return
    published = _announced(source.file_name)
    if digest != published:
        raise ValueError(
            f"{extractor.name}: {path} has SHA-256 {digest[:12]}..., not {published[:12]}... as published; opening it "
            f"would run it as a program, so only the published file is accepted: get {source.url}"
        )


def _hub_weights(name: str, source: HubWeights) -> Path:
    """torch-fidelity runs code from the folder of torch's hub, so both the code and the weights must be there."""
    path = torch_hub_folder() / "checkpoints" / source.file_name
    folder = source.repository.replace("/", "_")
    code = [torch_hub_folder() / f"{folder}_{branch}" for branch in ("main", "master")]
    if not path.is_file() or not any(c.is_dir() for c in code):
        raise MissingWeights(
            f"{name} is only available through torch's hub, because torch-fidelity takes no path: it needs its code in "
            f"{code[0]} and its weights in {path} (from {source.url}); run "
            f"torch.hub.load({source.repository!r}, {source.entry!r}) once where there is a network"
        )
    return path


def torch_hub_folder() -> Path:
    """The folder in which torch.hub keeps its downloads, found without importing torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", str(Path(cache, "torch")))
    return Path(home, "hub").expanduser()


def shipped_weights(name: str) -> Path:
    """The file of `ShippedWeights` in this installation."""
    return Path(__file__).parent / "weights" / f"{name}.safetensors"
