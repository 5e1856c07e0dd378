"""What is recorded of the GPU that a worker computes with (defect 19)."""

import json

import pytest
import torch
from in_process import CONFIG, drive, small_run
from snapshots import recorded

from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import read_events
from taugrid.storage import LocalStorage
from taugrid.workers import actor
from taugrid.workers.accelerator.hardware import libraries, processor

ACCELERATOR = {"kind": "cuda", "cuda": "13.0", "cudnn": "91002", "driver": "580.65.06"}


def versions(monkeypatch, cuda=None, hip=None, cudnn=None):
    for name, value in (("cuda", cuda), ("hip", hip)):
        monkeypatch.setattr(torch.version, name, value)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)


def test_libraries_are_those_that_torch_loaded_by_the_names_of_their_makers(monkeypatch, tmp_path):
    for module, version in (("nvidia", "580.65.06"), ("amdgpu", "6.12.12")):
        (tmp_path / module).mkdir()
        (tmp_path / module / "version").write_text(f"{version}\n")
    versions(monkeypatch, cuda="13.0", cudnn=91002)
    assert {"kind": "cuda", **libraries("cuda", tmp_path)} == ACCELERATOR
    versions(monkeypatch, hip="7.0.51831", cudnn=3005000)
    assert libraries("rocm", tmp_path) == {"hip": "7.0.51831", "miopen": "3005000", "driver": "6.12.12"}


def test_what_is_unknown_is_left_out(monkeypatch, tmp_path):
    def refuses():
        raise RuntimeError("cuDNN version incompatibility: PyTorch was compiled  against (9, 10, 2)")

    versions(monkeypatch, cuda="13.0")
    assert libraries("cuda", tmp_path) == {"cuda": "13.0"}
    monkeypatch.setattr(torch.backends.cudnn, "version", refuses)
    assert libraries("cuda", tmp_path) == {"cuda": "13.0"}
    assert libraries("cpu") == libraries("mps") == {}


def test_a_cpus_model_is_what_linux_calls_it(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9654 96-Core Processor\n")
    recorded(processor(tmp_path / "cpuinfo"))


@pytest.mark.usefixtures("one_thread", "sketched")
@pytest.mark.parametrize("accelerator", [None, ACCELERATOR])
def test_events_and_provenance_name_them(tmp_path, monkeypatch, accelerator):
    """The patch: `Worker.check_health` leaves `accelerator` out (defect 19)."""
    if accelerator:
        monkeypatch.setattr("taugrid.workers.device.kind_of", lambda device: "cuda")
        monkeypatch.setattr(actor, "libraries", lambda kind: {k: v for k, v in accelerator.items() if k != "kind"})
    root = tmp_path / "run"
    with small_run(tmp_path, CONFIG) as opened:
        drive(opened, root, LocalStorage(root), ("sample", "evaluate", "report"))
    [worker] = [event for event in read_events(RunDir(root)) if event["event"] == "worker"]
    [machine] = json.loads((root / "provenance.json").read_text())["machines"]
    assert worker.get("accelerator") == machine.get("accelerator") == accelerator
    assert ("driver 580.65.06" in (root / "report.html").read_text()) is bool(accelerator)
    assert [*machine] == ["node", "device", *(["accelerator"] if accelerator else [])]
