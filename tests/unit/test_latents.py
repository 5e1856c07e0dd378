"""Latent networks: pictures against diffusers' own loop, the VAE in the worker, other VAEs, and what is refused."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hub import serving
from latents import SETTINGS, STEPS, by_diffusers, edit, other_vae, save_dit, save_ldm
from safetensors.torch import load_file, save_file
from snapshots import raises, recorded

import taugrid
from taugrid import config
from taugrid.errors import MissingInput, NotFinite, Stopped, UserError
from taugrid.images import to_pictures, to_uint8
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.plan.conditions import weights_bytes
from taugrid.orchestrator.plan.grid import Lookups, plan
from taugrid.orchestrator.plan.record import from_json, to_json
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.work.ode import require_ode_cells
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.storage import write_json
from taugrid.workers.accelerator import arithmetic
from taugrid.workers.accelerator.policy import policy
from taugrid.workers.device import Device
from taugrid.workers.network.checkpoint import WEIGHTS_FILE, Checkpoint, read_checkpoint, read_vae, saved_network
from taugrid.workers.network.unet import load_vae, read_saved
from taugrid.workers.sample import run as run_job

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = {"labels": "balanced"}


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
    recorded(model.source.description(model.diffusion, []), "decoded")


def test_batches_and_slices_change_no_picture(ldm):
    def sampled(indices, batch_size):
        return taugrid.sample(str(ldm[0]), indices, batch_size=batch_size, decode_batch=2, **SETTINGS)

    first = sampled(8, 8)
    assert np.array_equal(sampled(8, 4), first)
    assert np.array_equal(sampled([5, 2], 2), first[[5, 2]])


def test_what_a_vaes_config_leaves_out_is_what_it_meant_when_it_was_written(ldm, dit, tmp_path):
    """diffusers takes 0.18215 for a VQModel too (huggingface/diffusers#6725), whose latents were not scaled."""
    for (folder, _), name, factor in ((ldm, "vqvae", 1.0), (dit, "vae", 0.18215)):
        place = shutil.copytree(folder, tmp_path / name)
        edit(place / name / "config.json", scaling_factor=None, shift_factor=0.25, out_channels=None)
        vae = read_checkpoint(str(place)).vae
        assert (vae.scaling_factor, vae.shift_factor, vae.picture_shape) == (factor, 0.25, (3, 16, 16))
    edit(place / "vae/config.json", block_out_channels=None, latent_channels=None)
    assert read_checkpoint(str(place)).vae.picture_shape == (3, 8, 8), "diffusers' defaults"


def test_the_first_dits_config_and_weights_are_read(dit, tmp_path):
    """facebook/DiT-XL-2-256 names the class Transformer2DModel, and its VAE has attention's old names."""
    folder = shutil.copytree(dit[0], tmp_path / "old")
    older = {"cross_attention_dim": 0, "num_vector_embeds": 0, "only_cross_attention": False, "norm_eps": None}
    edit(folder / "transformer/config.json", _class_name="Transformer2DModel", **older)
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    file = folder / "vae" / WEIGHTS_FILE
    tensors = load_file(file)
    name_of = re.compile("|".join(map(re.escape, older)))
    renamed = {name_of.sub(lambda found: older[found[0]], name): tensor for name, tensor in tensors.items()}
    assert set(renamed) != set(tensors)
    save_file(renamed, file)
    found = read_checkpoint(str(folder))
    assert (found.network, found.network_shape, found.drops_sigma) == ("DiTTransformer2DModel", (4, 8, 8), True)
    read = read_saved(saved_network(folder / "transformer"))
    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in dit[1].transformer.state_dict().items())
    vae = read_saved(found.vae.saved).state_dict()
    assert all(torch.equal(tensor, vae[name]) for name, tensor in tensors.items())


