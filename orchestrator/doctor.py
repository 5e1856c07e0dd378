"""`taugrid doctor`: whether a run could start, here and on every node of a cluster.

The checks of a machine are made where the command runs, and by a task on each node.
"""

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
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
from taugrid.storage import Storage, open_place
from taugrid.versions import extras, versions
from taugrid.words import quantity, this_node
from taugrid.workers.accelerator.hardware import BUILDS, GPU_REMEDY, TorchFound, has_gpus
from taugrid.workers.custom.describe import ask

NODE_SECONDS = 30.0
"""How long a node may take to answer."""

TORCH_SECONDS = 15.0
"""How long torch may take to say what it finds: less than a node's time for all checks."""

CHECK_SECONDS = 20.0
"""How long a check may take: a dead mount would never answer."""

FEW_BYTES = 1e9
"""Free bytes below which a disk is called nearly full. Estimated."""

BUSY_SHARE = 0.5
"""A GPU of which less memory is free is in use by other processes."""


Severity = Literal["ok", "warning", "error"]
"""`error`: a run could not start like this."""


class Finding(NamedTuple):
    name: str
    state: Severity
    found: str
    fix: str = ""
    """What to do about a warning or an error: a command, or a setting."""


@dataclass(frozen=True)
class Asked:
    """What is checked. It travels to the nodes."""

    root: Path | None
    """The run directory; None: it is not checked."""
    storage: Storage
    extractor: str
    weights: str | None
    probe: Path | None = None
    """A file of the driver on the run directory's disk, which every node must see."""


def examination(config: str | None, address: str, out: str | None) -> dict[str, Any]:
    """The checks of this machine and, unless `address` is local, of each node of the cluster there.

    Raises:
        UserError: for a config, an address or an --out that can't be used.
    """
    extractor, weights, folder = INCEPTION, None, out
    if config is not None:
        loaded = load(config)
        extractor, weights = chosen(loaded.evaluate.extractor, loaded.data.name), loaded.evaluate.weights
        folder = run_folder(config, out, loaded.name)
    require_shared(folder or "/", address)
    root, storage = open_place(folder or "runs", "--out")
    asked = Asked(root, storage, extractor, weights)
    nodes = [examine(asked)] if address == "local" else _of_cluster(asked, address, folder is not None)
    nodes[0]["checks"] += done("token", token)
    found = [{"node": each["node"], "checks": [check._asdict() for check in each["checks"]]} for each in nodes]
    return {"taugrid": __version__, "nodes": found}


def _of_cluster(asked: Asked, address: str, has_place: bool) -> list[dict[str, Any]]:
    """What `examine` finds on the driver's machine, and then on each node."""
    nodes: list[dict[str, Any]] = []
    try:
        with cluster.connected(address, Cluster()), ExitStack() as stack:
            here = examine(asked)
            here["checks"].append(Finding("cluster", "ok", f"connected to {address}"))
            if not has_place or ("run directory", "error") in [check[:2] for check in here["checks"]]:
                asked = replace(asked, root=None)
            elif asked.root is not None and asked.storage.on_disk:
                folder = existing(asked.root)
                probe = stack.enter_context(tempfile.NamedTemporaryFile(prefix=".probe.", suffix=".tmp", dir=folder))
                asked = replace(asked, probe=Path(probe.name))
            for node, found, error in ask_nodes(examine, asked, NODE_SECONDS):
                fix = "look at Ray and taugrid there: ray status; pip show taugrid"
                checks = [Finding("node", "error", error, fix)]
                if found is not None:
                    checks = [*found["checks"], same_versions(found["versions"], here["versions"])]
                nodes.append({"node": node, "checks": checks})
    except (UserError, RunFailed) as error:
        here = examine(replace(asked, probe=None))
        here["checks"].append(failed("cluster", str(error)))
    return [here, *nodes]


def is_ready(document: dict[str, Any]) -> bool:
    """Whether a run could start: here, and on at least one node of the cluster, if there is one."""
    sound = [all(check["state"] != "error" for check in node["checks"]) for node in document["nodes"]]
    return sound[0] and (len(sound) == 1 or any(sound[1:]))


