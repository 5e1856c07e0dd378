"""Examines this machine and, with an address, every node of a cluster; the result as plain data and as lines."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from taugrid import __version__
from taugrid.config import Cluster
from taugrid.config.load import load
from taugrid.errors import RunFailed, UserError
from taugrid.eval.features.resolve import chosen
from taugrid.orchestrator.dispatch import address as addresses
from taugrid.orchestrator.dispatch import cluster
from taugrid.orchestrator.dispatch.nodes import ask_nodes
from taugrid.orchestrator.doctor.check import Finding, anonymous, done, failed, private
from taugrid.orchestrator.doctor.machine import Asked, clock, examine, existing, same_versions
from taugrid.orchestrator.opened import require_shared, run_folder
from taugrid.registry.extractors import INCEPTION
from taugrid.storage import open_place

NODE_SECONDS = 30.0
"""How long a node may take to answer."""

PORTS = {
    6379: ("Ray's head", "ray start --head --port=PORT"),
    8265: ("Ray's dashboard", "ray start --head --dashboard-port=PORT"),
    10001: ("Ray's clients", "ray start --head --ray-client-server-port=PORT"),
    8000: ("taugrid board", "taugrid board --port PORT"),
}
"""Ports that Ray on this machine or the board would use, for what, and how to use another."""


def examination(config: str | None, address: str, out: str | None, for_issues: bool = False) -> dict[str, Any]:
    """The checks of this machine and, unless `address` is local, of each node of the cluster there.

    For issues, without names of machines, addresses, buckets and folders.

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
    machine = [] if address == "local" else _of_cluster(asked, address, folder is not None)
    here = machine[0] if machine else examine(asked)
    here["checks"] += [*done("token", token), *(done("ports", ports) if address == "local" else ())]
    nodes = []
    for number, node in enumerate([here, *machine[1:]]):
        name, checks = node["node"], [check._asdict() for check in node["checks"]]
        if for_issues:
            name = f"node {number}" if number else "this machine"
            checks = [{key: anonymous(text, address) for key, text in check.items()} for check in checks]
        nodes.append({"node": name, "checks": checks})
    return {"taugrid": __version__, "nodes": nodes}


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
                probe = stack.enter_context(NamedTemporaryFile(prefix=".probe.", suffix=".tmp", dir=folder))
                asked = replace(asked, probe=Path(probe.name))
            for node, found, error, offset in ask_nodes(examine, asked, NODE_SECONDS):
                fix = "look at Ray and taugrid there: ray status; pip show taugrid"
                checks = [Finding("node", "error", private(error), fix)]
                if found is not None:
                    checks = [*found["checks"], same_versions(found["versions"], here["versions"])]
                    checks.append(clock("clock", *offset))
                nodes.append({"node": private(node), "checks": checks})
    except (UserError, RunFailed) as error:
        here = examine(replace(asked, probe=None))
        here["checks"].append(failed("cluster", private(str(error))))
    return [here, *nodes]


def is_ready(document: dict[str, Any]) -> bool:
    """Whether a run could start: here, and on at least one node of the cluster, if there is one."""
    sound = [all(check["state"] != "error" for check in node["checks"]) for node in document["nodes"]]
    return sound[0] and (len(sound) == 1 or any(sound[1:]))


def token() -> Iterator[Finding]:
    """Ray's token, as docs/security.md wants it for clusters beyond this machine."""
    found, mode = addresses.find_token(), os.environ.get("RAY_AUTH_MODE")
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


def ports() -> Iterator[Finding]:
    """Who listens at the ports that Ray and the board use when they are not told others."""
    taken = {number: who for number, who in listeners().items() if number in PORTS}
    for number, who in taken.items():
        use, other = PORTS[number]
        is_rays = who.startswith(("gcs_server", "ray"))
        fix = "" if is_rays else f"another port for {use}: {other}"
        yield Finding(f"port {number}", "ok" if is_rays else "warning", f"{who} listens there", fix)
    if free := ", ".join(f"{number} ({use})" for number, (use, _) in PORTS.items() if number not in taken):
        yield Finding("ports", "ok", f"free: {free}")


def listeners(proc: Path = Path("/proc")) -> dict[int, str]:
    """Port -> the process that listens there, by name and id; of other users without a name."""
    ports_by_socket = {}
    for table in (proc / "net/tcp", proc / "net/tcp6"):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                ports_by_socket[f"socket:[{fields[9]}]"] = int(fields[1].rpartition(":")[2], 16)
    found = dict.fromkeys(ports_by_socket.values(), "a process of another user")
    wanted = {socket: port for socket, port in ports_by_socket.items() if port in PORTS}
    for process in proc.glob("[0-9]*") if wanted else ():
        with suppress(OSError):  # it has ended, or is another user's
            for link in (process / "fd").iterdir():
                if (port := wanted.get(str(link.readlink()))) is not None:
                    found[port] = f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return found
