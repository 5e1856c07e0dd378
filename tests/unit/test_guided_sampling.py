"""Guided predictions: against closed forms, in jobs of two networks, and through `taugrid.sample`."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DModel
from in_process import drive, results, small_run
from snapshots import raises, recorded
from tiny import UNET
from torch import nn

import taugrid
from taugrid.config import Diffusion
from taugrid.errors import NotFinite, SamplerFault, UserError
from taugrid.jobs import Conditions
from taugrid.orchestrator.plan.grid import with_settings
from taugrid.orchestrator.plan.sections import diffusion_section
from taugrid.storage import LocalStorage
from taugrid.workers import schedules
from taugrid.workers.conditions import guidance_of, inside
from taugrid.workers.device import Device
from taugrid.workers.diffusion import gaussian
from taugrid.workers.diffusion.decoder import Identity
from taugrid.workers.diffusion.denoiser import Denoise, Guidance
from taugrid.workers.diffusion.oracle import gaussian_eps
from taugrid.workers.diffusion.process import Point
from taugrid.workers.jobs import SampleJob
from taugrid.workers.sample import sample_shard
from taugrid.workers.samplers.description import SAMPLE_DEFAULTS, describe_sampler, honoured
from taugrid.workers.samplers.sampler import SamplingSpec, sample_batch

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (1, 4, 4)
DIFFUSION = diffusion_section(Diffusion())
ALPHA_BAR = schedules.alpha_bar(DIFFUSION)
DATA = gaussian.gaussian(SHAPE)
OFFSETS = np.random.RandomState(0).uniform(-0.3, 0.3, (4, 16))
"""Of the means of three classes, and of the null prediction, from that of `DATA`."""
SCALE = 2.5
GUIDED_OFFSETS = SCALE * OFFSETS + (1 - SCALE) * OFFSETS[-1]
"""g m_c + (1 - g) m_0."""
CLASSES, MOVED = (
    gaussian_eps(gaussian.Classes(DATA, offsets), ALPHA_BAR, "cpu") for offsets in (OFFSETS, GUIDED_OFFSETS)
)
"""The optimal eps of the classes, and that of classes with the means that guidance leads to."""


def spec_of(**settings):
    given = SAMPLE_DEFAULTS.model_copy(update={"steps": 10, **settings})
    described = describe_sampler(given, DIFFUSION)
    given = honoured(given, described.keys)
    process = schedules.process(DIFFUSION)
    points = inside(given.guidance_interval, map(process.told, described.times))
    count = len(points) if given.is_guided else 0
    how = guidance_of(given, count, Conditions(3, 3))
    return SamplingSpec(Identity(SHAPE), DIFFUSION, given, described.tau, described.evaluations + count, how)


SAMPLERS = [
    {"eta": 0.0}, {"eta": 1.0}, {"eta": "sigma_hat"}, {"sampler": "dpm++2m", "spacing": "logsnr"},
    {"sampler": "heun", "spacing": "logsnr"}, {"sampler": "unipc", "spacing": "logsnr"},
    {"sampler": "diffusers:DPMSolverMultistepScheduler", "sampler_options": {"algorithm_type": "sde-dpmsolver++"}},
    {"sampler": "diffusers:DDPMScheduler"},
]  # fmt: skip


@pytest.mark.parametrize("settings", SAMPLERS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_guided_classes_are_classes_with_guided_means_for_every_sampler(settings):
    """eps of a Gaussian is linear in its mean, so guided images are those of N(g m_c + (1 - g) m_0, Sigma), each."""
    labels, indices = torch.arange(6) % 3, torch.arange(6)
    images = sample_batch(CLASSES, indices, spec_of(guidance=SCALE, **settings), labels)
    expected = sample_batch(MOVED, indices, spec_of(**settings), labels)
    assert (images - expected).abs().max() < 1e-4
    assert (images - sample_batch(CLASSES, indices, spec_of(**settings), labels)).abs().max() > 0.1


def toy(log, name, gain=1.0):
    """An elementwise network that notes its calls, and whose output depends on the label."""

    def network(x, at, condition=None, /):
        log.append((name, at.time, None if condition is None else condition.tolist()))
        return gain * (x if condition is None else x + condition.reshape(-1, 1, 1, 1))

    return network


POINT = Point(alpha=0.6, sigma=0.8, alpha_bar=0.36, time=7, key=8)


def test_a_call_is_two_of_one_batch_each_the_labelled_one_first():
    log, x, labels = [], torch.ones(2, 4, 1, 1), torch.tensor([0, 2])
    network, guide, per_image = toy(log, "net"), toy(log, "guide", 0.5), labels.reshape(-1, 1, 1, 1)

    def guided(how, guide=None):
        denoise = Denoise(network, schedules.process(DIFFUSION), condition=labels, guidance=how, guide=guide)
        return denoise.output(x, POINT)

    assert torch.equal(guided(Guidance(3.0, 1, null_label=9)), (x + 9) + 3.0 * ((x + per_image) - (x + 9)))
    guided(Guidance(2.0, 1, null_label=9, guide_has_labels=True), guide)
    partly = guided(Guidance(2.0, 1, channels=3, null_label=9), guide)
    own = x + per_image
    assert torch.equal(partly, torch.cat([2 * own - 0.5, own], 1)[:, [0, 1, 2, 7]]), "the fourth is the labelled call's"
    two, both = ("net", 7, [0, 2]), [("net", 7, [0, 2]), ("guide", 7, [0, 2])]
    assert log == [two, ("net", 7, [9, 9]), *both, two, ("guide", 7, None)]


def test_outside_of_the_interval_there_is_one_call_and_the_networks_own_bits():
    log, spec = [], spec_of(guidance=SCALE, guidance_interval=[0.1, 2.0])
    sample_batch(toy(log, "net", 0.1), torch.arange(2), spec, torch.tensor([0, 1]))
    process = schedules.process(DIFFUSION)
    guided = [time for _, time, labels in log if labels == [3, 3]]
    assert guided == [t for t in describe_sampler(spec.settings, DIFFUSION).times if 0.1 < process.at(t + 1).ratio <= 2]
    assert len(log) == spec.nfe == 10 + len(guided)


def test_guidance_1_is_one_call_with_the_bits_of_no_guidance():
    log, labels = [], torch.tensor([0, 1])
    assert spec_of(guidance=1.0, guidance_interval=[0.1, 1]).guidance is None
    images = sample_batch(toy(log, "net", 0.1), torch.arange(2), spec_of(guidance=1.0), labels)
    assert torch.equal(images, sample_batch(toy([], "net", 0.1), torch.arange(2), spec_of(), labels))
    assert len(log) == 10


def test_calls_that_are_guided_less_often_than_planned_are_a_fault_of_the_sampler():
    spec = spec_of(guidance=SCALE, guidance_interval=[0.1, 2.0])
    wrong = spec._replace(guidance=spec.guidance._replace(interval=(0.1, 1.0)))
    with raises(SamplerFault):
        sample_batch(toy([], "net", 0.1), torch.arange(2), wrong, torch.tensor([0, 1]))


# Jobs of two networks


@pytest.fixture(scope="module")
def folders(tmp_path_factory, one_thread):
    """Pipelines: an unconditional network, a guide, a network of three classes, and a guide with NaN in it."""
    root = tmp_path_factory.mktemp("pipelines")
    for seed, (name, classes) in enumerate({"net": None, "weak": None, "classes": 3, "broken": None}.items()):
        torch.manual_seed(seed)
        network = UNet2DModel(8, 1, 1, **UNET, num_class_embeds=classes)
        if name == "broken":
            nn.init.constant_(network.conv_out.bias, torch.nan)
        network.save_pretrained(root / name / "unet")
        DDIMScheduler(clip_sample=False).save_pretrained(root / name / "scheduler")
    return root


def text(folders, model="net", guide="weak", sample="", grid="{guidance: [1, 2]}"):
    return f"""