def token() -> Iterator[Finding]:
    """Ray's token, as docs/security.md wants it for clusters beyond this machine."""
    found, mode = cluster.find_token(), os.environ.get("RAY_AUTH_MODE")
    if found is None and mode == "token":
        fix = "export RAY_AUTH_TOKEN=... as the head has it; a new one: openssl rand -hex 32"
        yield Finding("token", "warning", "RAY_AUTH_MODE is token, and there is none", fix)
    elif found is None:
        yield Finding("token", "ok", "none, which is enough for this machine alone; a cluster beyond it must have one")
    elif mode not in (None, "token"):
        fix = "export RAY_AUTH_MODE=token"
        yield Finding("token", "warning", f"there is one in {found.origin}, but RAY_AUTH_MODE is {mode}", fix)
    elif found.origin != "RAY_AUTH_TOKEN" and Path(found.origin).stat().st_mode & 0o077:
        yield Finding("token", "warning", f"others may read {found.origin}", f"chmod 600 {found.origin}")
    else:
        yield Finding("token", "ok", f"there is one in {found.origin}")


def examine(asked: Asked) -> dict[str, Any]:
    """The name of this machine, its checks, and its versions, which must be the same on all nodes."""
    parts = {
        "software": software,
        "torch": lambda: devices(has_gpus()),
        "temporary folder": lambda: disk("temporary folder", Path(tempfile.gettempdir()), "TMPDIR"),
        "run directory": lambda: run_directory(asked),
        "weights": lambda: weights(asked.extractor, asked.weights),
    }
    checks = [check for name, part in parts.items() for check in done(name, part)]
    return {"node": this_node(), "checks": checks, "versions": _versions()}


def done(name: str, checks: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The checks, or that they can't be made here: no check raises."""
    found = [Finding(name, "warning", f"can't be checked: no answer within {CHECK_SECONDS:.0f} s")]

    def find() -> None:
        try:
            found[:] = checks()
        except Exception as error:
            state: Severity = "error" if isinstance(error, FileNotFoundError) else "warning"  # no temporary folder
            found[:] = [failed(name, f"can't be checked: {type(error).__name__}: {joined_lines(error)[:200]}", state)]

    thread = Thread(target=find, daemon=True)  # a dead mount must not keep the process
    thread.start()
    thread.join(CHECK_SECONDS)
    return found


def failed(name: str, message: str, state: Severity = "error") -> Finding:
    """The check for a message that says what is wrong and, after a semicolon, what to do."""
    found, _, fix = message.partition("; ")
    return Finding(name, state, found, fix)


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version(), **versions(PACKAGES)}


def software() -> Iterator[Finding]:
    found = _versions()
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    yield Finding("software", "ok", f"{text}; {platform.system()} {platform.machine()}")
    yield from (Finding(name, "error", "missing", f"pip install {name}") for name in PACKAGES if name not in found)
    installed = [f"{name}{'' if is_here else ' (no)'}" for name, is_here in sorted(extras().items())]
    yield Finding("extras", "ok", ", ".join(installed) or "not known: taugrid is not installed")


def devices(gpus_here: bool, found: TorchFound | None = None) -> Iterator[Finding]:
    """What torch finds, beside what the machine has."""
    if found is None:
        try:
            function = "taugrid.workers.accelerator.hardware:torch_found"
            found = TorchFound(**ask(function, {}, "torch", "find its devices", TORCH_SECONDS))
        except CustomCodeError as error:
            if isinstance(error.__context__, subprocess.TimeoutExpired):
                yield failed("torch", f"can't be checked: {error}", "warning")
            else:
                yield Finding("torch", "error", str(error), f"install torch again: {BUILDS}")
            return
    built = ", ".join(f"{name} {version}" for name, version in found.libraries.items()) or "for CPUs"
    what = f"torch {found.version} ({built})"
    if found.kind == "cpu" and gpus_here:
        yield Finding("torch", "warning", f"{what}: no worker will use the GPU here", f"install one for it: {BUILDS}")
    elif found.error and gpus_here:
        yield Finding("torch", "error", f"{what} can't use the GPU here: {found.error}", GPU_REMEDY)
    else:
        yield Finding("torch", "ok", what if found.gpus else f"{what}; no GPU is here, so workers compute on CPUs")
    for number, (name, total, free) in enumerate(found.gpus):
        busy = free < BUSY_SHARE * total
        fix = "end the other processes that nvidia-smi or rocm-smi shows" if busy else ""
        text = f"{name}, {quantity(total)}B, {quantity(free)}B free"
        yield Finding(f"GPU {number}", "warning" if busy else "ok", text, fix)


