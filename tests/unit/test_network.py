import json
import os

import diffusers
import numpy as np
import pytest
import torch
from denoisers import at
from snapshots import raises
from tiny import WITH_ATTENTION

from taugrid import config
from taugrid.errors import WorkerRefusal
from taugrid.jobs import SavedNetwork
from taugrid.words import this_node
from taugrid.workers import schedules
from taugrid.workers.device import Device
from taugrid.workers.diffusion import schedule
from taugrid.workers.network.checkpoint import WEIGHTS_FILE, read_checkpoint, saved_network
from taugrid.workers.network.load import load_network
from taugrid.workers.network.unet import build_unet, ema_decay, ema_start, ema_update, save_pipeline

UNET = config.Unet(**WITH_ATTENTION)


def load(folder):
    return load_network(saved_network(folder), config.DIFFUSION_DEFAULTS, "cpu")


def network(seed, layout=torch.contiguous_format):
    torch.manual_seed(seed)
    return build_unet(UNET, (1, 8, 8)).to(memory_format=layout)


def test_a_saved_pipeline_is_read_by_diffusers_and_its_network_is_ours(tmp_path):
    # In channels_last, as it was trained: safetensors refuses tensors that are not contiguous.
    raw, other = network(0, torch.channels_last), network(1)
    save_pipeline(tmp_path, raw, ema_start(other), config.DIFFUSION_DEFAULTS)
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path)
    x = torch.randn(3, 1, 8, 8)
    for folder, source in (("unet", other), ("unet_raw", raw)):
        eps = load(tmp_path / folder)(x, at(500))
        torch.testing.assert_close(eps, source(x, 499).sample, rtol=0, atol=1e-5)
    with torch.no_grad():
        ours, theirs = load(tmp_path / "unet")(x, at(500)), pipeline.unet(x, 499).sample
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # the layouts in memory differ
    assert pipeline(batch_size=2, num_inference_steps=2, output_type="np").images.shape == (2, 8, 8, 1)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}, "no pickle"


def test_a_name_on_the_hub_is_never_asked_for():
    name = "google/ddpm-cifar10-32"
    with raises(WorkerRefusal):
        load_network(SavedNetwork(name, "0" * 64, "0" * 64), config.DIFFUSION_DEFAULTS, "cpu")


@pytest.mark.parametrize("file", [WEIGHTS_FILE, "config.json"])
def test_a_worker_refuses_another_network_than_the_drivers_whatever_its_files_times(tmp_path, file):
    """A stale copy on one node, or a checkpoint replaced during a run: no time of a file may hide it."""
    folder = tmp_path / "unet"
    network(0).save_pretrained(folder)
    saved, device, x = saved_network(folder), Device("cpu"), torch.randn(2, 1, 8, 8)
    before = device.network(saved, config.DIFFUSION_DEFAULTS)(x, at(500))
    stat = (folder / file).stat()
    build_unet(UNET.model_copy(update={"norm_eps": 1e-2}), (1, 8, 8)).save_pretrained(tmp_path / "other")
    (folder / file).write_bytes((tmp_path / "other" / file).read_bytes())
    os.utime(folder / file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(WorkerRefusal) as caught:
        load_network(saved, config.DIFFUSION_DEFAULTS, "cpu")
    expected = saved.weights_sha256 if file == WEIGHTS_FILE else saved.config_sha256
    for fact in (this_node(), str(folder / file), expected[:12]):
        assert fact in str(caught.value)
    # What is in memory is still the planned network; a spec of the new files is another.
    assert torch.equal(device.network(saved, config.DIFFUSION_DEFAULTS)(x, at(500)), before)
    now = saved_network(folder.rename(tmp_path / "now"))  # not by a hash that this driver remembers
    assert not torch.equal(device.network(now, config.DIFFUSION_DEFAULTS)(x, at(500)), before)


def test_a_network_is_asked_at_the_papers_time(tmp_path):
    network(0).save_pretrained(tmp_path)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for t in (1, 1000):
            expected = network(0)(x, t - 1).sample
            torch.testing.assert_close(load(tmp_path)(x, at(t)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", schedule.SCHEDULES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_saved_pipeline_is_read_back_as_the_same_diffusion(tmp_path, name, prediction):
    """diffusers' DDIMScheduler has no name for half of them: they are written as betas, and known again by these."""
    read_back(tmp_path, schedule=name, timesteps=50, beta_start=3e-4, beta_end=0.1, prediction=prediction)


@pytest.mark.parametrize("betas", [{}, {"trained_betas": (0.1, 0.3, 0.2), "timesteps": 3}], ids=["linear", "listed"])
@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("to_one", [False, True])
def test_so_are_its_other_keys(tmp_path, betas, rescaled, to_one):
    changes = {"rescale_betas_zero_snr": rescaled, "set_alpha_to_one": to_one, "prediction": "v_prediction", **betas}
    read_back(tmp_path, **changes, **(dict.fromkeys(config.SCHEDULE_KEYS) if betas else {}))


def read_back(folder, **changes):
    """The diffusion is written and read; and diffusers, which is given the same keys, has the same alphas."""
    diffusion = config.DIFFUSION_DEFAULTS.model_copy(update=changes)
    save_pipeline(folder, network(0), ema_start(network(0)), diffusion)
    assert read_checkpoint(str(folder)).diffusion == diffusion
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    theirs = [scheduler.final_alpha_cumprod, *scheduler.alphas_cumprod]
    np.testing.assert_allclose(theirs, schedules.alpha_bar(diffusion), rtol=2e-4, atol=1e-12)


def test_build_unet_passes_every_key_on(tmp_path):
    values = {"freq_shift": 0, "flip_sin_to_cos": True, "norm_eps": 1e-5, "attention_head_dim": 4, "dropout": 0.1}
    unet = build_unet(UNET.model_copy(update=values), (3, 16, 8))
    unet.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    shape = {"in_channels": 3, "out_channels": 3, "sample_size": [16, 8]}
    expected = UNET.model_dump(exclude={"num_classes"}) | values | shape
    assert {key: written[key] for key in expected} == expected


def test_the_average_follows_its_recurrence():
    unet = network(0)
    ema = ema_start(unet)
    name, parameter = next(iter(unet.named_parameters()))
    expected = parameter.detach().double().clone()
    for step in range(30):
        with torch.no_grad():
            parameter.add_(1.0)
        decay = ema_decay(step, 0.7)
        ema_update(ema, unet, decay)
        expected = decay * expected + (1 - decay) * parameter.detach().double()
    torch.testing.assert_close(ema[name].double(), expected, rtol=1e-5, atol=1e-5)


def test_decay_warms_up_to_its_setting():
    assert ema_decay(0, 0.999) == 0.1
    assert ema_decay(90, 0.999) == 0.91
    assert ema_decay(10**6, 0.999) == 0.999
    assert ema_decay(5, 0.0) == 0.0
    assert ema_decay(0, 0.75, warmup=False) == 0.75
