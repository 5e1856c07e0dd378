"""Examines this machine and, with an address, every node of a cluster; the result as plain data and as lines."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
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
from taugrid.orchestrator.doctor.machine import Asked, Finding, done, examine, existing, failed, same_versions
from taugrid.orchestrator.opened import require_shared, run_folder
from taugrid.registry.extractors import INCEPTION
from taugrid.storage import open_place

NODE_SECONDS = 30.0
"""How long a node may take to answer."""


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
                probe = stack.enter_context(NamedTemporaryFile(prefix=".probe.", suffix=".tmp", dir=folder))
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
