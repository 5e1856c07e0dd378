"""CUDA graphs, on a tape that does what a graph does: the same operations on the same memory, with the same numbers."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from in_process import drive, small_run
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from taugrid import config
from taugrid.jobs import CustomNetwork, OracleNetwork
from taugrid.storage import LOCAL
from taugrid.workers import interpolate, reconstruct, schedules
from taugrid.workers.accelerator import graphs
from taugrid.workers.accelerator.arithmetic import PLAIN, Arithmetic, computed
from taugrid.workers.accelerator.graphs import CaptureFailed, InGraphs, Recording
from taugrid.workers.device import Device
from taugrid.workers.diffusion.noise import normal
from taugrid.workers.diffusion.process import network_index
from taugrid.workers.network.custom import for_inference
from taugrid.workers.network.unet import UNet2DModel
from taugrid.workers.samplers import ddim

pytestmark = pytest.mark.usefixtures("one_thread")

B = 4


class Tape(TorchDispatchMode):
    """Records operations; a replay repeats them and puts each result where it was."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    @torch.inference_mode()
    def replay(self):
        for function, args, kwargs, result in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)


def on_tape(call):
    tape = Tape()
    with tape:
        output = call()
    return Recording(output, tape.replay)


class Counted:
    """A network that counts its calls in Python, which a replay makes none of."""

    def __init__(self, network):
        self.network, self.calls = network, 0

    def __call__(self, x, t):
        self.calls += 1
        return self.network(x, t)


def unet():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.unet = unet()

    def forward(self, x, t):
        return self.unet(x, t, return_dict=False)[0]


def loaded(made, how=PLAIN):
    """As a worker loads and computes it."""
    batched = for_inference(made, "mine:made", "cpu")
    return computed(lambda x, t: batched(x, network_index(t, x)), how, "cpu")


def noise(count=B, seed=0):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_replays_give_the_networks_bits_for_every_x_and_t(precision, surroundings):
    network = Counted(loaded(Net(), Arithmetic(precision)))
    remarks = []
    in_graphs = InGraphs(network, B, remarks.append, on_tape)
    with surroundings():
        times = [1000, 500, 1, 777]
        outputs = [in_graphs(noise(seed=t), t) for t in times]
        assert network.calls == 2, "once as it is and once on the tape"
        for t, output in zip(times, outputs, strict=True):
            assert torch.equal(output, network.network(noise(seed=t), t)), "no later replay has overwritten it"
    assert remarks == []
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == len(times)


def test_encoding_and_decoding_replay_one_recording_with_the_networks_bits():
    network = Counted(loaded(Net()))
    in_graphs = InGraphs(network, B, pytest.fail, on_tape)
    diffusion, times = config.DIFFUSION_DEFAULTS, (250, 500, 1000)

    def there_and_back(model):
        x_T = ddim.encode(model, noise(), schedules.alpha_bar(diffusion), times, diffusion.predicts)
        return x_T, ddim.decode(model, x_T, schedules.alpha_bar(diffusion), times, diffusion.predicts)

    replayed = there_and_back(in_graphs)
    assert network.calls == 2, "once as it is and once on the tape"
    for one, other in zip(replayed, there_and_back(network), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("run", [reconstruct.run, interpolate.run])
def test_reconstructions_and_interpolations_ask_for_graphs_of_their_batches(run):
    class Asked(Exception):
        pass

    class Spy(Device):
        def network(self, spec, diffusion, how=PLAIN):
            raise Asked(how)

    with pytest.raises(Asked) as caught:
        run(SimpleNamespace(network=None, diffusion=None, batch_size=7), Spy("cpu", graphs=True))
    assert caught.value.args == (PLAIN._replace(batch_size=7),)


def test_noise_with_its_time_on_the_device_is_recorded_once_for_all_times():
    indices, time = torch.tensor([0, 5, 2**33]), torch.zeros(1, dtype=torch.int64)
    recording = on_tape(lambda: normal(7, indices, time, (1, 3, 5)))
    for t in (0, 1, 999, 2**32 - 1):
        time.fill_(t)
        recording.replay()
        assert torch.equal(recording.output, normal(7, indices, t, (1, 3, 5)))


def test_a_smaller_batch_is_computed_as_without_graphs():
    network = Counted(loaded(Net()))
    in_graphs = InGraphs(network, B, pytest.fail, on_tape)
    in_graphs(noise(), 9)
    before = network.calls
    assert torch.equal(in_graphs(noise(3), 5), network.network(noise(3), 5))
    assert network.calls == before + 1


def test_another_layout_of_x_is_another_recording():
    """A network that does not choose its layout itself may take another kernel for it."""
    seen = []
    in_graphs = InGraphs(lambda x, t: seen.append(x.stride()) or x + 1, 2, pytest.fail, on_tape)
    rows = torch.zeros(2, 3, 4, 4)
    columns = rows.contiguous(memory_format=torch.channels_last)
    for x in (rows, columns, rows, columns):
        in_graphs(x, 3)
    assert seen == [rows.stride()] * 2 + [columns.stride()] * 2


def by_number(x, t):
    """Reads the time on the host: what is recorded is the number of that call."""
    return x * float(network_index(t, x)[0])


def test_a_network_that_a_graph_can_not_hold_is_computed_as_it_is_and_says_so_once():
    remarks = []
    in_graphs = InGraphs(by_number, B, remarks.append, on_tape)
    for t in (10, 20, 30):
        assert torch.equal(in_graphs(noise(), t), noise() * (t - 1))
    [remark] = remarks
    assert "without CUDA graphs" in remark
    assert "other bits" in remark


def test_a_recording_that_fails_costs_nothing_but_a_line():
    def fails(call):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")

    remarks = []
    in_graphs = InGraphs(by_number, B, remarks.append, fails)
    for t in (10, 20):
        assert torch.equal(in_graphs(noise(), t), noise() * (t - 1))
    assert len(remarks) == 1
    assert "\n" not in remarks[0]


def test_nan_is_no_reason_to_do_without_graphs():
    """What watches the network reports it."""
    in_graphs = InGraphs(lambda x, t: x / x, 2, pytest.fail, on_tape)
    for _ in range(2):
        assert in_graphs(torch.tensor([0.0, 1.0]), 3).isnan().tolist() == [True, False]


class Cuda:
    """The calls that `recorded` makes of torch, with a capture that fails where the network is in `breaks`."""

    def __init__(self, monkeypatch, breaks=()):
        self.stream, self.mode, self.breaks, self.seen = "main", 0, breaks, []
        for name in ("current_stream", "stream", "get_sync_debug_mode", "set_sync_debug_mode", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, f"_{name}"))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
        monkeypatch.setattr(graphs, "_side_stream", lambda: self._named("side"))

    def _named(self, name):
        return SimpleNamespace(name=name, wait_stream=lambda other: self.seen.append(f"{name} waits for {other.name}"))

    def _current_stream(self):
        return self._named(self.stream)

    @contextmanager
    def _stream(self, stream):
        before, self.stream = self.stream, stream.name
        try:
            yield
        finally:
            self.stream = before

    def _get_sync_debug_mode(self):
        return self.mode

    def _set_sync_debug_mode(self, mode):
        self.mode = mode

    @contextmanager
    def _graph(self, graph, stream, capture_error_mode):
        self.stream = "of the capture"  # as torch's, it stays where the capture fails
        yield
        self.stream = stream.name

    def call(self):
        self.seen.append((self.stream, self.mode))
        if self.stream in self.breaks:
            raise RuntimeError("called a synchronizing operation")
        return torch.ones(1)