def disk(name: str, folder: Path, setting: str) -> Iterator[Finding]:
    """Space on the disk that holds `folder`, or will hold it; `setting` names another one."""
    there = existing(folder)
    text = f"{folder}{'' if there == folder else f' (new, in {there})'}"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"probe")
        free = shutil.disk_usage(there).free
    except OSError as error:
        yield Finding(name, "error", f"{text}: {error.strerror}", f"make it writable, or give another one: {setting}")
        return
    is_full = free < FEW_BYTES
    fix = f"free some space, or give another disk: {setting}" if is_full else ""
    yield Finding(name, "warning" if is_full else "ok", f"{text}: {quantity(free)}B free", fix)


def existing(folder: Path) -> Path:
    """The folder, or the first one above it that there is."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def run_directory(asked: Asked) -> Iterator[Finding]:
    """A disk that this machine sees, or a bucket in which it may do what a run does."""
    if asked.root is None:
        return
    if not asked.storage.on_disk:
        yield from bucket(Paths(asked.root, asked.storage))
    elif asked.probe is not None and not asked.probe.exists():
        fix = "mount it at the same path on every node, or give --out a URL"
        yield Finding("run directory", "error", f"this node does not see {asked.probe.parent} of the driver", fix)
    else:
        yield from disk("run directory", asked.root, "--out")


def bucket(run: Paths) -> Iterator[Finding]:
    """Whether files can be created (and not overwritten), listed, read and deleted."""
    storage, path, step = run.storage, run.new_probe(), "create"
    try:
        storage.require(run.root, to_write=True)
        with storage.temporary(path) as temporary:
            temporary.write_bytes(b"probe")
            storage.commit(path, temporary)
        step = "list"
        storage.list(run.root, "*")
        step = "read"
        storage.read(path)
        step = "delete"
        storage.delete(path)
    except (StoreError, UserError) as error:
        reason = str(error.strerror if isinstance(error, StoreError) else error)
        yield failed("run directory", f"{run.shown}: can't {step} a file: {reason}")
        return
    yield Finding("run directory", "ok", f"{run.shown}: files can be created, listed, read and deleted")


def weights(extractor: str, given: str | None) -> Iterator[Finding]:
    """The extractor's file of weights."""
    if (known := EXTRACTORS.get(extractor)) is None:
        yield Finding("weights", "ok", f"{extractor} finds its weights itself; `taugrid plan` tries it")
        return
    try:
        path = find_weights(known, given, download=False)
        yield Finding("weights", "ok", f"{extractor}: {'part of the installation' if path is None else path}")
    except (MissingWeights, ValueError) as error:
        may_come = isinstance(error, MissingWeights) and isinstance(known.weights, PublishedWeights) and given is None
        yield failed("weights", str(error), "warning" if may_come else "error")


def same_versions(theirs: Mapping[str, str], ours: Mapping[str, str]) -> Finding:
    """Whether a node has the driver's versions; the build after a + may differ (CPU or GPU)."""
    pairs = {name: (theirs.get(name, "none"), ours[name]) for name in ours}
    differing = [f"{name} {a}, not {b}" for name, (a, b) in pairs.items() if a.partition("+")[0] != b.partition("+")[0]]
    if differing:
        fix = "install the same on every node; `ray start` must find that python first"
        return Finding("versions", "error", f"{'; '.join(differing)} as the driver has", fix)
    return Finding("versions", "ok", "as the driver's")