def test_a_pipeline_on_the_hub_comes_with_its_vae_and_one_of_prompts_without_weights(dit, tmp_path, monkeypatch):
    """Put back by fetching weights with the configs: gigabytes are fetched before the refusal."""
    prompts = shutil.copytree(dit[0], tmp_path / "prompts")
    edit(prompts / "model_index.json", text_encoder=["transformers", "CLIPTextModel"])
    hub = {"models/a/dit": dit[0], "models/a/prompts": prompts}
    with serving(hub, tmp_path / "cache", monkeypatch) as requests:
        found = read_checkpoint("a/dit")
        assert sum(WEIGHTS_FILE in line and line.startswith("GET") for line in requests) == 2
        requests.clear()
        with raises(UserError):
            read_checkpoint("a/prompts")
        assert not any(WEIGHTS_FILE in line for line in requests)
        here = read_checkpoint(str(dit[0]))
        assert Checkpoint.restored(here.recorded) == here
        of = here.vae
        assert read_vae("a/dit", of).identity == found.vae.identity == of.identity


def test_a_vae_that_is_gone_is_as_recorded_until_something_is_to_be_decoded(dit, tmp_path):
    """As a checkpoint is. Put back by not reading plan.json: `plan` of a finished run fails."""
    other_vae(tmp_path / "vae")
    rundir, given = RunDir(tmp_path / "run"), {"checkpoint": str(dit[0]), "vae": str(tmp_path / "vae")}
    values = config.validate(config.Config, {"name": "x", "model": given, "sample": SETTINGS | CLASSES}, "test")
    before = plan(values, Lookups(read_vae=rundir.read_vae))
    write_json(rundir.plan, to_json(before))
    shutil.rmtree(tmp_path / "vae")
    found = plan(values, Lookups(read_vae=rundir.read_vae))
    assert found.cells == before.cells
    survey = Survey(Run(values, found, rundir), None, frozenset({"sample"}), 0)
    with raises(MissingInput):
        [*SampleWork(survey).tasks()]


def test_a_vae_on_the_hub_stays_that_of_the_first_session(dit, tmp_path, monkeypatch):
    """Put back by reading the newest: the cell gets another id. Only the VAE of a pipeline is fetched."""
    of, rundir = read_checkpoint(str(dit[0])).vae, RunDir(tmp_path / "run")
    place = shutil.copytree(dit[0], tmp_path / "repository")
    with serving({"models/a/dit": place}, tmp_path / "cache", monkeypatch) as requests:
        first = rundir.read_vae("a/dit", of)
        assert not any("transformer" in line and line.startswith("GET") for line in requests if "/resolve/" in line)
        [cell] = planned(dit[0], sample=CLASSES).cells
        write_json(rundir.plan, to_json(Plan((cell.model,), (replace(cell, vae=first),))))
        edit(place / "vae/config.json", scaling_factor=0.5)
        assert rundir.read_vae("a/dit", of) == first
        assert read_vae("a/dit", of).identity != first.identity, "it has changed there"


def planned(folder, vae=None, **sections):
    sections = {"name": "x", "model": {"checkpoint": str(folder), "vae": vae and str(vae)}, **sections}
    sections["sample"] = SETTINGS | sections.get("sample", {})
    return plan(config.validate(config.Config, sections, "test"))


def test_the_vae_is_part_of_the_models_identity(ldm, tmp_path):
    [before] = planned(ldm[0]).models
    assert before.image_shape == (3, 16, 16)
    recorded(before.source.description(before.diffusion, []), "latents")
    place = shutil.copytree(ldm[0], tmp_path / "rescaled")
    edit(place / "vqvae/config.json", scaling_factor=0.25)
    [rescaled] = planned(place).models
    place = shutil.copytree(ldm[0], tmp_path / "other")
    tensors = load_file(place / "vqvae" / WEIGHTS_FILE)
    tensors["decoder.conv_out.bias"] += 1
    save_file(tensors, place / "vqvae" / WEIGHTS_FILE)
    [other] = planned(place).models
    assert len({before.id, rescaled.id, other.id}) == 3


@pytest.mark.parametrize("change", [
    lambda place: shutil.rmtree(place / "vqvae"), lambda place: (place / "vqvae" / WEIGHTS_FILE).unlink(),
    lambda place: (place / "vqvae" / WEIGHTS_FILE).write_bytes(b"0"),
    lambda place: edit(place / "vqvae/config.json", latent_channels=4),
    lambda place: edit(place / "vqvae/config.json", _class_name="AutoencoderDC"),
    lambda place: edit(place / "vqvae/config.json", latents_mean=[0.0]),
])  # fmt: skip
def test_a_vae_that_can_not_decode_is_one_line_before_anything_is_sampled(ldm, tmp_path, change):
    place = shutil.copytree(ldm[0], tmp_path / "damaged")
    change(place)
    with raises(UserError):
        planned(place)