FIRST, CAPTURE = ("side", "error"), ("of the capture", 0)


@pytest.mark.parametrize(
    ("breaks", "error", "calls"),
    [
        ((), None, [FIRST, CAPTURE]),
        (("side",), RuntimeError, [FIRST]),
        (("of the capture",), CaptureFailed, [FIRST, CAPTURE]),
    ],
    ids=["nothing", "the first call", "the capture"],
)
def test_what_a_recording_changes_in_torch_it_changes_back_whatever_breaks(monkeypatch, breaks, error, calls):
    cuda = Cuda(monkeypatch, breaks)
    with pytest.raises(error) if error else nullcontext():
        graphs.recorded(cuda.call)
    assert (cuda.stream, cuda.mode) == ("main", 0)
    assert cuda.seen == ["side waits for main", calls[0], "main waits for side", *calls[1:]]


# On a device

SPEC = CustomNetwork("mine:made", None, "0", "0", "0", (1, 8, 8), "a network")
ORACLE = OracleNetwork(config.Data(name="gaussian", shape=(1, 4, 4)))
FULL = Arithmetic(batch_size=B)


def network_of(device, how=FULL, spec=SPEC):
    return device.network(spec, config.DIFFUSION_DEFAULTS, how)


@pytest.fixture
def loads(monkeypatch):
    monkeypatch.setattr("taugrid.workers.network.load.load_network", lambda *arguments: loaded(Net()))


def test_graphs_are_kept_with_their_network_for_the_next_job(loads):
    device = Device("cpu", graphs=True)
    first = network_of(device)
    assert isinstance(first, InGraphs)
    assert network_of(device) is first
    assert network_of(device, FULL._replace(precision="bf16")) is not first
    assert network_of(device) is first
    device.make_room()
    assert not isinstance(network_of(device), InGraphs), "memory is short here"


@pytest.mark.parametrize(("error", "goes_on"), [(CaptureFailed, False), (RuntimeError, True)])
def test_a_capture_that_fails_is_the_last_of_its_process(loads, monkeypatch, error, goes_on):
    tried = []

    def recorded(call):
        tried.append(call)
        raise error("reason")

    monkeypatch.setattr(graphs, "recorded", recorded)
    device = Device("cpu", graphs=True)
    first, earlier = network_of(device), network_of(device, FULL._replace(precision="bf16"))
    first(noise(), 9)
    assert "reason" in device.remarks[0]
    assert isinstance(network_of(device, spec=replace(SPEC, callable="other:made")), InGraphs) == goes_on
    earlier(noise(), 9)
    assert len(tried) == 1 + goes_on


@pytest.mark.parametrize(
    ("graphs", "how", "spec"),
    [
        (True, Arithmetic(), SPEC),
        (True, FULL._replace(compile="default"), SPEC),
        (True, FULL, ORACLE),
        (False, FULL, SPEC),
    ],
    ids=["of no fixed batch", "compiled", "an oracle", "off"],
)
def test_what_is_not_recorded(loads, graphs, how, spec):
    assert not isinstance(network_of(Device("cpu", graphs=graphs), how, spec), InGraphs)


def test_what_workers_remark_is_said_once(monkeypatch, tmp_path):
    begin = Device.begin

    def remarking(self):
        self.remarks.append("a remark")
        begin(self)

    monkeypatch.setattr(Device, "begin", remarking)
    with small_run(tmp_path) as opened:
        outcome, printed = drive(opened, tmp_path / "run", LOCAL)
    assert outcome.missing == {}
    assert printed.count("a remark") == 1
