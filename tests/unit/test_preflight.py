"""Memory is compared before the first batch, and a card's faults meet the code that workers run."""

from dataclasses import replace

import pytest
import torch
from cards import STICKY, Card
from snapshots import raises
from tiny import UNET
from torch import nn

import taugrid
from taugrid import config
from taugrid.errors import BrokenAccelerator, DoesNotFit, NotEnoughMemory, UserError
from taugrid.eval.extract import InBatches
from taugrid.eval.features.load import Extraction
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.workers.accelerator import preflight
from taugrid.workers.accelerator.arithmetic import PLAIN, Arithmetic
from taugrid.workers.accelerator.counting import count, without_data
from taugrid.workers.accelerator.memory import FIRST
from taugrid.workers.accelerator.policy import policy
from taugrid.workers.actor import Worker, run_in_memory
from taugrid.workers.device import Device
from taugrid.workers.diffusion.denoiser import FromTimes
from taugrid.workers.network import load as loading
from taugrid.workers.network.custom import for_inference
from taugrid.workers.network.load import load_network
from taugrid.workers.network.unet import UNet2DModel, build_unet, ema_start, save_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, BATCH = (1, 8, 8), 16


@pytest.fixture
def job(tmp_path):
    """A job that samples 32 images in batches of 16 with a small untrained network."""
    values = {
        "name": "x",
        "model": {"unet": UNET},
        "train": {"seed": 0},
        "sample": {"steps": 2, "num_samples": 2 * BATCH, "batch_size": BATCH, "seed": 0},
    }
    loaded = config.validate(config.Config, values, "test")
    planned, rundir = plan(loaded), RunDir(tmp_path / "run")
    [model] = planned.models
    torch.manual_seed(3)
    unet = build_unet(model.source.unet, SHAPE)
    save_pipeline(rundir.models / model.id, unet, ema_start(unet), model.diffusion)
    survey = Survey(Run(loaded, planned, rundir), None, frozenset({"sample"}), pytest.fail)
    [task] = SampleWork(survey).tasks()
    return task.job


def needs(job, images, how=PLAIN):
    network = load_network(job.network, job.diffusion, "cpu", policy("cpu", how.precision))
    return preflight.needed_bytes(network, how, (images, *SHAPE), "cpu")


@pytest.fixture
def free(monkeypatch):
    """Free bytes of a simulated card: a list whose last value counts, or a function."""
    values = [10**12]
    monkeypatch.setattr(preflight, "free_bytes", lambda device: values[-1]() if callable(values[-1]) else values[-1])
    return values


@pytest.fixture
def libraries(monkeypatch):
    """So small networks that half a GB for libraries would hide what they need."""
    monkeypatch.setattr(preflight, "LIBRARIES_BYTES", 0)


def test_what_a_batch_needs_grows_with_it_and_shrinks_with_the_type(job, libraries):
    assert 1.9 < needs(job, 64) / needs(job, 32) < 2.1
    assert needs(job, 64, Arithmetic("bf16-weights")) < needs(job, 64)


def test_a_traced_peak_is_that_of_a_real_call_and_room_for_a_workspace(job):
    network, x = load_network(job.network, job.diffusion, "cpu"), torch.zeros(BATCH, *SHAPE)
    with Card() as card, torch.inference_mode():
        network(x, FIRST)
    traced = count(lambda x: network(x, FIRST), x.to("meta")).peak
    assert 1.0 < traced / (card.memory.peak + x.nbytes) < 2.0


def test_a_batch_that_does_not_fit_is_refused_before_it_is_computed(job, free, libraries):
    """Defect 3: cuDNN would take another engine and remember it.

    Put back by deleting `preflight.require` from `Device._require_room`: images are sampled.
    """
    free.append(needs(job, BATCH) - 1)
    device = Device("cpu")
    device.hardware = "NVIDIA Simulated"
    with Card() as card, raises(DoesNotFit):
        run_in_memory(job, device)
    assert card.convolutions > 0, "a batch of 8 was tried"
    assert card.memory.peak < needs(job, BATCH)


def test_what_other_networks_hold_goes_before_a_job_is_refused(job, free, libraries, monkeypatch):
    """Defect 9: beside two kept networks and their graphs a third had to fit, or one with a batch that is cut short.

    Put back by comparing before networks are loaded, once for all jobs of a worker: the second job is sampled beside
    the first one's network.
    """
    device, happened = Device("cpu"), []
    clear_networks = device.clear_networks

    def now():
        happened.append("asked")
        return needs(job, BATCH) - 1 if happened == ["asked"] * 2 else 10**12

    free.append(now)
    monkeypatch.setattr(device, "clear_networks", lambda: happened.append("cleared") or clear_networks())
    other = replace(job, diffusion=job.diffusion.model_copy(update={"timesteps": 1001}), path=job.path + ".other")
    assert run_in_memory(job, device).created_file
    assert run_in_memory(other, device).created_file
    assert happened == ["asked", "asked", "cleared", "asked"], "the second job asked again, with its own network alone"


