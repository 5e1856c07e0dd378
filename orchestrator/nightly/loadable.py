"""Cells of earlier runs, sampled again: as points of a grid, if their networks are still what they were.

The baseline's files may have gone or been replaced.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taugrid.config import Config, validate
from taugrid.errors import UserError
from taugrid.hashing import json_sha256
from taugrid.orchestrator.baseline.snapshot import Network, SnapshotCell
from taugrid.orchestrator.plan.trust import Code, require_trusted
from taugrid.workers.network import custom_process
from taugrid.workers.network.checkpoint import read_checkpoint, weights_file, weights_sha256

Pair = tuple[SnapshotCell, SnapshotCell]
"""(new, baseline)."""

OTHER_CODE = "the custom network's code has changed, and the baseline's is gone"

SIDES = ("tonight's", "the baseline's")


def why_not(pairs: Sequence[Pair], trust_code: bool) -> str | None:
    """Why a second look is impossible; None if both networks of every pair can still be sampled.

    Args:
        pairs: the cells.
        trust_code: a custom network may be given a file of weights that no config of the user's has named.
    """
    for new, old in (_networks(pair) for pair in pairs):
        if new.is_same(old):
            return "the weights are the baseline's, so a fresh seed would compare them with themselves"
        if not _same_code(new, old):
            return OTHER_CODE
    seen: set[str] = set()
    for pair in pairs:
        for side, network in zip(SIDES, _networks(pair), strict=True):
            weights = str(pair[0].settings["weights"])
            key = json_sha256([network.keys, network.weights_sha256, weights])
            if key not in seen and (reason := _reason(network, weights, trust_code)) is not None:
                return f"{side} weights can't be sampled: {reason}"
            seen.add(key)
    return None


def why_not_again(new: Network, old: Network, weights: str, trust_code: bool) -> str | None:
    """Why the baseline's network can't be sampled again; `new` is tonight's, and `weights` are `ema` or `raw`."""
    return _reason(old, weights, trust_code) if _same_code(new, old) else OTHER_CODE


def _same_code(new: Network, old: Network) -> bool:
    return (new.callable, new.source_sha256) == (old.callable, old.source_sha256)


def _networks(pair: Pair) -> tuple[Network, Network]:
    return pair[0].network, pair[1].network


def _reason(network: Network, weights: str, trust_code: bool) -> str | None:
    try:
        if network.callable is not None:
            return _not_callable(network, network.callable, trust_code)
        return _not_loadable(network, weights)
    except UserError as error:
        return str(error)


def _not_loadable(network: Network, weights: str) -> str | None:
    if network.folder is None:
        return "they are in no folder on a disk that diffusers reads"
    found = read_checkpoint(network.folder)
    folder = found.unet_folder if weights == "ema" else found.raw_folder
    digest = None if folder is None else weights_sha256(weights_file(Path(folder)))
    return None if digest == network.weights_sha256 else f"{network.folder} holds other weights now"


def _not_callable(network: Network, function: str, trust_code: bool) -> str | None:
    if network.weights_file is None:
        return "the function of the custom network is given no file (model.weights), so there is nothing to tell apart"
    if custom_process.weights_sha256(Path(network.weights_file)) != network.weights_sha256:
        return f"{network.weights_file} holds other weights now"
    if not trust_code:  # a baseline file may come from somebody else, and a file of weights may be a pickle
        require_trusted([Code("model.callable", function, network.weights_file)], Path(network.weights_file))
    return None


def point_of(cell: SnapshotCell, **anew: Any) -> dict[str, Any]:
    """The cell as a point of a grid; `anew` are the settings in which it differs."""
    diffusion = {f"diffusion.{key}": value for key, value in cell.network.diffusion.items() if value is not None}
    return {**cell.network.keys, **diffusion, **cell.settings, **anew}


def config_of(config: Config, name: str, points: Sequence[Mapping[str, Any]]) -> Config:
    """Tonight's config with `points` as its grid, each once; `name` is appended to its name."""
    values = config.model_dump(mode="json")
    unique = {json_sha256(point): {key: [value] for key, value in point.items()} for point in points}
    values |= {"name": f"{config.name}-{name}", "model": {}, "grid": list(unique.values())}
    return validate(Config, values, name)
