"""The checks of one machine: made by the command where it runs, and by a task on each node of a cluster.

Arguments with defaults are what a test replaces.
"""

import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taugrid.errors import CustomCodeError, StoreError, UserError
from taugrid.eval.features.resolve import MissingWeights, find_weights
from taugrid.orchestrator.dispatch.capacity import SCORER_BYTES
from taugrid.orchestrator.dispatch.cluster import OBJECT_STORE_BYTES
from taugrid.orchestrator.doctor.check import Finding, done, failed, private
from taugrid.orchestrator.rundir.lease import HEARTBEAT_SECONDS
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.orchestrator.rundir.provenance import PACKAGES
from taugrid.registry.extractors import EXTRACTORS, PublishedWeights
from taugrid.storage import Storage
from taugrid.versions import extras, versions
from taugrid.words import quantity, this_node
from taugrid.workers import ray_compat
from taugrid.workers.accelerator.hardware import BUILDS, TorchFound, has_gpus
from taugrid.workers.custom.describe import ask

TORCH_SECONDS = 15.0
"""How long torch may take to say what it finds: less than a node's time for all checks."""

WRITE_SECONDS, WRITE_BYTES, CHUNK_BYTES = 1.0, 2**26, 2**22
"""How long and how much a disk is written to, each chunk synced."""

SLOW_BYTES, FEW_BYTES = 10e6, 1e9
"""Bytes per second, and free bytes, below which a disk is called slow or full. Estimated."""

BUSY_SHARE = 0.5
"""A GPU of which less memory is free is in use by other processes."""


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


def examine(asked: Asked) -> dict[str, Any]:
    """The name of this machine, its checks, and its versions, which must be the same on all nodes."""
    parts = {
        "software": software,
        "torch": lambda: devices(has_gpus()),
        "memory": memory,
        "/dev/shm": shared_memory,
        "temporary folder": lambda: disk("temporary folder", Path(tempfile.gettempdir()), "TMPDIR"),
        "run directory": lambda: run_directory(asked),
        "weights": lambda: weights(asked.extractor, asked.weights),
    }
    checks = [check for name, part in parts.items() for check in done(name, part)]
    return {"node": private(this_node()), "checks": checks, "versions": _versions()}


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
        fix = f"{found.fix}; or set cluster.gpus_per_worker: 0 to compute on CPUs"
        yield Finding("torch", "error", f"{what} can't use the GPU here: {found.error}", fix)
    else:
        yield Finding("torch", "ok", what if found.gpus else f"{what}; no GPU is here, so workers compute on CPUs")
    for number, (name, total, free) in enumerate(found.gpus):
        busy = free < BUSY_SHARE * total
        fix = "end the other processes that nvidia-smi or rocm-smi shows" if busy else ""
        text = f"{name}, {quantity(total)}B, {quantity(free)}B free"
        yield Finding(f"GPU {number}", "warning" if busy else "ok", text, fix)


def memory(meminfo: Path = Path("/proc/meminfo")) -> Iterator[Finding]:
    """Of the machine, or what a container may have of it."""
    total, machine = ray_compat.memory_here(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text() if meminfo.exists() else "")
    free = min(total, int(available[1]) * 1024 if available else total)
    limit = f", the limit of this container (machine: {quantity(machine)}B)" if total < 0.99 * machine else ""
    text, few = f"{quantity(total)}B{limit}; {quantity(free)}B free on the machine", free < SCORER_BYTES
    fix = f"a worker needs about {quantity(SCORER_BYTES)}B: end other processes, or docker run --memory" if few else ""
    yield Finding("memory", "warning" if few else "ok", text, fix)


def shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Ray's object store is there if it fits, else on a disk."""
    if not folder.is_dir():
        yield Finding("/dev/shm", "ok", "there is none; Ray's object store is in its temporary folder")
        return
    total, _, free = shutil.disk_usage(folder)
    text, few = f"{quantity(total)}B, {quantity(free)}B free", free < OBJECT_STORE_BYTES
    text += f": Ray's object store ({quantity(OBJECT_STORE_BYTES)}B) goes to a disk, which is slow" if few else ""
    fix = "docker run --shm-size=1g; or delete what ended processes left there" if few else ""
    yield Finding("/dev/shm", "warning" if few else "ok", text, fix)


def disk(name: str, folder: Path, setting: str) -> Iterator[Finding]:
    """Space and speed of the disk that holds `folder`, or will hold it; `setting` names another one."""
    there = existing(folder)
    text = f"{folder}{'' if there == folder else f' (new, in {there})'}"
    try:
        free, speed = shutil.disk_usage(there).free, write_speed(there)
    except OSError as error:
        yield Finding(name, "error", f"{text}: {error.strerror}", f"make it writable, or give another one: {setting}")
        return
    fault = "; it is nearly full" if free < FEW_BYTES else "; it is slow" if speed < SLOW_BYTES else ""
    fix = f"free some space, or give another disk: {setting}" if fault else ""
    text = f"{text}: {quantity(free)}B free, {quantity(speed)}B/s{fault}"
    yield Finding(name, "warning" if fault else "ok", text, fix)


def existing(folder: Path) -> Path:
    """The folder, or the first one above it that there is."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def write_speed(folder: Path) -> float:
    """Bytes a second that reach the disk of a new file, which is removed."""
    data, written, began = os.urandom(CHUNK_BYTES), 0, time.monotonic()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        while written < WRITE_BYTES and time.monotonic() < began + WRITE_SECONDS:
            written += file.write(data)
            os.fsync(file.fileno())
        return written / (time.monotonic() - began)


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
    """Whether files can be created (and not overwritten), listed, read and deleted; and the clock of the bucket."""
    storage, path, step = run.storage, run.new_probe(), "create"
    try:
        storage.require(run.root, to_write=True)
        before = time.time()
        with storage.temporary(path) as temporary:
            temporary.write_bytes(b"probe")
            storage.commit(path, temporary)
        after, step = time.time(), "list"
        storage.list(run.root, "*")
        step = "read"
        offset = storage.stat(path).modified + 0.5 - (before + after) / 2  # it has whole seconds
        storage.read(path)
        step = "delete"
        storage.delete(path)
    except (StoreError, UserError) as error:
        reason = str(error.strerror if isinstance(error, StoreError) else error)
        yield failed("run directory", f"{run.shown}: can't {step} a file: {reason}")
        return
    yield Finding("run directory", "ok", f"{run.shown}: files can be created, listed, read and deleted")
    yield clock("clock of the bucket", offset, 0.5 + (after - before) / 2)


def clock(name: str, offset: float, error: float) -> Finding:
    """How far a clock is ahead of this machine's, in seconds; `error` is how far the measurement may be off."""
    is_off = abs(offset) - error > HEARTBEAT_SECONDS
    fix = "set both clocks by NTP: timedatectl set-ntp true, or chronyc makestep" if is_off else ""
    text = f"{offset:+.2f} s from the driver's, +- {error:.2f} s"
    return Finding(name, "warning" if is_off else "ok", text, fix)


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