def test_a_network_is_traced_once_and_compared_for_each_job(job, free, monkeypatch):
    """Another network may have been loaded since."""
    traced, needed_bytes = [], preflight.needed_bytes
    monkeypatch.setattr(preflight, "needed_bytes", lambda *given: traced.append(given) or needed_bytes(*given))
    device, shape = Device("cpu"), (BATCH, *SHAPE)
    for _ in range(2):
        device.network(job.network, job.diffusion, PLAIN, shape)
    assert len(traced) == 1
    free.append(0)
    with raises(NotEnoughMemory):
        device.network(job.network, job.diffusion, PLAIN, shape)
    assert len(traced) == 1


class Remembers(nn.Module):
    """A custom network that keeps what it makes at its first call, as tables of rotary embeddings are kept."""

    def __init__(self):
        super().__init__()
        self.layer, self.table, self.reads = nn.Conv2d(1, 1, 3, padding=1), None, False

    def forward(self, x, t):
        if self.table is None:
            self.table = torch.arange(8, device=x.device) / 8
        if self.reads and x.abs().max() > 1:
            x = x / 2
        return self.layer(x) * self.table


def traceable(reads):
    made = Remembers()
    made.reads = reads
    return made, FromTimes(for_inference(made, "mine:net", "cpu"), lambda: without_data(made))


def test_a_custom_module_is_traced_without_leaving_a_trace(job):
    made, network = traceable(reads=False)
    assert preflight.needed_bytes(network, PLAIN, (4, *SHAPE), "cpu") > 0
    assert made.table is None
    assert network(torch.zeros(4, *SHAPE), FIRST).shape == (4, *SHAPE)


def test_of_what_can_not_be_traced_nothing_is_claimed():
    _, network = traceable(reads=True)
    assert preflight.needed_bytes(network, PLAIN, (4, *SHAPE), "cpu") is None
    assert preflight.needed_bytes(FromTimes(lambda x, t: x), PLAIN, (4, *SHAPE), "cpu") is None
    preflight.require(None, 0, (4, *SHAPE))


def test_memory_that_torch_holds_unused_is_free_but_for_graphs(monkeypatch):
    """And only that of the device that is asked for."""
    fraction = 1.0
    segment = {"device": 1, "total_size": 100, "allocated_size": 30, "segment_pool_id": (0, 0)}
    segments = [segment, segment | {"device": 0}, segment | {"segment_pool_id": (0, 1)}]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (1000 * (index + 1), 10**6))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda index: fraction)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 10**5)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert preflight.free_bytes("cuda:1") == 2070
    assert preflight.free_bytes("cuda") == 1070
    assert preflight.free_bytes("cpu") is None
    fraction = 0.1005
    assert preflight.free_bytes("cuda") == 500 + 70, "a process may be given a part of the card"


def test_memory_that_runs_out_on_the_way_and_a_missing_engine_are_told_with_the_batch_that_fits(job):
    """A card's own faults, met by the code that workers run."""
    with Card() as all_fits:
        run_in_memory(replace(job, path=job.path + ".first"), Device("cpu"))
    for card in (Card(room=all_fits.memory.peak * 0.6), Card(engine_for=5)):
        with card, raises(DoesNotFit):
            run_in_memory(job, Device("cpu"))


def test_an_extractor_on_a_full_card_frees_what_sampling_kept_there(job, monkeypatch):
    """Defect 8, with memory counted: a network of 4 MB, and 3.7 MB for what is computed of 16 images.

    Put back by `InBatches._try` without `clear_networks`.
    """
    layer, device = nn.Conv2d(1, 64, 3).requires_grad_(False), Device("cpu")
    monkeypatch.setattr(loading, "load_network", lambda *_: torch.zeros(10**6))
    with Card(room=5e6) as card:
        device.network(job.network, job.diffusion)
        extracted = InBatches(lambda x: Extraction(layer(x).mean((2, 3)), None), 16, device)
        sizes = [len(each.features) for each in extracted(torch.zeros(48, 1, 32, 32))]
    assert sizes == [16, 16, 16]
    assert card.convolutions == 4


def test_a_sticky_error_costs_the_process_and_no_second_job_is_begun(job):
    worker = Worker(1)
    with Card(breaks_at=3) as card:
        for _ in range(2):
            with pytest.raises(BrokenAccelerator, match=STICKY):
                worker.do(job)
    assert card.convolutions == 3
    assert card.calls_when_broken == 1, "nothing is tried on a broken card, not even to free memory"


def test_sampling_in_memory_says_it_too(job, free, tmp_path):
    free.append(0)
    in_memory = UNet2DModel.from_pretrained(job.network.folder)
    for model in (job.network.folder, in_memory):
        with raises(UserError):
            taugrid.sample(model, 2, batch_size=8, steps=2)
