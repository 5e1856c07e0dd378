"""Networks that torch compiles: once for an architecture, for full batches only."""

import threading
import time
from dataclasses import replace
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
import torch
from cards import STICKY, AcceleratorError
from denoisers import at, of_time
from snapshots import raises
from tiny import job_of
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.exc import InductorError

from taugrid.errors import WorkerRefusal, accelerator_error_in
from taugrid.workers import sample
from taugrid.workers.accelerator import compiled
from taugrid.workers.accelerator.arithmetic import adapted
from taugrid.workers.accelerator.policy import Arithmetic, policy
from taugrid.workers.device import Device
from taugrid.workers.heartbeat import ComputeLock
from taugrid.workers.network.custom import for_inference

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]

FULL = Arithmetic("float32", "default", 4)
BATCH = torch.zeros(4, 1, 3, 3)


class Small(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(9, 9)

    def forward(self, x, t):
        return nn.functional.silu(self.layer(x.flatten(1)) + t[:, None]).view_as(x)


def denoiser(seed, how):
    batched = for_inference(Small(seed), "mine:small", "cpu", policy("cpu", how.precision, how.compile))
    return adapted(of_time(lambda x, t: batched(x, torch.full((len(x),), t))), how, "cpu")


def test_one_compilation_serves_all_weights_of_an_architecture_and_smaller_batches():
    torch.compiler.reset()
    x = torch.randn(4, 1, 3, 3)
    counters.clear()
    for seed in (0, 1):
        network, plain = denoiser(seed, FULL), denoiser(seed, Arithmetic())
        for t in (1, 999):
            whole = network(x, at(t))
            torch.testing.assert_close(whole, plain(x, at(t)), rtol=1e-5, atol=1e-6)
            assert torch.equal(network(x[:3], at(t)), whole[:3]), "the last batch is computed as the others are"
    assert counters["stats"]["unique_graphs"] == 1


def test_half_precision_is_another_compilation_that_returns_float32():
    output = denoiser(0, FULL._replace(precision="bf16"))(torch.randn(4, 1, 3, 3), at(5))
    assert output.dtype == torch.float32
    assert torch.equal(output.bfloat16().float(), output), "it was computed in bf16"


def test_a_node_without_a_compiler_is_refused_in_one_line():
    torch.compiler.reset()
    no_compiler = {"force_disable_caches": True, "cpp.cxx": ("/nowhere/c++",)}
    with inductor.patch(no_compiler), pytest.raises(WorkerRefusal, match="nowhere") as caught:
        denoiser(0, FULL)(torch.randn(4, 1, 3, 3), at(5))
    assert "\n" not in str(caught.value)


class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(9, width), nn.Linear(width, 9))

    def forward(self, x, t):
        return self.layers(x.flatten(1)).view_as(x)


def outputs_of(widths):
    """Of networks with one code and weights of other shapes, compiled as far as torch's limit on this matters."""
    torch.compiler.reset()
    counters.clear()
    for width in widths:
        network = torch.compile(Wide(width).eval(), dynamic=False, backend="eager")
        with torch.inference_mode():
            yield compiled.guarded(of_time(network))(BATCH, at(5))


def test_a_worker_compiles_more_than_eight_architectures():
    """After eight, torch would compute the others as if they were not compiled, and say so in a log."""
    assert len(list(outputs_of(range(1, 13)))) == counters["stats"]["unique_graphs"] == 12
    assert torch._dynamo.config.recompile_limit == 8, "a caller's own networks keep their limit"


def test_what_is_compiled_anew_again_and_again_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(compiled, "MAX_COMPILATIONS", 2)
    outputs = outputs_of(range(1, 4))
    next(outputs)
    next(outputs)
    with raises(WorkerRefusal):
        next(outputs)


@pytest.mark.parametrize("is_cudas", [True, False])
def test_a_card_that_breaks_while_torch_compiles_is_not_the_compilers_fault(is_cudas):
    """It would be refused with "set compile: none", and not be replaced. Patch: `guarded` without `_is_cudas`."""
    inner = AcceleratorError(STICKY) if is_cudas else RuntimeError("Triton Error [CUDA]: invalid argument")

    def network(x, at, condition=None):
        try:
            raise inner
        except RuntimeError as error:
            raise InductorError(error, None) from None

    with pytest.raises(InductorError if is_cudas else WorkerRefusal) as caught:
        compiled.guarded(network)(torch.zeros(2, 3), at(5))
    if is_cudas:
        assert accelerator_error_in(caught.value) is not None, "its worker is replaced"


