"""`python -m benchmarks.device`: each part, in its short form on this CPU and with a GPU's calls faked.

The faults of the benchmark before (and defect 13): it compiled 36 times, timed the
building of a network as training, compared eta = 1 with eta = 0, took cuDNN's words for lack of memory for a failure,
needed nvidia-smi, and hid what a child process said. Each has a test here, which names the patch that brings it back.
"""

import json
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMPipeline

from benchmarks.device import __main__ as benchmark
from benchmarks.device import exactness, memory, setting, speed
from benchmarks.device.setting import ETA, Setting, in_a_process
from taugrid.workers.accelerator import arithmetic

pytestmark = pytest.mark.usefixtures("one_thread")

COMPILING = ["compiled", "compiled-diffusers", "graphs"]
EAGER = [part for part in benchmark.PARTS if part not in COMPILING]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(Setting, "batch", 2)
    timed = Setting.seconds
    monkeypatch.setattr(Setting, "seconds", lambda here, function, rounds=3, most=4.0: timed(here, function, 1, most))
    monkeypatch.setattr(exactness, "in_a_process", lambda code: "a b c d")


class Event:
    """A CUDA event of a device that is done when a call returns."""

    def __init__(self, enable_timing=False):
        self.at = None

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return 1000 * (end.at - self.at)


@pytest.fixture
def faked(monkeypatch):
    """A setting whose GPU is this CPU."""
    fakes = {
        "synchronize": None, "Event": Event, "current_stream": SimpleNamespace(query=lambda: False),
        "get_device_name": "NVIDIA H100", "get_device_capability": (9, 0), "mem_get_info": (1, 2),
        "memory_allocated": 0, "memory_reserved": 0, "max_memory_allocated": 10**9, "max_memory_reserved": 2 * 10**9,
        "reset_peak_memory_stats": None,
        "set_per_process_memory_fraction": None, "get_device_properties": SimpleNamespace(total_memory=2**36),
    }  # fmt: skip
    for name, value in fakes.items():
        monkeypatch.setattr(
            torch.cuda, name, value if isinstance(value, type) else lambda *given, value=value, **options: value
        )
    monkeypatch.setattr(arithmetic, "kind_of", lambda device: "cuda")
    monkeypatch.setattr(memory, "in_a_process", lambda code: "1.0")
    gpu = Setting("cpu", short=True)
    gpu.kind = "cuda"
    yield gpu
    arithmetic.configure()


def lines_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


@pytest.mark.long
@pytest.mark.parametrize("part", [part for part in benchmark.PARTS if part not in ("features", "idle")])
def test_a_part_runs_in_its_short_form(part, capsys):
    """`features` needs 10 s for Inception, and `idle` 5; `--short` runs them, too, and the next test has `idle`."""
    assert benchmark.main(["--short", "--device", "cpu", part]) == 0
    [found] = lines_of(capsys)
    assert "failed" not in found
    assert "stopped" not in found
    assert found["figures"] or found["skipped"]


@pytest.mark.long
@pytest.mark.parametrize("part", [part for part in EAGER if part != "features"])
def test_a_part_runs_on_a_gpu_and_compiles_nothing(faked, part, monkeypatch, capsys):
    """The patch: a part before the last three calls `by_torch` or `torch.compile`."""
    monkeypatch.setattr(torch, "compile", lambda *given, **options: pytest.fail("compiled"))
    found = benchmark.measure(part, faked)
    printed = capsys.readouterr()
    assert {"failed", "stopped", "skipped"} & found.keys() == set(), printed.err
    first, *_ = printed.out.splitlines()
    assert first.split(": ")[1] in next(iter(found["figures"])), "printed at once"
    assert ("at most" in printed.out) is (part == "idle")
    assert list(benchmark.PARTS)[-3:] == COMPILING, "what may take longest comes last"


@pytest.mark.long
def test_a_shard_is_sampled_again_once_graphs_were_released(faked, monkeypatch):
    """The patch: `graphs` leaves out `release_graphs`."""
    order, network = [], faked.network
    monkeypatch.setattr(Setting, "require_compiler", lambda self: None)
    monkeypatch.setattr(faked, "network", lambda precision, compile: order.append(compile) or network(precision))
    monkeypatch.setattr(faked.worker, "release_graphs", lambda: order.append("released"))
    whole = speed.sample_shard
    monkeypatch.setattr(speed, "sample_shard", lambda *given: order.append("shard") or whole(*given))
    found = benchmark.measure("graphs", faked)
    assert order == ["reduce-overhead", "shard", "released", "shard"]
    assert found["figures"]["the same file"]


@pytest.mark.long
def test_the_preflight_is_shown_beside_what_a_call_takes(faked):
    """The patch: `memory._peak` says allocated memory alone, or `Setting.network` gives no batch."""
    figures = benchmark.measure("memory", faked)["figures"]
    for precision in faked.precisions:
        needed = figures[f"GB: needed by the preflight, {precision}"]
        assert needed > figures[f"GB: peak of a call, {precision}, counted"]
        assert figures[f"GB: reserved for it, {precision}"] == 2.0
        assert f"GB: free before, {precision}" in figures