name: guided
model: {{checkpoint: {folders / model}, guide: {folders / guide}}}
data: {{name: gaussian, shape: [1, 8, 8], limit: 40}}
sample: {{seed: 0, steps: 3, num_samples: 6, batch_size: 2, shard_evaluations: 18{sample}}}
grid: {grid}
evaluate: {{extractor: pixels, metrics: [kid], kid_subset_size: 3}}
cluster: {{workers: 1}}
"""


def drive_in(folder, text):
    """The outcome of a run in `folder / "run"`."""
    with small_run(folder, text) as run:
        return drive(run, folder / "run", LocalStorage(folder / "run"))[0]


@pytest.fixture(scope="module")
def done(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    assert drive_in(folder, text(folders)).missing == {}
    return folder / "run"


def test_a_run_of_two_networks_counts_both_and_records_the_guide(done, folders):
    plan = json.loads((done / "plan.json").read_text())
    [guide] = plan["guides"]
    assert guide["source"]["path"] == str(folders / "weak")
    assert (done / "models" / guide["id"] / "model.json").exists()
    guided = next(cell for cell in plan["cells"] if "guide" in cell)
    part = next(done.glob(f"samples/*{guided['id']}/*.parquet"))
    metadata = json.loads(pq.read_schema(part).metadata[b"taugrid"])
    recorded(metadata["conditions"]["guidance"].pop("calls"))
    assert metadata["conditions"] == {"guidance": {"scale": 2.0, "guide": guide["id"]}}
    assert "label" not in pq.read_schema(part).names
    evaluations = {cell["guidance"]: cell["network_evaluations"] for cell in taugrid.plan(done)["cells"]}
    assert evaluations == {1.0: 6 * 3, 2.0: 6 * 6}


def test_a_part_of_a_guided_shard_is_gone_on_with_to_the_same_bytes(done, folders, tmp_path):
    """Other jobs, on a worker that has no network yet."""
    shutil.copytree(done, tmp_path / "run")
    gone = sorted((tmp_path / "run/samples").glob("*/part-000001.parquet"))
    for path in gone:
        path.unlink()
    drive_in(tmp_path, text(folders))
    assert gone
    assert results(tmp_path / "run") == results(done)


def test_nan_of_the_guide_alone_gives_no_image(folders, tmp_path):
    [told] = drive_in(tmp_path, text(folders, guide="broken", grid="{guidance: [2]}")).missing.values()
    recorded(told.partition("NotFinite: ")[2].partition(" (")[0])
    assert not list((tmp_path / "run/samples").rglob("*.parquet"))


def job_of(folders, tmp_path, **sample):
    """A guided job of five images in batches of two, with three steps."""
    with small_run(tmp_path, text(folders, grid="{guidance: [2]}")) as run:
        cell = with_settings(run.plan.cells[0], sample)
    return SampleJob(
        str(tmp_path / "part.parquet"), start=0, stop=5, network=None, decoder=Identity((1, 8, 8)),
        settings=cell.settings, diffusion=cell.model.diffusion, tau=cell.tau, nfe=cell.nfe,
        metadata={"cell": cell.id, "model": cell.model.id}, guidance=cell.guidance,
    )  # fmt: skip


def test_heartbeats_count_the_calls_of_both_networks(folders, tmp_path):
    beats, log, job = [], [], job_of(folders, tmp_path)
    device = Device("cpu")
    device.heartbeat = lambda done, of: beats.append((done, of))
    sample_shard(job, toy(log, "net"), device, guide=toy(log, "guide", 0.5))
    assert [name for name, *_ in log] == ["net", "guide"] * 9
    assert beats in ([(done, 18) for done in range(18)], [(done + 1, 18) for done in range(18)])


def test_infinity_of_the_guide_in_the_last_call_is_the_networks_not_the_samplers(folders, tmp_path):
    """No later call of the network would see it, and NaN in the image alone would not say where it is from."""
    job = job_of(folders, tmp_path, clip="x0")
    last = min(describe_sampler(job.settings, job.diffusion).times)

    def guide(x, at, condition=None, /):
        return x * torch.inf if at.time == last else x

    with raises(NotFinite):
        sample_shard(job, toy([], "net", 0.1), Device("cpu"), guide=guide)


# In memory


class Net(nn.Module):
    """A network of three classes and a null class."""

    num_classes, null_label = 3, 3

    def forward(self, x, t, label):
        return 0.1 * x + 0.1 * label.reshape(-1, 1, 1, 1)


def test_the_api_guides_a_network_in_memory():
    given = {"shape": (1, 4, 4), "steps": 4, "labels": "balanced", "diffusion": {"prediction": "sample"}}
    plain = taugrid.sample(Net(), 6, **given)
    assert np.array_equal(taugrid.sample(Net(), 6, guidance=1, **given), plain)
    guided = taugrid.sample(Net(), 6, guidance=2.0, **given)
    assert not np.array_equal(guided, plain)
    assert np.array_equal(taugrid.sample(Net(), [4, 5], guidance=2.0, **given), guided[4:])
    partly = taugrid.sample(Net(), 6, guidance=2.0, guidance_interval=[0.5, 5.0], **given)
    assert not np.array_equal(partly, guided)

    def guide(x, t):
        return 0.1 * x + 0.1 * 3

    assert np.array_equal(taugrid.sample(Net(), 6, guidance=2.0, guide=guide, **given), guided), "the null label's"


def test_the_api_samples_a_checkpoint_with_a_guide_as_a_run_does(done, folders):
    images = taugrid.sample(str(folders / "net"), 6, guide=folders / "weak", guidance=2.0, steps=3, batch_size=2)
    assert np.array_equal(images, taugrid.open(done).cell("guidance=2").images(range(6)))


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (Net(), {"labels": 0, "guidance_interval": [1e6, 1e7]}),
        (Net(), {"labels": 0, "guidance_channels": 2}),
        (Net(), {"labels": 0, "guidance": 1, "guide": Net()}),
        (Net(), {"labels": 0, "guide": "a/folder"}),
        (lambda x, t: x, {"guide": Net()}),
    ],
)
def test_what_can_not_be_guided_in_memory_is_refused(model, given):
    with raises(UserError):
        taugrid.sample(model, 2, shape=(1, 4, 4), steps=4, **{"guidance": 2, **given})


def test_a_network_without_a_null_class_or_its_vae_is_refused(folders):
    with raises(UserError):
        taugrid.sample(str(folders / "classes"), 2, steps=3, labels="balanced", guidance=2)
    sizes = {"num_attention_heads": 1, "attention_head_dim": 4, "num_layers": 1, "sample_size": 4, "norm_num_groups": 1}
    of_latents = DiTTransformer2DModel(in_channels=4, patch_size=2, num_embeds_ada_norm=3, **sizes)
    with raises(UserError):
        taugrid.sample(of_latents, 2, labels=1, steps=2)
