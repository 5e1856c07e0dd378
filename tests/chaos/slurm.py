"""A SLURM cluster on one machine: slurmctld, munged, and a real slurmd on each of several nodes.

A node is a set of Linux namespaces: it has an address, a host name, processes and a network of its own, and it dies as
a machine does: everything on it at once. All nodes, and slurmctld, are in the namespaces of one more process. It ends,
and everything with it, when its input is closed, so also if the tests are killed. Outside a temporary folder, nothing
of the machine changes. That needs Linux, root, and Debian's packages slurm-wlm and munge; no systemd.

Nodes share /tmp; SLURM's prolog mounts an own /tmp/ray-JOB on each. Each has eight devices that SLURM takes for GPUs.
"""

import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools import raylets
from tools.machine import command_line, descendants

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip")
NAMESPACES = ["unshare", "--mount", "--pid", "--net", "--uts", "--fork", "--kill-child", "--mount-proc"]
SUBNET = "10.77.0"
GPUS = 8

SLURM_CONF = """
ClusterName=taugrid
SlurmctldHost=head({subnet}.1)
SlurmUser=root
AuthInfo=socket={state}/munge/socket
StateSaveLocation={state}/saved
SlurmdSpoolDir={state}/spool-%n
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/%n.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/%n.log
Prolog={state}/prolog
Epilog={state}/epilog
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
MpiDefault=none
SelectType=select/cons_tres
GresTypes=gpu
ReturnToService=2
FirstJobId={first_job}
KillWait=10
SlurmdTimeout=30
NodeName=n[1-{nodes}] NodeAddr={subnet}.[11-1{nodes}] CPUs=2 Gres=gpu:{gpus}
PartitionName=all Nodes=ALL Default=YES
"""

PROLOG = """#!/bin/bash
mkdir -p /tmp/ray-$SLURM_JOB_ID && mount -t tmpfs tmpfs /tmp/ray-$SLURM_JOB_ID
"""

EPILOG = r"""#!/bin/bash
for left in $(grep -lz "^RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID\$" /proc/[0-9]*/environ); do
  kill -9 "$(basename "$(dirname "$left")")" # as cgroups would, which this SLURM does not use
done
umount -l /tmp/ray-$SLURM_JOB_ID
rmdir /tmp/ray-$SLURM_JOB_ID || true
"""

HEAD = """
set -e
hostname head
mount --bind {state}/hosts /etc/hosts
mount --bind /dev/null /etc/resolv.conf
ip link set lo up
ip link add bridge type bridge
ip addr add {subnet}.1/24 dev bridge
ip link set bridge up
munged --force --key-file={state}/munge/key --socket={state}/munge/socket --pid-file={state}/munge/pid \
  --log-file={state}/munge/log --seed-file={state}/munge/seed
slurmctld -D &
read -r _ || true
"""

NODE = """
set -e
ip link add eth0 type veth peer name {name} netns 1
nsenter --target 1 --net ip link set {name} master bridge up
ip addr add {address}/24 dev eth0
ip link set lo up
ip link set eth0 up
ip route add default via {subnet}.1
hostname {name}
exec unshare --pid --fork --kill-child --mount-proc bash -c 'slurmd -D -N {name}; exit'
"""


