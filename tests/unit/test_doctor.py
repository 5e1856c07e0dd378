"""`taugrid doctor` finds what would stop a run, says what to do, never raises, and tells nothing private."""

import json
import os
import re
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from unittest import mock

import pytest
import ray
import torch
from asking import answer
from nights import taugrid
from snapshots import recorded
from test_gpu import DRIVER

from taugrid.errors import CustomCodeError
from taugrid.orchestrator.dispatch.nodes import Answer
from taugrid.orchestrator.doctor import check, examination, machine
from taugrid.orchestrator.doctor.machine import bucket, clock, devices, disk, memory, shared_memory, weights
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.registry.extractors import INCEPTION
from taugrid.workers.accelerator.hardware import TorchFound, torch_found


@pytest.fixture
def quick(monkeypatch):
    """Torch is asked in this process, disks are written to for an instant, and what else runs here does not matter."""
    monkeypatch.setattr(machine, "ask", answer)
    monkeypatch.setattr(machine, "WRITE_BYTES", 2**22)
    monkeypatch.setattr(machine, "SLOW_BYTES", 1.0)
    monkeypatch.setattr(machine, "SCORER_BYTES", 1.0)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def doctor(*arguments, code=0):
    found = json.loads(taugrid("doctor", *arguments, "--json", code=code)[0])
    assert found.keys() == {"taugrid", "nodes"}
    for node in found["nodes"]:
        assert node.keys() == {"node", "checks"}
        for each in node["checks"]:
            assert list(each) == ["name", "state", "found", "fix"]
            assert each["state"] in ("ok", "warning", "error")
    return found["nodes"]


def error_of(node):
    [found] = [each for each in node["checks"] if each["state"] == "error"]
    return found


def states(checks):
    return [(each.name, each.state) for each in checks]


def test_this_machine_is_ready_and_nothing_private_is_told(quick, tmp_path, monkeypatch):
    home, had_ray = tmp_path / "home of alice", ray.is_initialized()
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text("the-secret-token")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "alice")
    (tmp_path / "my.yaml").write_text("{name: mine, data: {name: digits}, model: {oracle: gaussian}}")
    [node] = doctor(tmp_path / "my.yaml", "--out", home / "alice/run")
    found = {each["name"]: each for each in node["checks"]}
    assert {"software", "extras", "torch", "memory", "/dev/shm", "temporary folder", "weights", "token"} <= found.keys()
    assert node["node"] == "this machine"
    assert found["run directory"]["found"].startswith("~/USER/run (new, ")
    recorded(found["weights"]["found"])
    assert (found["token"]["state"], found["token"]["fix"]) == ("warning", "chmod 600 ~/.ray/auth_token")
    recorded(found["token"]["found"])
    text = json.dumps(node) + taugrid("doctor", "--out", home / "run")[0]
    assert not re.search(r"alice|secret|home of", text)
    assert ray.is_initialized() == had_ray
    assert not list(home.glob("**/.probe*"))


def test_what_stops_a_run_is_red_and_exits_with_1(quick):
    [node] = doctor("--out", "/proc/run", code=1)
    assert error_of(node)["name"] == "run directory"
    recorded(error_of(node)["fix"])
    assert re.search(r"error +run .*\n +fix: make", taugrid("doctor", "--out", "/proc/run", code=1)[0])


def test_a_check_that_fails_says_so(monkeypatch, quick):
    for error, state in ((ValueError("not a number"), "warning"), (FileNotFoundError("no temporary folder"), "error")):
        monkeypatch.setattr(machine, "memory", mock.Mock(side_effect=error))
        [node] = doctor(code=int(state == "error"))
        [failed] = [each for each in node["checks"] if each["name"] == "memory"]
        assert failed["state"] == state
        recorded(failed["found"], "checked")


OLD = TorchFound("2.13.0+cu130", "cuda", {"cuda": "13.0"}, [], "The NVIDIA driver is too old", "update the driver")
CARD = ("NVIDIA H100", 80 * 10**9, 79 * 10**9)


@pytest.mark.parametrize(
    ("gpus_here", "found", "expected"),
    [
        (False, TorchFound("2.13.0+cpu", "cpu"), [("torch", "ok")]),
        (False, OLD, [("torch", "ok")]),
        (True, TorchFound("2.13.0+cpu", "cpu"), [("torch", "warning")]),
        (True, OLD, [("torch", "error")]),
        (True, TorchFound("2.13", "cuda", {}, [CARD]), [("torch", "ok"), ("GPU 0", "ok")]),
        (True, TorchFound("2", "cuda", {}, [(*CARD[:2], 10**9)]), [("torch", "ok"), ("GPU 0", "warning")]),
    ],
)
def test_torch_beside_the_driver(gpus_here, found, expected):
    checks = list(devices(gpus_here, found))
    assert states(checks) == expected
    recorded(checks[-1].found)
    assert all(each.fix for each in checks if each.state != "ok")


