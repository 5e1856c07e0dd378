"""`taugrid doctor`: whether a run could start, here and on every node of a cluster.

A task on each node makes the same checks there: packages, torch, the run directory, weights.
"""

import os
import platform
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from taugrid import __version__
from taugrid.config import Cluster
from taugrid.config.load import load
from taugrid.errors import CustomCodeError, RunFailed, StoreError, UserError, joined_lines
from taugrid.eval.features.resolve import MissingWeights, chosen, find_weights
from taugrid.orchestrator.dispatch import cluster
from taugrid.orchestrator.dispatch.capacity import ask_nodes
from taugrid.orchestrator.opened import require_shared, run_folder
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.orchestrator.rundir.provenance import PACKAGES
from taugrid.registry.extractors import EXTRACTORS, INCEPTION, PublishedWeights
from taugrid.storage import Storage, open_place, replacing, write_text
from taugrid.versions import versions
from taugrid.words import this_node
from taugrid.workers.accelerator.hardware import BUILDS, GPU_REMEDY, TorchFound, has_gpus
from taugrid.workers.custom.describe import ask

NODE_SECONDS = 60.0
"""How long the nodes may take to answer. Importing torch took 15 s on busy ones."""

Severity = Literal["ok", "warning", "error"]  # error: a run could not start like this


class Finding(NamedTuple):
    name: str
    state: Severity
    found: str
    fix: str = ""  # what to do about a warning or an error: a command, or a setting


@dataclass(frozen=True)
class Asked:
    """What is checked. It travels to the nodes."""

    root: Path | None  # the run directory; None: it is not checked
    storage: Storage
    extractor: str
    weights: str | None
    probe: Path | None = None  # a file of the driver on the run directory's disk, which every node must see
    versions: dict[str, str] | None = None  # the driver's, which every node must have


def examination(config: str | None, address: str, out: str | None) -> dict[str, Any]:
    """The checks of this machine and, unless `address` is local, of each node of the cluster there, as --json prints
    them; raises `UserError` for a config, an address or an --out that can't be used."""
    extractor, weights, folder = INCEPTION, None, out
    if config is not None:
        loaded = load(config)
        extractor, weights = chosen(loaded.evaluate.extractor, loaded.data.name), loaded.evaluate.weights
        folder = run_folder(config, out, loaded.name)
    require_shared(folder or "/", address)
    root, storage = open_place(folder or "runs", "--out")
    asked = Asked(root, storage, extractor, weights)
    here = examine(asked)
    nodes = [(this_node(), here)]
    if address != "local":
        if folder is None or ("run directory", "error") in [check[:2] for check in here]:
            asked = replace(asked, root=None)
        try:
            nodes += _on_each_node(asked, address)
            here.append(Finding("cluster", "ok", f"connected to {address}"))
        except (UserError, RunFailed) as error:
            here.append(_failed("cluster", str(error)))
    here.append(_checked("token", token))
    found = [{"node": name, "checks": [check._asdict() for check in checks]} for name, checks in nodes]
    return {"taugrid": __version__, "nodes": found}


def _on_each_node(asked: Asked, address: str) -> list[tuple[str, list[Finding]]]:
    with cluster.connected(address, Cluster()), ExitStack() as stack:
        asked = replace(asked, versions=_versions())
        if asked.root is not None and asked.storage.on_disk:
            folder = _existing(asked.root)
            probe = stack.enter_context(tempfile.NamedTemporaryFile(prefix=".probe.", suffix=".tmp", dir=folder))
            asked = replace(asked, probe=Path(probe.name))
        fix = "look at Ray and taugrid there: ray status; pip show taugrid"
        answers = ask_nodes(examine, asked, NODE_SECONDS)
        return [(node, found or [Finding("node", "error", error, fix)]) for node, found, error in answers]


def is_ready(document: dict[str, Any]) -> bool:
    """Whether a run could start: here, and on at least one node of the cluster, if there is one."""
    sound = [all(check["state"] != "error" for check in node["checks"]) for node in document["nodes"]]
    return sound[0] and (len(sound) == 1 or any(sound[1:]))


def examine(asked: Asked) -> list[Finding]:
    """The checks of the machine where it is called."""
    return [
        _checked("software", software) if asked.versions is None else same_versions(_versions(), asked.versions),
        _checked("torch", lambda: torch_check(has_gpus())),
        *([] if asked.root is None else [_checked("run directory", lambda: run_directory(asked))]),
        _checked("weights", lambda: weights_check(asked.extractor, asked.weights)),
    ]


def _checked(name: str, check: Callable[[], Finding]) -> Finding:
    """A check, or that it can't be made here: no check raises."""
    try:
        return check()
    except Exception as error:
        return Finding(name, "warning", f"can't be checked: {type(error).__name__}: {joined_lines(error)[:200]}")


def _failed(name: str, message: str, state: Severity = "error") -> Finding:
    """The check for a message that says what is wrong and, after a semicolon, what to do."""
    found, _, fix = message.partition("; ")
    return Finding(name, state, found, fix)


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version(), **versions(PACKAGES)}