def missing() -> str:
    """Why there can be no SLURM here; empty if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if absent:
        return f"no {absent[0]} here: apt-get install slurm-wlm munge iproute2"
    return "" if os.geteuid() == 0 and raylets.possible() else "needs root and the right to make namespaces"


class Slurm:
    """A cluster with nodes n1, n2 ..., which starts at once. Jobs begin in the folder `shared`."""

    def __init__(self, shared: Path, nodes: int, environment: dict[str, str]) -> None:
        self.shared = shared
        self._state = Path(tempfile.mkdtemp(prefix="slurm-"))
        self._names = [f"n{i}" for i in range(1, nodes + 1)]
        self._write_state()
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self._environment |= environment
        self._environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
        self._environment["SLURM_CONF"] = str(self._state / "slurm.conf")
        self._log = (self._state / "lab.log").open("w")
        script = HEAD.format(state=self._state, subnet=SUBNET)
        self._lab = self._begin([*NAMESPACES, "bash", "-c", script], stdin=subprocess.PIPE)
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._jobs: list[str] = []
        self.wait_until(lambda: "is UP" in self.run("scontrol", "ping", code=None), 30)
        for name in self._names:
            self.start(name)
        self.wait_until(lambda: all(self.node(name) == "IDLE" for name in self._names), 60)

    def _write_state(self) -> None:
        self._state.chmod(0o755)  # munged demands it
        for folder in ("munge", "saved", *(f"spool-{name}" for name in self._names)):
            (self._state / folder).mkdir()
        (self._state / "munge/key").write_bytes(secrets.token_bytes(128))
        (self._state / "munge/key").chmod(0o600)
        for i in range(GPUS):
            os.mknod(self._state / f"gpu{i}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # as /dev/null
        (self._state / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={self._state}/gpu[0-{GPUS - 1}]\n")
        places = {"state": self._state, "subnet": SUBNET, "nodes": len(self._names), "gpus": GPUS}
        places["first_job"] = 100 * (os.getpid() % 600_000)
        (self._state / "slurm.conf").write_text(SLURM_CONF.format(**places))
        hosts = ["127.0.0.1 localhost", f"{SUBNET}.1 head", *(f"{self.address(name)} {name}" for name in self._names)]
        (self._state / "hosts").write_text("\n".join([*hosts, ""]))
        for name, script in (("prolog", PROLOG), ("epilog", EPILOG)):
            (self._state / name).write_text(script)
            (self._state / name).chmod(0o755)

    def address(self, name: str) -> str:
        return f"{SUBNET}.1{name[1:]}"

    def start(self, name: str) -> None:
        """Start a node, which joins by and by."""
        script = NODE.format(name=name, address=self.address(name), subnet=SUBNET)
        self._nodes[name] = self._begin(self._inside("unshare", "--mount", "--net", "--uts", "bash", "-c", script))

    def kill(self, name: str) -> None:
        """Kill a node with everything that runs on it."""
        node = self._nodes.pop(name)
        os.kill(descendants(node.pid)[0], signal.SIGKILL)  # its first process dies with it, and with that its namespace
        node.wait()

    def node(self, name: str) -> str:
        """A node's state: IDLE, ALLOCATED, IDLE+DRAIN ..."""
        found = re.search(r"State=(\S+)", self.run("scontrol", "show", "node", name, code=None))
        return found[1] if found else ""

    def run(self, *command: object, code: int | None = 0) -> str:
        """What a command prints on the machine of slurmctld."""
        done = subprocess.run(
            self._inside(*command), env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert code is None or done.returncode == code, done.stdout
        return done.stdout

    def processes(self, name: str) -> dict[int, str]:
        """Process id -> command line, of what runs on a node."""
        return {pid: command_line(pid) for pid in descendants(self._nodes[name].pid)}

    def submit(self, *arguments: object) -> str:
        """The number of a new job."""
        self._jobs.append(self.run("sbatch", "--parsable", *arguments).strip())
        return self._jobs[-1]

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", "--oneliner", number)))

    def log(self, number: str) -> str:
        path = self.shared / f"taugrid-{number}.log"
        return path.read_text() if path.exists() else ""

    def wait(self, number: str, state: str, seconds: float = 600) -> dict[str, str]:
        """What is said of a job once it is in a state."""
        self.wait_until(lambda: self.job(number)["JobState"] == state, seconds, number)
        return self.job(number)

    def wait_until(self, condition: Callable[[], Any], seconds: float = 600, job: str = "") -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                said = (self.job(job), self.log(job)) if job else (self._state / "lab.log").read_text()
                raise AssertionError(f"not after {seconds} s: {said}")
            time.sleep(0.3)

    def close(self) -> None:
        assert self._lab.stdin is not None
        self._lab.stdin.close()
        self._lab.wait(30)
        self._log.close()
        shutil.rmtree(self._state)
        for job in self._jobs:  # those whose epilog did not run
            shutil.rmtree(f"/tmp/ray-{job}", ignore_errors=True)

    def _inside(self, *command: object) -> list[str]:
        """A command in the namespaces of slurmctld, in the shared folder."""
        first = descendants(self._lab.pid)
        target = ["--target", str(first[0] if first else self._lab.pid), "--mount", "--pid", "--net", "--uts"]
        return ["nsenter", *target, f"--wd={self.shared}", *map(str, command)]

    def _begin(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=self._environment, stdout=self._log, stderr=self._log, **options)