@pytest.mark.long
def test_training_does_not_time_the_building_of_its_network(monkeypatch):
    """The patch: the clock of `speed._trained` starts before `new_state`, and not after the first step."""
    whole, hours = speed.new_state, 0.0

    def slowly(*given):
        nonlocal hours
        hours += 3600.0
        return whole(*given)

    began = time.perf_counter
    monkeypatch.setattr(speed, "new_state", slowly)
    monkeypatch.setattr(time, "perf_counter", lambda: began() + hours)
    _, seconds = speed._trained(Setting("cpu", short=True), "float32", 2, 2)
    assert seconds < 1800.0


@pytest.mark.long
def test_diffusers_samples_at_taugrids_eta(monkeypatch):
    """The patch: `_pipeline` leaves out `eta`, which is 0 there by default."""
    whole, etas = DDIMPipeline.__call__, set()

    def watched(self, *given, eta=0.0, **options):
        etas.add(eta)
        return whole(self, *given, eta=eta, **options)

    monkeypatch.setattr(DDIMPipeline, "__call__", watched)
    here = Setting("cpu", short=True)
    speed.side_by_side(here)
    assert etas == {ETA} == {here.job(2).settings.eta}


@pytest.mark.long
@pytest.mark.parametrize("text", ["CUDA out of memory.", "Unable to find an engine to execute this computation"])
def test_every_way_to_say_no_memory_is_a_figure(faked, text, monkeypatch):
    """The patch: `memory._used_up` takes `torch.OutOfMemoryError` alone for lack of memory."""

    def network(x, at, condition=None):
        if len(x) > 4:
            raise RuntimeError(text)
        return x

    monkeypatch.setattr(faked, "network", lambda precision, fills_up=True: network)
    found = benchmark.measure("memory", faked)
    assert "failed" not in found
    assert found["figures"]["batch 8 in 2 GiB"] == f"RuntimeError: {text}"
    assert found["figures"]["batch that taugrid names"] == 4


@pytest.mark.long
@pytest.mark.parametrize("hip", [None, "7.0.51831"])
def test_no_program_of_a_vendor_is_needed(faked, hip, monkeypatch):
    """Defect 13. The patch: `card` asks nvidia-smi for the driver's version."""
    monkeypatch.setattr(torch.version, "hip", hip)
    faked.kind = "cuda" if hip is None else "rocm"
    monkeypatch.setattr(subprocess, "run", lambda *given, **options: pytest.fail(f"{given}"))
    assert "failed" not in benchmark.measure("card", faked)


@pytest.mark.long
def test_what_a_child_process_says_is_shown():
    """The patch: `in_a_process` leaves out `stderr`."""
    with pytest.raises(RuntimeError) as caught:
        in_a_process("raise ValueError('planted')")
    assert "ended with 1" in str(caught.value)
    assert "ValueError: planted" in str(caught.value)


@pytest.mark.long
def test_a_part_that_fails_says_how_and_the_rest_goes_on(monkeypatch, capsys):
    def fails(here):
        here.say("figure", 1)
        raise ValueError("planted")

    monkeypatch.setattr(benchmark, "PARTS", {"a": fails, "b": lambda here: here.say("figure", 2)})
    assert benchmark.main(["--device", "cpu"]) == 1
    first, second = lines_of(capsys)
    assert (first["failed"], first["figures"]) == ("ValueError: planted", {"figure": 1})
    assert second["figures"] == {"figure": 2}


@pytest.mark.long
def test_a_part_is_stopped_in_time_and_keeps_what_it_has(monkeypatch):
    def slow(here):
        here.say("figure", 1)
        try:
            time.sleep(30)
        except Exception:  # as libraries wrap errors in their own
            pytest.fail("caught")

    monkeypatch.setattr(benchmark, "PARTS", {"slow": slow})
    found = benchmark.measure("slow", Setting("cpu", short=True), seconds=0.1)
    assert (found["stopped"], found["figures"]) == ("after 0.1 s", {"figure": 1})
    assert found["seconds"] < 5


@pytest.mark.long
def test_parts_may_begin_later(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "PARTS", {name: lambda here: None for name in "abc"})
    assert benchmark.main(["--device", "cpu", "--from", "b"]) == 0
    assert [line["part"] for line in lines_of(capsys)] == ["b", "c"]


@pytest.mark.long
def test_a_part_runs_once(monkeypatch, capsys):
    """Patch: `given.parts` without `dict.fromkeys`."""
    monkeypatch.setattr(benchmark, "PARTS", {name: lambda here: None for name in "abc"})
    assert benchmark.main(["--device", "cpu", "b", "a", "b"]) == 0
    assert [line["part"] for line in lines_of(capsys)] == ["b", "a"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--device", "cuda"], "--device cuda:"), (["--device", "cpu", "--from", "memory", "card"], "--from")],
)
def test_what_can_not_be_measured_is_refused(arguments, said, monkeypatch, capsys):
    """Patch: no check, so that each part fails with the same traceback, or `--from` is ignored."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        benchmark.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.long
def test_the_long_form_measures_the_network_of_table_1():
    here = Setting("cpu", short=False)
    assert sum(p.numel() for p in here.unet().parameters()) == pytest.approx(35.75e6, rel=1e-3)
    assert here.shape == (3, 32, 32)
    assert setting.STEPS == 10
