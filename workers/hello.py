"""What a worker checks before it gets work: that its node can write to the run directory and has what the driver has.

Torch is imported when a device is checked, not with this module: the driver makes the probe.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taugrid.errors import DeviceUnusable, OtherVersions, RunDirectoryNotSeen
from taugrid.run_id import RunId, check_run
from taugrid.storage import LOCAL, Storage
from taugrid.versions import versions

VERSIONS = ("taugrid", "torch", "diffusers", "torch-fidelity", "pyarrow", "numpy", "pillow", "ray")


@dataclass(frozen=True)
class Probe:
    """What a worker must find."""

    path: str
    """A file that the driver made in the run directory."""
    storage: Storage = LOCAL
    run: RunId | None = None
    """Which run directory it is."""
    versions: Mapping[str, str] = field(default_factory=lambda: versions(VERSIONS))
    """The driver's."""


def check_run_directory(probe: Probe, node: str) -> None:
    """See the driver's file, then write one beside it, link it, read it back and remove it, as jobs do.

    Raises:
        RunDirectoryNotSeen: if it is another folder, or does not give back what was written.
        OSError: if the folder can't be read or written.
    """
    path, storage = Path(probe.path), probe.storage
    if not storage.exists(path):
        raise RunDirectoryNotSeen(
            f"node {node} does not see {path.parent}; every worker must see the run directory at the same path"
        )
    if probe.run is not None:
        check_run(probe.run, storage)
    number = uuid.uuid4().hex
    own, data = path.with_name(f".hello.{number[:12]}.tmp"), number.encode()
    try:
        with storage.temporary(own) as temporary:
            temporary.write_bytes(data)
            named = storage.commit(own, temporary)
        if not named or storage.read(own) != data:
            raise RunDirectoryNotSeen(
                f"node {node}: a file written to {path.parent} does not read back as it was written"
            )
    finally:
        storage.delete(own)


def check_versions(probe: Probe, node: str) -> dict[str, str]:
    """The versions here, which must be the driver's; the build after a + may differ (one for CPUs, one for GPUs).

    Raises:
        OtherVersions: if one differs.
    """
    here = versions(VERSIONS)
    for name, theirs in probe.versions.items():
        if (own := here.get(name, "none")).partition("+")[0] != theirs.partition("+")[0]:
            raise OtherVersions(f"node {node} has {name} {own}, but the driver has {theirs}; install the same there")
    return here


def check_device(device: str, given_gpu: bool, node: str) -> None:
    """Compute something on the device.

    Raises:
        DeviceUnusable: if the result is wrong, or a GPU was given that torch can't use.
        RuntimeError: if the device fails, as torch says it.
    """
    import torch

    if given_gpu and device == "cpu":
        raise DeviceUnusable(
            f"node {node}: Ray gave this worker a GPU, but torch can't use it; check its driver and torch"
        )
    if (found := float(torch.arange(8.0, device=device).square().sum())) != 140.0:
        raise DeviceUnusable(f"node {node}: its device {device} computes 0 + 1 + 4 + ... + 49 = {found}, not 140")