def software() -> Finding:
    found = _versions()
    if missing := [name for name in PACKAGES if name not in found]:
        return Finding("software", "error", f"{', '.join(missing)} missing", f"pip install {' '.join(missing)}")
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    return Finding("software", "ok", f"{text}; {platform.system()} {platform.machine()}")


def same_versions(own: dict[str, str], drivers: dict[str, str]) -> Finding:
    """Whether a node has the driver's versions; the build after a + may differ (CPU or GPU)."""
    pairs = {name: (own.get(name, "none"), drivers[name]) for name in drivers}
    differing = [f"{name} {a}, not {b}" for name, (a, b) in pairs.items() if a.partition("+")[0] != b.partition("+")[0]]
    if differing:
        fix = "install the same on every node; `ray start` must find that python first"
        return Finding("versions", "error", f"{'; '.join(differing)} as the driver has", fix)
    return Finding("versions", "ok", "as the driver's")


def torch_check(gpus_here: bool, found: TorchFound | None = None) -> Finding:
    """What torch finds, beside what the machine has; None: another process asks it."""
    if found is None:
        try:
            function = "taugrid.workers.accelerator.hardware:torch_found"
            found = TorchFound(**ask(function, {}, "torch", "find its devices"))
        except CustomCodeError as error:
            return Finding("torch", "error", str(error), f"install torch again: {BUILDS}")
    built = ", ".join(f"{name} {version}" for name, version in found.libraries.items()) or "for CPUs"
    what = f"torch {found.version} ({built})"
    if found.kind == "cpu" and gpus_here:
        return Finding("torch", "warning", f"{what}: no worker will use the GPU here", f"install one for it: {BUILDS}")
    if found.error and gpus_here:
        return Finding("torch", "error", f"{what} can't use the GPU here: {found.error}", GPU_REMEDY)
    return Finding("torch", "ok", f"{what}; {', '.join(found.gpus) or 'no GPU is here, so workers compute on CPUs'}")


def run_directory(asked: Asked) -> Finding:
    """Whether this machine sees the driver's disk and can write there, or may do in the bucket what a run does."""
    assert asked.root is not None
    name, shown, storage = "run directory", Paths(asked.root, asked.storage).shown, asked.storage
    if asked.probe is not None and not asked.probe.exists():
        fix = "mount it at the same path on every node, or give --out a URL"
        return Finding(name, "error", f"this node does not see {asked.probe.parent} of the driver", fix)
    try:
        if storage.on_disk:
            with tempfile.TemporaryFile(dir=_existing(asked.root)) as file:
                file.write(b"probe")
            return Finding(name, "ok", f"{shown} can be written to")
        storage.require(asked.root, to_write=True)
        probe = Paths(asked.root, storage).new_probe()
        with replacing(probe, storage) as temporary:
            write_text(temporary, "probe")
        storage.list(asked.root, "*")
        storage.read(probe)
        storage.delete(probe)
    except (OSError, UserError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        fix = "" if isinstance(error, StoreError | UserError) else "; make it writable, or give another one: --out"
        return _failed(name, f"{shown}: {reason}{fix}")
    return Finding(name, "ok", f"{shown}: files can be created, listed, read and deleted")


def _existing(folder: Path) -> Path:
    """The folder, or the first one above it that there is."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def weights_check(extractor: str, given: str | None) -> Finding:
    """The extractor's file of weights."""
    if (known := EXTRACTORS.get(extractor)) is None:
        return Finding("weights", "ok", f"{extractor} finds its weights itself; `taugrid plan` tries it")
    try:
        path = find_weights(known, given, download=False)
        return Finding("weights", "ok", f"{extractor}: {'part of the installation' if path is None else path}")
    except (MissingWeights, ValueError) as error:
        may_come = isinstance(error, MissingWeights) and isinstance(known.weights, PublishedWeights) and given is None
        return _failed("weights", str(error), "warning" if may_come else "error")


def token() -> Finding:
    """Ray's token, as docs/security.md wants it for clusters beyond this machine."""
    found, mode = cluster.find_token(), os.environ.get("RAY_AUTH_MODE")
    if found is None and mode == "token":
        fix = "export RAY_AUTH_TOKEN=... as the head has it; a new one: openssl rand -hex 32"
        return Finding("token", "warning", "RAY_AUTH_MODE is token, and there is none", fix)
    if found is None:
        return Finding("token", "ok", "none, which is enough for this machine alone; a cluster beyond it must have one")
    if mode not in (None, "token"):
        text = f"there is one in {found.origin}, but RAY_AUTH_MODE is {mode}"
        return Finding("token", "warning", text, "export RAY_AUTH_MODE=token")
    if found.origin != "RAY_AUTH_TOKEN" and Path(found.origin).stat().st_mode & 0o077:
        return Finding("token", "warning", f"others may read {found.origin}", f"chmod 600 {found.origin}")
    return Finding("token", "ok", f"there is one in {found.origin}")