def test_torch_that_cannot_be_imported_or_is_slow(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(machine, "TORCH_SECONDS", 0.01)
        [found] = devices(False)
        assert found.state == "warning"
        recorded(f"{found.found}\n{found.fix}")

    def broken(*_):
        raise CustomCodeError("torch can't be used: ImportError: libcudart.so")

    monkeypatch.setattr(machine, "ask", broken)
    [found] = devices(False)
    assert (found.state, "libcudart" in found.found) == ("error", True)


def test_a_dead_mount_does_not_hold_up_the_others(monkeypatch):
    monkeypatch.setattr(check, "CHECK_SECONDS", 0.1)
    dead = Event()
    [found] = check.done("run directory", lambda: [dead.wait()])
    dead.set()
    recorded("\n".join(found[:3]))


def test_what_torch_says_of_an_old_driver(monkeypatch):
    def init():
        raise RuntimeError(DRIVER.format(12040))

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = torch_found()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ, "Ray hides GPUs from tasks that ask for none"
    assert (found.kind, found.gpus) == ("cuda", [])
    recorded(found.error)
    recorded(found.fix, "update")


def test_a_container_with_little_shared_memory(small_disk):
    [found] = shared_memory(small_disk)
    assert (found.state, "--shm-size" in found.fix) == ("warning", True)
    recorded(found.found)


def test_disks(small_disk, tmp_path, quick):
    [found] = disk("temporary folder", small_disk / "new", "TMPDIR")
    assert found.state == "warning"
    recorded(found.fix)
    (small_disk / "ballast").write_bytes(bytes(61 * 2**20))
    [found] = disk("temporary folder", small_disk, "TMPDIR")
    assert (found.state, "No space" in found.found) == ("error", True)
    (small_disk / "ballast").unlink()
    assert states(disk("x", tmp_path, "--out")) == [("x", "ok")]
    assert not list(tmp_path.iterdir())


def test_little_memory(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   1000000 kB\n")
    [found] = memory(tmp_path / "meminfo")
    assert (found.state, "1.02GB free" in found.found) == ("warning", True)
    monkeypatch.setattr(machine, "SCORER_BYTES", 1.0)  # other tests may have most of it
    assert states(memory()) == states(memory(tmp_path / "of a Mac")) == [("memory", "ok")]


def test_a_bucket_with_all_rights(bucket_place, monkeypatch):
    assert [state for _, state in states(bucket(bucket_place))] == ["ok", "ok"]
    assert not bucket_place.storage.walk(bucket_place.root), "no probe is left"
    late = SimpleNamespace(time=lambda: time.time() - 100, monotonic=time.monotonic)
    monkeypatch.setattr(machine, "time", late)
    found = list(bucket(bucket_place))[1]
    assert (found.state, round(float(found.found.split()[0]) / 10)) == ("warning", 10)


@pytest.fixture
def bucket_place(bucket):
    return Paths(*bucket)


@pytest.mark.parametrize(
    "refused",
    [
        lambda method, path: method == "PUT",
        lambda method, path: method == "GET" and ".probe" not in path,
        lambda method, path: method == "GET" and ".probe" in path,
        lambda method, path: method in ("POST", "DELETE"),  # the first probe is deleted too
    ],
    ids=["create", "list", "read", "delete"],
)
def test_a_bucket_without_a_right(bucket_place, s3, refused):
    with s3.refusing(lambda method, path: (403, "AccessDenied") if refused(method, path) else None):
        [found] = bucket(bucket_place)
    assert found.state == "error"
    recorded(f"{found.found.partition(': ')[2]}\n{found.fix}")


def test_a_bucket_that_is_not_there(s3, quick):
    [node] = doctor("--out", "s3://nowhere-at-all/run", code=1)
    recorded(error_of(node)["found"], "bucket")
    assert error_of(node)["fix"].startswith("create it")


@pytest.mark.parametrize(
    ("environment", "state"),
    [
        ({}, "ok"),
        ({"RAY_AUTH_MODE": "token"}, "warning"),
        ({"RAY_AUTH_TOKEN": "secret"}, "ok"),
        ({"RAY_AUTH_TOKEN": "secret", "RAY_AUTH_MODE": "disabled"}, "warning"),
    ],
)
def test_tokens(quick, tmp_path, monkeypatch, environment, state):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    [found] = examination.token()
    assert (found.state, "secret" in str(found)) == (state, False)
    recorded(found.found)


def test_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    [found] = weights(INCEPTION, None)
    assert (found.state, "https://" in found.fix) == ("warning", True)
    assert [each.state for each in weights(INCEPTION, str(tmp_path / "none.pth"))] == ["error"]
    (tmp_path / "own.pth").touch()
    assert [each.state for each in weights(INCEPTION, str(tmp_path / "own.pth"))] == ["ok"]
    assert [each.state for each in weights("mine:Extractor", None)] == ["ok"]


def test_nodes_that_differ(quick, monkeypatch, tmp_path):

    @contextmanager
    def connected(*_):
        yield

    def ask_nodes(examine, asked, seconds):
        assert asked.probe.exists()
        fine = examine(asked)
        other = {**fine, "versions": {**fine["versions"], "torch": "1.0.0", "ray": fine["versions"]["ray"] + "+x"}}
        yield Answer("fine", fine, clock=(0.2, 0.1))
        yield Answer("other", other, clock=(-60.0, 0.1))
        yield Answer("silent", error="no answer within 30 s")
        yield Answer("unmounted", examine(replace(asked, probe=Path("/nowhere/.probe.tmp"))))

    monkeypatch.setattr(examination.cluster, "connected", connected)
    monkeypatch.setattr(examination, "ask_nodes", ask_nodes)
    driver, *nodes = doctor("--address", "127.0.0.1:9", "--out", tmp_path / "run")
    assert ("cluster", "ok") in [(each["name"], each["state"]) for each in driver["checks"]]
    assert [node["node"] for node in (driver, *nodes)] == ["this machine", *(f"node {n}" for n in range(1, 5))]
    found = {
        name: {each["name"]: each for each in node["checks"] if each["state"] != "ok"}
        for name, node in zip(("fine", "other", "silent", "unmounted"), nodes, strict=True)
    }
    found = {node: {name: each for name, each in bad.items() if name != "weights"} for node, bad in found.items()}
    assert {node: list(bad) for node, bad in found.items()} == {
        "fine": [], "other": ["versions", "clock"], "silent": ["node"], "unmounted": ["run directory"]
    }  # fmt: skip
    assert found["other"]["versions"]["found"].startswith("torch 1.0.0, not ")
    recorded(found["unmounted"]["run directory"]["found"])
    shown = taugrid("doctor", "--address", "127.0.0.1:9", "--out", tmp_path / "run")[0]
    recorded("\n".join(shown.partition("silent")[2].splitlines()[:3]))
    assert not list(tmp_path.iterdir())


def test_one_node_is_enough_for_a_run():
    def is_ready(*nodes):
        return examination.is_ready({"nodes": [{"checks": [{"state": state}]} for state in nodes]})

    assert [is_ready("error"), is_ready("ok", "error"), is_ready("error", "ok")] == [False] * 3
    assert is_ready("ok", "error", "warning")


def test_a_cluster_that_is_not_there(quick):
    with mock.patch.dict(os.environ):  # joining sets some variables of Ray's
        document = examination.examination(None, "127.0.0.1:9", None)
    assert not examination.is_ready(document)
    [found] = [each for each in document["nodes"][0]["checks"] if each["name"] == "cluster"]
    assert (found["state"], "no Ray" in found["found"]) == ("error", True)
    recorded(taugrid("doctor", "--address", "http://head", code=2)[1], "local")
    recorded(taugrid("doctor", "--address", "auto", "--out", "run", code=2)[1], "absolute")


def test_versions_and_clocks():
    assert machine.same_versions({"torch": "2.13.0+cu130"}, {"torch": "2.13.0+cpu"}).state == "ok"
    recorded(machine.same_versions({}, {"torch": "2.13.0"}).found)
    assert [clock("clock", offset, 1).state for offset in (5.9, -5.9, 6.1, -6.1)] == ["ok", "ok", "warning", "warning"]


def test_json_is_fit_for_issues():
    told = {
        "connected to head.corp:6379, and 10.0.0.7:6379": "connected to ADDRESS, and ADDRESS",
        "s3://secret/run/mine: can't list a file": ".../mine: can't list a file",
        "/data/secret/mine (new, in /data/secret): 3GB": ".../mine (new, in .../secret): 3GB",
        "~/a/b and /dev/shm; https://pytorch.org/get-started/locally": None,
        "torch 2.13.0 (cuda 13.0, cuDNN 9.10.2.21); 20MB/s": None,
    }
    for text, expected in told.items():
        assert check.anonymous(text, "head.corp:6379") == (expected or text)


def test_paths_of_others_and_users_without_a_name(monkeypatch):
    monkeypatch.setenv("HOME", "/srv/ray")
    monkeypatch.setenv("LOGNAME", "ray")
    said = "/srv/ray/x, /srv/rays, /home/eve/y, /tmp/ray: ray 2.60.0; ray start"
    recorded(check.private(said))
    monkeypatch.setenv("HOME", "/")
    assert check.private("/tmp/run") == "/tmp/run"
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # docker run -u 12345
    assert check.private("/tmp/run") == "/tmp/run"