def test_another_vae_makes_other_cells_of_the_same_model(dit, tmp_path):
    """Put back by leaving `vae` out of `_cell_id`: the grid's two cells are one."""
    folder, parts = dit
    made = other_vae(tmp_path / "other")
    found = planned(folder, sample=CLASSES, grid={"model.vae": [None, str(tmp_path / "other")]})
    [model], [own, other] = found.models, found.cells
    [alone] = planned(folder, sample=CLASSES).cells
    assert (own.id, model.id) == (alone.id, alone.model.id)
    assert other.id != own.id
    assert other.decoder.identity != own.decoder.identity
    assert "other" in other.label
    assert not [remark for remark in found.remarks if "same times" in remark], "each of which is another cell"
    slices = (8, 32, 64, 4)
    small = [planned(folder, sample={**CLASSES, "batch_size": 8, "decode_batch": n}).cells[0] for n in slices]
    guides = [{"checkpoint": str(folder), "guide": str(place)} for place in (folder, folder / "transformer")]
    whole, bare = (planned("", model=model, sample={**CLASSES, "guidance": 2.0}).cells[0] for model in guides)
    assert whole.id == bare.id, "a guide's VAE decodes nothing"
    assert [small[0].id == cell.id for cell in small] == [True, True, True, False], "of 8, slices of 8 are all"
    again = from_json(to_json(found))
    assert [cell.decoder for cell in again.cells] == [cell.decoder for cell in found.cells]
    arguments = {"batch_size": 4, "decode_batch": 2, "labels": 1, **SETTINGS}
    pictures = taugrid.sample({"checkpoint": str(folder), "vae": str(tmp_path / "other")}, 3, **arguments)

    def predict(x, t):
        return parts.transformer(x, t.expand(len(x)), class_labels=torch.ones(len(x), dtype=torch.long)).sample[:, :4]

    assert abs(pictures - grey(by_diffusers(predict, made, (4, 8, 8), 3))).max() <= 1
    shutil.copytree(folder / "vae", tmp_path / "same")
    [same] = planned(folder, tmp_path / "same", sample=CLASSES).cells
    assert same.id == own.id, "the pipeline's own VAE under another path"


HALVES_NOTHING = {
    "block_out_channels": (8,), "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
}  # fmt: skip


@pytest.mark.parametrize("changes", [{"latent_channels": 3}, HALVES_NOTHING, None])
def test_a_vae_of_other_latents_is_one_line(dit, tmp_path, changes):
    if changes is not None:
        other_vae(tmp_path / "vae", **changes)
    with raises(UserError):
        planned(dit[0], tmp_path / "vae", sample=CLASSES)


PIXELS = {"model": {"oracle": "gaussian"}, "data": {"name": "gaussian", "shape": [1, 4, 4]}}


@pytest.mark.parametrize("setting", [{"vae_precision": "bf16"}, {"keep_latents": True}, {"decode_batch": 8}, None])
def test_keys_of_a_vae_are_refused_for_networks_of_pixels(setting):
    keys = {"model": {"oracle": "gaussian", "vae": "/a"}} if setting is None else {"sample": setting}
    with raises(UserError):
        planned("", **PIXELS | keys)
    if setting is not None:
        with raises(UserError):
            taugrid.sample(torch.nn.Identity(), 1, shape=(1, 4, 4), **setting)


def test_the_stages_along_the_ode_are_refused_for_latents(ldm):
    with raises(UserError):
        require_ode_cells(planned(ldm[0]), "reconstruct")


def test_the_protocol_names_the_vae_and_the_rounding(ldm, tmp_path):
    [cell] = planned(ldm[0], sample={"vae_precision": "bf16", "rounding": "truncate"}).cells
    assert (cell.decoder_block["precision"], cell.decoder_block["batch"]) == ("bf16", cell.settings.decode_batch)
    assert cell.decoder_block["weights"] == cell.decoder.saved.weights_sha256
    assert cell.settings.rounding_in_words == "8 bits, truncated"
    metadata = RunDir(tmp_path).sample_metadata(cell)
    assert metadata["decoder"] == cell.decoder_block
    [kept] = planned(ldm[0], sample={"vae_precision": "bf16", "rounding": "truncate", "keep_latents": True}).cells
    assert kept.id == cell.id
    again = RunDir(tmp_path).sample_metadata(kept)
    del again["latents"]
    assert again == metadata, "what is kept besides changes no image"


