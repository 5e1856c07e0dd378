"""Latent networks: pictures against diffusers' own loop, the VAE in the worker, other VAEs, and what is refused."""

import shutil

import numpy as np
import pytest
import torch
from latents import SETTINGS, by_diffusers, edit, save_dit, save_ldm
from safetensors.torch import load_file, save_file

import taugrid
from taugrid import config
from taugrid.errors import NotEnoughMemory, UserError
from taugrid.images import to_pictures, to_uint8
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.plan.record import from_json, to_json
from taugrid.workers.accelerator import arithmetic, preflight
from taugrid.workers.accelerator.memory import smaller_slice
from taugrid.workers.accelerator.policy import policy
from taugrid.workers.device import Device
from taugrid.workers.network.checkpoint import WEIGHTS_FILE, Checkpoint, read_checkpoint, saved_unet
from taugrid.workers.network.unet import read_saved

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ldm(tmp_path_factory, one_thread):
    """(folder, parts) of an unconditional latent pipeline."""
    folder = tmp_path_factory.mktemp("ldm") / "pipeline"
    return folder, save_ldm(folder)


@pytest.fixture(scope="module")
def dit(tmp_path_factory, one_thread):
    """(folder, parts) of a latent pipeline with classes."""
    folder = tmp_path_factory.mktemp("dit") / "pipeline"
    return folder, save_dit(folder)


def grey(pictures, rounding="round"):
    return to_pictures(to_uint8(pictures.numpy(), rounding)).astype(int)


def settings_of(**changes):
    return config.Sample(**SETTINGS | changes)


def test_an_ldms_pictures_are_those_of_diffusers_parts(ldm):
    """Put back by leaving out `scaling_factor`, the VAE's slices of another order, or one level more: each is seen."""
    folder, parts = ldm
    x = by_diffusers(lambda x, t: parts.unet(x, t).sample, parts.vqvae, (3, 8, 8), 5)
    assert np.ptp(grey(x)) > 150, "the pictures are not all grey"
    found = taugrid.sample(str(folder), 5, batch_size=4, decode_batch=3, **SETTINGS)
    assert found.shape == (5, 16, 16, 3)
    assert abs(found - grey(x)).max() <= 1
    truncated = taugrid.sample(str(folder), 5, batch_size=4, decode_batch=3, rounding="truncate", **SETTINGS)
    assert abs(truncated - grey(x, "truncate")).max() <= 1
    assert set(np.unique(found.astype(int) - truncated)) == {0, 1}
    in_half = taugrid.sample(str(folder), 5, batch_size=4, vae_precision="bf16", **SETTINGS)
    assert 0 < abs(found - in_half.astype(int)).mean() < 8


def test_a_dits_pictures_are_those_of_diffusers_parts_without_its_learned_sigma(dit):
    folder, parts = dit
    labels = torch.tensor([3, 9, 0, 3, 7])

    def predict(x, t):
        return parts.transformer(x, t.expand(len(x)), class_labels=labels).sample[:, :4]

    x = by_diffusers(predict, parts.vae, (4, 8, 8), 5)
    found = taugrid.sample(str(folder), 5, labels=labels.tolist(), batch_size=2, decode_batch=2, **SETTINGS)
    assert abs(found - grey(x)).max() <= 1
    others = taugrid.sample(str(folder), 5, labels=5, batch_size=2, decode_batch=2, **SETTINGS)
    assert abs(found - others.astype(int)).max() > 4, "labels matter"
    [model] = planned(folder, sample={"labels": "balanced"}).models
    assert model.source.conditions == (10, 10), "ten classes, and the null class"
    said = model.source.description(model.diffusion, [])
    assert "latents of 4x8x8 by a DiTTransformer2DModel, whose learned sigma is dropped, decoded to 3x16x16" in said


def test_batches_and_slices_change_no_picture(ldm):
    folder, _ = ldm
    first = taugrid.sample(str(folder), 8, batch_size=8, decode_batch=2, **SETTINGS)
    assert np.array_equal(taugrid.sample(str(folder), 8, batch_size=4, decode_batch=2, **SETTINGS), first)
    assert np.array_equal(taugrid.sample(str(folder), [5, 2], batch_size=2, decode_batch=2, **SETTINGS), first[[5, 2]])


def test_what_a_vaes_config_leaves_out_is_what_it_meant_when_it_was_written(ldm, dit, tmp_path):
    """diffusers takes 0.18215 for a VQModel too (huggingface/diffusers#6725), whose latents were not scaled."""
    for (folder, _), name, factor in ((ldm, "vqvae", 1.0), (dit, "vae", 0.18215)):
        place = shutil.copytree(folder, tmp_path / name)
        edit(place / name / "config.json", scaling_factor=None, shift_factor=0.25)
        vae = read_checkpoint(str(place)).vae
        assert (vae.scaling_factor, vae.shift_factor) == (factor, 0.25)