def test_what_the_compiler_is_asked_for_is_known_to_it(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic, options: asked.append(options))
    for device in ("cpu", "cuda"):
        compiled.by_torch(None, policy(device, compile="default").layout)
    cpu, strict = asked
    assert strict == cpu | {"layout_optimization": False}, "else it chooses channels_last for float32"


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Has devices compile a network, which is the function it gets, and returns a call of it, by a device."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "BEAT_SECONDS", 0.01)

    def made(network):
        monkeypatch.setattr(
            "taugrid.workers.device.load_network", lambda *args: lambda x, at, condition=None: network(x)
        )
        return lambda device: device.network(None, None, FULL)(BATCH, at(5))

    return made


@pytest.fixture
def entered(call, monkeypatch):
    """What was compiled, by its first calls."""
    once, entered = compiled.once_on_a_node, []
    monkeypatch.setattr(compiled, "once_on_a_node", lambda *args: entered.append(args) or once(*args))
    return entered


def test_a_worker_says_that_it_compiles(call):
    """Defect 17: a first call of minutes sent nothing. Patch: no `first_call` in `Device.network`. A call is slow."""
    said, beats = set(), threading.Semaphore(0)

    def slow(x):
        assert all(beats.acquire(timeout=60) for _ in range(3))
        return x

    device, compute = Device("cpu", lambda *progress: said.add(progress) or beats.release()), call(slow)
    compute(device)
    assert said == {(0.0, 0.0, "compiling")}


def test_only_a_first_call_that_did_not_fail_compiled(call, entered):
    """Patch: `_first_call` notes its call before it returns."""
    device, faults = Device("cpu"), [ValueError()]

    def fails_once(x):
        if faults:
            raise faults.pop()
        return x

    compute = call(fails_once)
    with pytest.raises(ValueError):
        compute(device)
    network = device.network(None, None, FULL)
    for _ in range(2):
        network(BATCH, at(5))
        compute(device)  # as the next job does
    assert len(entered) == 2
    device.clear_caches()
    compute(device)
    assert len(entered) == 3, "it was loaded anew"


@pytest.mark.parametrize("next_compiles", [None, 0.0, 50.0])
def test_compiling_is_no_time_of_sampling(call, monkeypatch, tmp_path, next_compiles):
    """`plan` expected 15 minutes of one worker that had compiled for 100 s. The next job, which may begin while this
    one still writes, has its own time of compiling. Patch: `sample_shard` subtracts nothing."""
    clock, calls = [0.0], []

    class Queue(ComputeLock):
        def release(self):
            super().release()
            if next_compiles is not None:
                device.start_job()
                device.compile_seconds += next_compiles

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def slow_at_first(x):
        calls.append(x)
        clock[0] += 2.0 if len(calls) > 1 else 3600.0
        return x

    call(slow_at_first)
    job = job_of(str(tmp_path / "part-00000.parquet"), (1, 4, 4), 4, 8)
    job = replace(job, settings=job.settings.model_copy(update={"compile": "default"}))
    device = Device("cpu", compute_lock=Queue())
    device.start_job()
    assert sample.run(job, device).seconds == pytest.approx(2.0 * len(calls))
    assert device.compile_seconds == (3600.0 if next_compiles is None else next_compiles)
    device.start_job()
    assert device.compile_seconds == 0


@pytest.mark.usefixtures("call")
def test_a_compiler_that_hangs_falls_silent(monkeypatch):
    clock, said = [100.0], SimpleQueue()
    monkeypatch.setattr(compiled, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with compiled.beating(lambda: said.put(threading.current_thread())):
        thread = said.get(timeout=60)
        clock[0] += compiled.COMPILE_SECONDS
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.mark.usefixtures("call")
def test_one_worker_of_a_node_compiles_and_the_others_wait(monkeypatch):
    """Defect 17: eight workers compiled the same at once. Patch: `once_on_a_node` without its lock."""
    running, together, order = set(), [], []
    first, gate, asked, locked = threading.Event(), threading.Event(), threading.Semaphore(0), compiled.locked
    monkeypatch.setattr(compiled, "locked", lambda path: asked.release() or locked(path))

    def worker(name):
        with compiled.once_on_a_node("a network", lambda: None):
            running.add(name)
            order.append(name)
            if len(order) == 1:
                first.set()
                gate.wait(60)
            else:
                everybody.wait(60)  # these two read the cache at the same time
            together.append(len(running))
            running.discard(name)

    everybody = threading.Barrier(2)
    workers = [threading.Thread(target=worker, args=(name,)) for name in range(3)]
    for each in workers:
        each.start()
    assert first.wait(60)
    assert all(asked.acquire(timeout=60) for _ in workers), "each has asked for the lock"
    assert len(order) == 1
    gate.set()
    for each in workers:
        each.join()
    assert together[0] == 1
    assert len(order) == 3
    assert not everybody.broken