def vae_of(folder):
    return read_checkpoint(str(folder)).vae


def test_a_vae_in_true_float32_beside_a_network_in_tf32(ldm, monkeypatch):
    """Switches of torch are the process's. Put back by deleting `without_tf32`: the VAE would compute in TF32."""
    seen = []

    def watched(*given):
        module = load_vae(*given)
        module.post_quant_conv.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.matmul.allow_tf32))
        return module

    monkeypatch.setattr("taugrid.workers.network.unet.load_vae", watched)
    decode = Device("cpu").decoder(vae_of(ldm[0]), settings_of())
    with arithmetic.restored():
        arithmetic.configure(policy("cuda", "tf32"))
        decode(torch.zeros(1, 3, 8, 8))
        assert torch.backends.cuda.matmul.allow_tf32, "the network's own again"
    assert seen == [False]


def test_a_job_that_decodes_and_does_not_fit_names_both_sizes(ldm, tmp_path):
    task, *_ = tasks_of(ldm[0], tmp_path / "run").values()
    recorded(task.job.remedy)


LDM_VAE = {"latent_channels": 3, "scaling_factor": 100.0}
"""Of another VAE that fits the LDM's latents."""


def tasks_of(folder, root, storage=None, **sections):
    """The tasks of sampling that are left in a run directory, by key."""
    sample = {"num_samples": 10, "batch_size": 4, "shard_evaluations": 20, "decode_batch": 3, "keep_latents": True}
    if storage is None:
        root.mkdir(exist_ok=True)
    sections = {"sample": SETTINGS | sample | sections.pop("sample", {}), **sections}
    values = config.validate(config.Config, {"name": "x", "model": {"checkpoint": str(folder)}, **sections}, "test")
    run = Run(values, plan(values), RunDir(root, storage))
    survey = Survey(run, None, frozenset({"sample"}), pytest.fail)
    return {task.key: task for task in SampleWork(survey).tasks()}


def parts(tasks):
    return [Path(task.job.path).read_bytes() for task in tasks]


@pytest.fixture
def two_vaes(ldm, tmp_path):
    """Tasks of a cell that keeps its latents, and of one that has another VAE; and of the second alone."""
    other_vae(tmp_path / "vae", **LDM_VAE)
    other = {"checkpoint": str(ldm[0]), "vae": str(tmp_path / "vae")}
    both = tasks_of(ldm[0], tmp_path / "both", grid={"model.vae": [None, other["vae"]]}).values()
    alone = [*tasks_of(ldm[0], tmp_path / "alone", model=other).values()]
    return [*both][:3], [*both][3:], alone


def test_another_vae_decodes_kept_latents_to_the_bytes_of_sampling(two_vaes, monkeypatch):
    """Put back by decoding rows from another start, or in slices of another size: the bytes differ."""
    first, second, alone = two_vaes
    assert [task.requires for task in second] == [frozenset({task.key}) for task in first]
    assert all(task.does_without for task in second), "they sample if those are given up"
    assert not set().union(*(task.requires for task in first + alone))
    device = Device("cpu")
    for task in first + alone:
        assert run_job(task.job, device).evaluations is None
    monkeypatch.setattr(Device, "network", lambda *_: pytest.fail("nothing is to be sampled"))
    beats = []
    device = Device("cpu", lambda done, of, doing="": beats.append((done, of)))
    done = [run_job(task.job, device) for task in second]
    assert [result.evaluations for result in done] == [0, 0, 0]
    events = [SampleWork.event(task, result, True)[1] for task, result in zip(second, done, strict=True)]
    assert {event["latents_of"] for event in events} == {first[0].cell.id}
    assert beats[0] == (0, 2), "a heartbeat for each slice"
    assert parts(second) == parts(alone)
    assert len({*parts(first), *parts(second)}) == 6


