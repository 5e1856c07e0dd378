"""Processes and ports of this machine, for tests and benchmarks."""

import secrets
import socket
from contextlib import suppress
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`, from /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def free_port() -> int:
    """A port below those that Linux gives to whoever asks for any, so that nobody else gets it before it is used."""
    while True:
        with socket.socket() as server, suppress(OSError):
            server.bind(("127.0.0.1", port := 20_000 + secrets.randbelow(12_000)))
            return port