def test_the_first_dits_config_and_weights_are_read(dit, tmp_path):
    """facebook/DiT-XL-2-256 names the class Transformer2DModel, and its VAE has attention's old names."""
    folder = shutil.copytree(dit[0], tmp_path / "old")
    older = {"cross_attention_dim": 0, "num_vector_embeds": 0, "only_cross_attention": False, "norm_eps": None}
    edit(folder / "transformer/config.json", _class_name="Transformer2DModel", **older)
    new, file = (
        {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"},
        folder / "vae" / WEIGHTS_FILE,
    )
    tensors, renamed = load_file(file), {}
    for name, tensor in tensors.items():
        for now, then in new.items():
            name = name.replace(f".{now}.", f".{then}.")
        renamed[name] = tensor
    assert set(renamed) != set(tensors)
    save_file(renamed, file)
    found = read_checkpoint(str(folder))
    assert (found.network, found.network_shape, found.drops_sigma) == ("DiTTransformer2DModel", (4, 8, 8), True)
    read = read_saved(saved_unet(folder / "transformer"))
    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in dit[1].transformer.state_dict().items())
    vae = read_saved(found.vae.saved).state_dict()
    assert all(torch.equal(tensor, vae[name]) for name, tensor in tensors.items())


def test_a_record_of_a_latent_pipeline_is_the_pipeline(dit):
    found = read_checkpoint(str(dit[0]))
    assert Checkpoint.restored(found.recorded) == found
    assert found.vae.picture_shape == (3, 16, 16)


def planned(folder, **sections):
    sections = {"name": "x", **sections, "sample": SETTINGS | sections.get("sample", {})}
    return plan(config.validate(config.Config, sections | {"model": {"checkpoint": str(folder)}}, "test"))


def test_the_vae_is_part_of_the_models_identity(ldm, tmp_path):
    [before] = planned(ldm[0]).models
    assert before.image_shape == (3, 16, 16)
    assert "latents of 3x8x8 by a UNet2DModel, decoded to 3x16x16 by a VQModel (scaling factor 0.5)" in (
        before.source.description(before.diffusion, [])
    )
    place = shutil.copytree(ldm[0], tmp_path / "rescaled")
    edit(place / "vqvae/config.json", scaling_factor=0.25)
    [rescaled] = planned(place).models
    place = shutil.copytree(ldm[0], tmp_path / "other")
    tensors = load_file(place / "vqvae" / WEIGHTS_FILE)
    tensors["decoder.conv_out.bias"] += 1
    save_file(tensors, place / "vqvae" / WEIGHTS_FILE)
    [other] = planned(place).models
    assert len({before.id, rescaled.id, other.id}) == 3


def test_a_recorded_plan_has_its_decoders(ldm):
    found = planned(ldm[0])
    again = from_json(to_json(found))
    assert again.models == found.models
    assert [cell.model.decoder for cell in again.cells] == [cell.model.decoder for cell in found.cells]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda place: shutil.rmtree(place / "vqvae"), "lacks its VAE: there is no"),
        (lambda place: (place / "vqvae" / WEIGHTS_FILE).unlink(), "a model's weights must be in this one file"),
        (lambda place: (place / "vqvae" / WEIGHTS_FILE).write_bytes(b"0"), "not a complete safetensors file"),
        (
            lambda place: edit(place / "vqvae/config.json", latent_channels=4),
            "takes latents of 4 channels, but",
        ),
        (
            lambda place: edit(place / "vqvae/config.json", _class_name="AutoencoderDC"),
            "holds a AutoencoderDC, but",
        ),
        (lambda place: edit(place / "vqvae/config.json", latents_mean=[0.0]), "can't honour latents_mean in"),
    ],
)
def test_a_vae_that_can_not_decode_is_one_line_before_anything_is_sampled(ldm, tmp_path, change, message):
    place = shutil.copytree(ldm[0], tmp_path / "damaged")
    change(place)
    with pytest.raises(UserError) as caught:
        planned(place)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def vae_of(folder):
    return read_checkpoint(str(folder)).vae


def test_a_vae_in_true_float32_beside_a_network_in_tf32(ldm):
    """Switches of torch are the process's. Put back by deleting `without_tf32`: the VAE would compute in TF32."""
    seen = []
    device, settings = Device("cpu"), settings_of()
    decode = device.decoder(vae_of(ldm[0]), settings)
    module = next(iter(device._vaes._values.values()))
    module.post_quant_conv.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.matmul.allow_tf32))
    with arithmetic.restored():
        arithmetic.configure(policy("cuda", "tf32"))
        decode(torch.zeros(1, 3, 8, 8))
        assert torch.backends.cuda.matmul.allow_tf32, "the network's own again"
    assert seen == [False]


def test_memory_for_the_vae_is_compared_before_anything_is_sampled(ldm, monkeypatch):
    """Put back by deleting `preflight.require` from `Device.decoder`: nothing is refused."""
    device, vae, free, needed = Device("cpu"), vae_of(ldm[0]), [0], {}
    monkeypatch.setattr(preflight, "free_bytes", lambda device: free[0])
    monkeypatch.setattr(preflight, "LIBRARIES_BYTES", 0)
    for size in (4, 8):
        with pytest.raises(
            NotEnoughMemory, match=f"decoding {size} latents at once needs an estimated 0.0 GB beside the"
        ):
            device.decoder(vae, settings_of(batch_size=8, decode_batch=size))
        needed[size] = list(device._needed.values())[-1]
    assert needed[8] > needed[4] > 8 * 3 * 16 * 16 * 4
    free[0] = needed[4]
    device.decoder(vae, settings_of(batch_size=8, decode_batch=4))
    decode = device.decoding(vae, settings_of())
    advice = smaller_slice(decode, vae.network_shape, 8, "cpu")
    assert "sample.decode_batch: the VAE can't decode 8 images at once in this memory, but 4" in advice
    assert smaller_slice(decode, vae.network_shape, 4, "cpu") is None
