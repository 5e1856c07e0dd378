"""`taugrid doctor` finds what would stop a run, says what to do, never raises, and tells no secret."""

import json
import os
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import ray
import torch
from asking import answer
from nights import taugrid
from snapshots import recorded
from test_gpu import DRIVER

from taugrid.errors import CustomCodeError
from taugrid.orchestrator import doctor as checks
from taugrid.orchestrator.dispatch.capacity import Answer
from taugrid.orchestrator.doctor import Asked, run_directory, torch_check, weights_check
from taugrid.registry.extractors import INCEPTION
from taugrid.workers.accelerator.hardware import TorchFound, torch_found


@pytest.fixture
def quick(monkeypatch):
    """Torch is asked in this process, and the token of these tests does not matter."""
    monkeypatch.setattr(checks, "ask", answer)
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


def test_this_machine_is_ready_and_no_secret_is_told(quick, tmp_path, monkeypatch):
    home, had_ray = tmp_path / "home", ray.is_initialized()
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text("the-secret-token")
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "my.yaml").write_text("{name: mine, data: {name: digits}, model: {oracle: gaussian}}")
    [node] = doctor(tmp_path / "my.yaml", "--out", home / "new/run")
    found = {each["name"]: each for each in node["checks"]}
    assert list(found) == ["software", "torch", "run directory", "weights", "token"]
    assert found["run directory"]["found"] == f"{home}/new/run can be written to"
    recorded(found["weights"]["found"])
    assert (found["token"]["state"], found["token"]["fix"]) == ("warning", f"chmod 600 {home}/.ray/auth_token")
    text = json.dumps(node) + taugrid("doctor", "--out", home / "run")[0]
    assert "secret" not in text
    assert ray.is_initialized() == had_ray
    assert not list(home.glob("**/.probe*"))


def test_what_stops_a_run_is_red_and_exits_with_1(quick):
    [node] = doctor("--out", "/proc/run", code=1)
    assert error_of(node)["name"] == "run directory"
    recorded(error_of(node)["fix"])
    assert re.search(r"error +run .*\n +fix: make", taugrid("doctor", "--out", "/proc/run", code=1)[0])


def test_a_check_that_fails_says_so(monkeypatch, quick):
    monkeypatch.setattr(checks, "weights_check", mock.Mock(side_effect=ValueError("not a number")))
    [node] = doctor()
    [failed] = [each for each in node["checks"] if each["name"] == "weights"]
    assert failed["state"] == "warning"
    recorded(failed["found"], "checked")


OLD = TorchFound("2.13.0+cu130", "cuda", {"cuda": "13.0"}, [], "The NVIDIA driver is too old")


@pytest.mark.parametrize(
    ("gpus_here", "found", "expected"),
    [
        (False, TorchFound("2.13.0+cpu", "cpu"), "ok"),
        (False, OLD, "ok"),
        (True, TorchFound("2.13.0+cpu", "cpu"), "warning"),
        (True, OLD, "error"),
        (True, TorchFound("2.13", "cuda", {}, ["NVIDIA H100"]), "ok"),
    ],
)
def test_torch_beside_the_driver(gpus_here, found, expected):
    check = torch_check(gpus_here, found)
    assert check.state == expected
    recorded(check.found)
    assert bool(check.fix) == (check.state != "ok")


def test_torch_that_cannot_be_imported(monkeypatch):
    def broken(*_):
        raise CustomCodeError("torch can't be used: ImportError: libcudart.so")

    monkeypatch.setattr(checks, "ask", broken)
    found = torch_check(False)
    assert (found.state, "libcudart" in found.found) == ("error", True)


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


def test_a_bucket_with_all_rights(bucket_place):
    assert run_directory(bucket_place).state == "ok"
    assert not bucket_place.storage.walk(bucket_place.root), "no probe is left"


@pytest.fixture
def bucket_place(bucket):
    return Asked(*bucket, INCEPTION, None)


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
        found = run_directory(bucket_place)
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
    found = checks.token()
    assert (found.state, "secret" in str(found)) == (state, False)
    recorded(found.found)


def test_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = weights_check(INCEPTION, None)
    assert (found.state, "https://" in found.fix) == ("warning", True)
    assert weights_check(INCEPTION, str(tmp_path / "none.pth")).state == "error"
    (tmp_path / "own.pth").touch()
    assert weights_check(INCEPTION, str(tmp_path / "own.pth")).state == "ok"
    assert weights_check("mine:Extractor", None).state == "ok"


def test_nodes_that_differ(quick, monkeypatch, tmp_path):

    @contextmanager
    def connected(*_):
        yield

    def ask_nodes(examine, asked, seconds):
        assert asked.probe.exists()
        drivers = asked.versions
        yield Answer("fine", examine(replace(asked, versions=drivers | {"ray": drivers["ray"] + "+x"})))
        yield Answer("other", examine(replace(asked, versions=drivers | {"torch": "1.0.0"})))
        yield Answer("silent", error="no answer within 30 s")
        yield Answer("unmounted", examine(replace(asked, probe=Path("/nowhere/.probe.tmp"))))

    monkeypatch.setattr(checks.cluster, "connected", connected)
    monkeypatch.setattr(checks, "ask_nodes", ask_nodes)
    driver, *nodes = doctor("--address", "127.0.0.1:9", "--out", tmp_path / "run")
    assert ("cluster", "ok") in [(each["name"], each["state"]) for each in driver["checks"]]
    found = {node["node"]: {each["name"]: each for each in node["checks"] if each["state"] != "ok"} for node in nodes}
    found = {node: {name: each for name, each in bad.items() if name != "weights"} for node, bad in found.items()}
    assert {node: list(bad) for node, bad in found.items()} == {
        "fine": [], "other": ["versions"], "silent": ["node"], "unmounted": ["run directory"]
    }  # fmt: skip
    assert found["other"]["versions"]["found"].endswith(", not 1.0.0 as the driver has")
    recorded(found["unmounted"]["run directory"]["found"])
    shown = taugrid("doctor", "--address", "127.0.0.1:9", "--out", tmp_path / "run")[0]
    recorded("\n".join(shown.partition("silent")[2].splitlines()[:3]))
    assert not list(tmp_path.iterdir())


def test_one_node_is_enough_for_a_run():
    def is_ready(*nodes):
        return checks.is_ready({"nodes": [{"checks": [{"state": state}]} for state in nodes]})

    assert [is_ready("error"), is_ready("ok", "error"), is_ready("error", "ok")] == [False] * 3
    assert is_ready("ok", "error", "warning")


def test_a_cluster_that_is_not_there(quick):
    with mock.patch.dict(os.environ):  # joining sets some variables of Ray's
        document = checks.examination(None, "127.0.0.1:9", None)
    assert not checks.is_ready(document)
    [found] = [each for each in document["nodes"][0]["checks"] if each["name"] == "cluster"]
    assert (found["state"], "no Ray" in found["found"]) == ("error", True)
    recorded(taugrid("doctor", "--address", "http://head", code=2)[1], "local")
    recorded(taugrid("doctor", "--address", "auto", "--out", "run", code=2)[1], "absolute")


def test_versions():
    assert checks.same_versions({"torch": "2.13.0+cu130"}, {"torch": "2.13.0+cpu"}).state == "ok"
    recorded(checks.same_versions({}, {"torch": "2.13.0"}).found)