def test_latents_kept_by_a_cell_that_is_no_longer_planned_are_decoded(ldm, two_vaes, tmp_path, monkeypatch):
    """Put back by taking cells of the plan alone, or by leaving the VAE in the hash: all is sampled again."""
    first, _, alone = two_vaes
    sample = {"rounding": "truncate", "vae_precision": "bf16"}
    decoded = {"checkpoint": str(ldm[0]), "vae": str(tmp_path / "vae")}
    fresh = tasks_of(ldm[0], tmp_path / "fresh", model=decoded, sample=sample).values()
    for task in [*first, *alone, *fresh]:
        assert not task.requires
        run_job(task.job, Device("cpu"))
    monkeypatch.setattr(Device, "network", lambda *_: pytest.fail("nothing is to be sampled"))
    for changes, expected in (({}, alone), (sample, fresh)):
        later = tasks_of(ldm[0], tmp_path / "both", model=decoded, sample=changes).values()
        assert [run_job(task.job, Device("cpu")).evaluations for task in later if not task.requires] == [0, 0, 0]
        assert parts(later) == parts(expected)
    for changes in ({"seed": 7}, {"steps": STEPS + 1}, {"clip": "x0"}, {"batch_size": 5}):
        others = tasks_of(ldm[0], tmp_path / "both", model=decoded, sample=changes).values()
        assert not any(task.job.latents_of for task in others), changes


def test_latents_that_are_in_a_bucket_are_decoded(ldm, bucket, tmp_path):
    other_vae(tmp_path / "vae", **LDM_VAE)
    sample = {"num_samples": 4, "keep_latents": True}
    [task] = tasks_of(ldm[0], *bucket, sample=sample).values()
    run_job(task.job, Device("cpu"))
    decoded = {"checkpoint": str(ldm[0]), "vae": str(tmp_path / "vae")}
    [task] = tasks_of(ldm[0], *bucket, sample=sample, model=decoded).values()
    assert run_job(task.job, Device("cpu")).evaluations == 0


@pytest.mark.parametrize("damage", ["gone", "cut", "without latents"])
def test_latents_that_can_not_be_read_are_sampled_again(ldm, two_vaes, tmp_path, damage):
    first, second, alone = two_vaes
    for task in first[:1] + alone[:1]:
        run_job(task.job, Device("cpu"))
    file = Path(first[0].job.path)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        file.unlink()
    if damage == "without latents":
        [task, *_] = tasks_of(ldm[0], tmp_path / "both", sample={"keep_latents": False}).values()
        run_job(task.job, Device("cpu"))
    assert run_job(second[0].job, Device("cpu")).evaluations is None
    assert parts(second[:1]) == parts(alone[:1])


def test_a_worker_that_stops_in_the_vae_loses_no_batch(ldm, tmp_path, monkeypatch):
    """Batches of 4 are decoded 3 and 1 at a time; whole ones are kept."""

    def begun(name):
        return next(iter(tasks_of(ldm[0], tmp_path / name, sample={"shard_evaluations": 60}).values())).job

    whole = begun("whole")
    run_job(whole, Device("cpu"))

    def stopping(done, of):
        if done == STEPS + 2 + STEPS + 1:  # in the VAE, with the second batch
            raise Stopped

    device, job = Device("cpu"), begun("stopped")
    monkeypatch.setattr(device, "heartbeat", stopping)
    assert run_job(job, device).images == 4
    again = begun("stopped")
    assert again.kept == 4
    run_job(again, Device("cpu"))
    assert Path(again.path).read_bytes() == Path(whole.path).read_bytes()


def test_pictures_that_are_not_finite_are_blamed_on_the_vae(ldm, tmp_path):
    place = shutil.copytree(ldm[0], tmp_path / "broken")
    tensors = load_file(place / "vqvae" / WEIGHTS_FILE)
    tensors["decoder.conv_out.bias"] += float("nan")
    save_file(tensors, place / "vqvae" / WEIGHTS_FILE)
    [job, *_] = [task.job for task in tasks_of(place, tmp_path / "run").values()]
    with raises(NotFinite):
        run_job(job, Device("cpu"))
    with raises((NotFinite, UserError)):
        taugrid.sample(str(place), 1, batch_size=4, **SETTINGS)


def test_a_vae_counts_among_the_weights(ldm):
    """The patch: the network is its own VAE."""
    folder, parts = ldm
    found = weights_bytes(planned(folder), lambda model, weights: model.source.weights_file(None, weights))
    assert found == {"network": 4 * parts.unet.num_parameters(), "VAE": 4 * parts.vqvae.num_parameters()}
