"""What is taken from folders that diffusers wrote, and what is refused: with diffusers' own classes, and a hub."""

import inspect
import json
import pickle
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from denoisers import at
from diffusers import DDIMScheduler, PNDMScheduler, UNet2DModel
from hub import commit, serving
from latents import edit
from safetensors.torch import load_file, save_file
from snapshots import raises, recorded

from taugrid import config
from taugrid.config import DIFFUSION_DEFAULTS, Config, Diffusion, validate
from taugrid.errors import UserError, WorkerRefusal
from taugrid.hashing import file_sha256
from taugrid.orchestrator.plan.grid import Lookups, plan
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.workers import schedules
from taugrid.workers.network import checkpoint, custom_process
from taugrid.workers.network.checkpoint import (
    PICKLED_WEIGHTS_FILE,
    WEIGHTS_FILE,
    read_checkpoint,
    refuse_pickle,
    saved_network,
)
from taugrid.workers.network.load import load_network
from taugrid.workers.network.scheduler import SCHEDULERS
from taugrid.workers.network.unet import build_unet, ema_start, save_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")

UNET = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (8, 8),
    "down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    "norm_num_groups": 4, "attention_head_dim": 4,
}  # fmt: skip
BETAS = [0.01 * (1 + i % 3) for i in range(40)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, one_thread):
    """A bare folder with a network."""
    folder = tmp_path_factory.mktemp("saved") / "unet"
    torch.manual_seed(0)
    UNet2DModel(**UNET).save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline(saved, tmp_path):
    """A function that makes a pipeline folder of that network and a scheduler, or a scheduler's config."""

    def make(scheduler=None, name="pipeline"):
        folder = tmp_path / name
        shutil.copytree(saved, folder / "unet")
        if isinstance(scheduler, dict):
            (folder / "scheduler").mkdir()
            (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
        elif scheduler is not None:
            scheduler.save_pretrained(folder / "scheduler")
        return folder

    return make


def announced(model, cells=()):
    return model.source.description(model.diffusion, [cell.settings for cell in cells])


def planned(folder, read=read_checkpoint, **sections):
    sections = {"name": "x", "sample": {}, **sections}
    sections["sample"] = {"seed": 0, "steps": 5, **sections["sample"]}
    return plan(validate(Config, sections | {"model": {"checkpoint": str(folder)}}, "test"), Lookups(read))


def refusal(function, *arguments, **named):
    with pytest.raises(UserError) as caught:
        function(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_no_model_and_one_without_its_scheduler_are_one_line(pipeline):
    folder = pipeline()
    recorded(refusal(read_checkpoint, str(folder.parent)), "diffusers")
    (folder / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", "DDIMScheduler"]}))
    recorded(refusal(read_checkpoint, str(folder)), "scheduler")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' use of NumPy
@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_a_schedulers_config_leaves_out_is_what_its_class_has(pipeline, name):
    scheduler_class = getattr(diffusers, name)
    arguments = inspect.signature(scheduler_class.__init__).parameters
    if "num_train_timesteps" not in arguments:
        pytest.skip(f"{name} needs a package that is not here")
    defaults = {key: value.default for key, value in arguments.items() if value.default is not value.empty}
    in_full = read_checkpoint(str(pipeline({"_class_name": name, **defaults}, "full")))
    in_short = read_checkpoint(str(pipeline({"_class_name": name}, "short")))
    assert (in_short.diffusion, in_short.sample) == (in_full.diffusion, in_full.sample)
    assert in_short.sample["clip"] == ("x0" if defaults.get("clip_sample") else "none")
    resolved = planned(pipeline({"_class_name": name}, "planned")).models[0].diffusion
    theirs = scheduler_class().alphas_cumprod.numpy()
    np.testing.assert_allclose(schedules.alpha_bar(resolved)[1:], theirs, rtol=2e-4)


def test_everything_that_a_scheduler_says_is_taken_and_the_config_overrides_it(pipeline):
    scheduler = DDIMScheduler(
        num_train_timesteps=500, beta_start=1e-3, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample_range=2.0, set_alpha_to_one=False, steps_offset=1, rescale_betas_zero_snr=True,
    )  # fmt: skip
    folder = pipeline(scheduler)
    [cell] = planned(folder, sample={"spacing": "leading"}).cells
    assert cell.model.diffusion == Diffusion(
        timesteps=500, schedule="scaled_linear", beta_start=1e-3, beta_end=2e-2, prediction="v_prediction",
        rescale_betas_zero_snr=True, set_alpha_to_one=False,
    )  # fmt: skip
    assert (cell.settings.clip, cell.settings.clip_range, cell.settings.steps_offset) == ("x0", 2.0, 1)
    assert cell.tau == (2, 102, 202, 302, 402)
    recorded(announced(cell.model, [cell]))
    overridden = {"schedule": "cosine", "rescale_betas_zero_snr": False, "set_alpha_to_one": True}
    settings = {"spacing": "leading", "clip": "x0_and_eps", "clip_range": 1, "steps_offset": 0}
    [cell] = planned(folder, diffusion=overridden, sample=settings).cells
    assert cell.model.diffusion.model_dump(include=set(overridden)) == overridden
    assert cell.model.diffusion.beta_start == 1e-3, "what the config leaves out is still theirs"
    assert (cell.settings.clip, cell.settings.clip_range, cell.tau[0]) == ("x0_and_eps", 1, 1)
    recorded(announced(cell.model, [cell]))


def test_the_clipping_that_is_told_is_the_cells(pipeline):
    """`steps_offset` plays no part in the spacing linear."""
    folder, bare = pipeline(DDIMScheduler(clip_sample_range=2.0, steps_offset=1)), pipeline(name="bare")
    for place, sections in (
        (folder, {}),
        (folder, {"grid": {"clip": ["none", "x0_and_eps"]}}),
        (folder, {"sample": {"spacing": "leading"}}),
        (bare, {"sample": {"spacing": "leading", "clip": "x0", "steps_offset": 1}}),
    ):
        found = planned(place, **sections)
        recorded(announced(found.models[0], found.cells))


def test_settings_that_play_no_part_make_no_other_cell(pipeline):
    folder = pipeline(DDIMScheduler(clip_sample=False, clip_sample_range=2.0, steps_offset=1))
    plain = planned(pipeline(DDIMScheduler(clip_sample=False), "plain")).cells[0]
    assert planned(folder).cells[0].id == plain.id
    assert planned(folder, sample={"spacing": "leading"}).cells[0].settings.steps_offset == 1
    assert planned(folder, sample={"clip": "x0"}).cells[0].settings.clip_range == 2.0


def test_betas_of_ones_own_are_taken_as_they_are(pipeline):
    [model] = planned(pipeline(DDIMScheduler(len(BETAS), trained_betas=BETAS))).models
    assert model.diffusion.trained_betas == tuple(BETAS)
    assert model.diffusion.timesteps == len(BETAS)
    np.testing.assert_allclose(schedules.alpha_bar(model.diffusion), [1, *np.cumprod(1 - np.array(BETAS))], rtol=1e-15)
    recorded(announced(model))
    assert hash(model.diffusion) is not None, "a worker keeps networks by it"


def test_a_schedule_of_the_configs_takes_the_place_of_trained_betas(pipeline):
    folder = pipeline(DDIMScheduler(len(BETAS), trained_betas=BETAS))
    [model] = planned(folder, diffusion={"beta_end": 0.1}).models
    assert model.diffusion == DIFFUSION_DEFAULTS.model_copy(update={"timesteps": 40, "beta_end": 0.1})
    [other] = planned(pipeline(DDIMScheduler(), "other"), diffusion={"trained_betas": BETAS}).models
    assert (other.diffusion.trained_betas, other.diffusion.timesteps) == (tuple(BETAS), 40)
    assert (other.diffusion.schedule, other.diffusion.beta_end) == (None, None)
    assert other.id == planned(folder).models[0].id, "the same process, whoever gave it"


@pytest.mark.parametrize(("scheduler", "diffusion"), [
    ({"trained_betas": BETAS}, {"timesteps": 10}), ({"trained_betas": BETAS, "num_train_timesteps": 50}, {}),
    ({}, {"trained_betas": BETAS, "timesteps": 10}), ({}, {"trained_betas": BETAS, "schedule": "cosine"}),
    ({"rescale_betas_zero_snr": True}, {}), ({"trained_betas": [0.1, 1.0]}, {}),
    ({"trained_betas": [0.1, 1e-17, 0.2]}, {}), ({"num_train_timesteps": 1, "rescale_betas_zero_snr": True}, {}),
])  # fmt: skip
def test_contradictions_are_one_line(pipeline, scheduler, diffusion):
    recorded(refusal(planned, pipeline(scheduler), diffusion=diffusion, sample={"steps": 1}))


def test_what_is_refused_of_a_scheduler_can_be_overridden_where_the_config_has_a_key(pipeline):
    folder = pipeline(DDIMScheduler(rescale_betas_zero_snr=True))
    assert planned(folder, diffusion={"rescale_betas_zero_snr": False}).models[0].diffusion == DIFFUSION_DEFAULTS
    assert schedules.alpha_bar(planned(folder, diffusion={"prediction": "v_prediction"}).models[0].diffusion)[-1] == 0


@pytest.mark.parametrize("values", [
    {"_class_name": "FlowMatchLCMScheduler"}, {"_class_name": "CosineDPMSolverMultistepScheduler"},
    {"_class_name": "ScoreSdeVeScheduler"}, {"_class_name": "My"}, {"_class_name": ["DDPMScheduler"]},
    {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
    {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, {"thresholding": True},
    {"variance_type": "learned_range"}, {"beta_schedule": "laplace"}, {"predict_epsilon": False},
    {"clip_sample_range": 0}, {"steps_offset": -1}, {"trained_betas": []}, {"beta_start": "small"},
    {"set_alpha_to_one": 2}, {"beta_schedule": ["linear"]}, {"trained_betas": BETAS, "beta_start": "small"},
    {"trained_betas": BETAS, "beta_start": -1}, {"trained_betas": BETAS, "beta_end": [0.1]},
], ids=lambda values: " ".join(values))  # fmt: skip
def test_what_can_not_be_honoured_is_one_line_that_names_it(pipeline, values):
    recorded(refusal(read_checkpoint, str(pipeline(values))))


def test_what_a_schedulers_config_holds_as_null_is_as_if_it_were_not_there(pipeline):
    nulls = ("clip_sample_range", "steps_offset", "num_train_timesteps", "beta_start", "set_alpha_to_one")
    found = read_checkpoint(str(pipeline({"clip_sample": True, **dict.fromkeys(nulls)})))
    assert found.sample == {"clip": "x0"}
    assert found.diffusion.model_dump(exclude_none=True) == {
        "timesteps": 1000, "schedule": "linear", "beta_end": 2e-2, "prediction": "epsilon",
        "rescale_betas_zero_snr": False,
    }  # fmt: skip
    betas = read_checkpoint(str(pipeline({"trained_betas": BETAS, "beta_start": None}, "betas")))
    assert betas.diffusion.trained_betas == tuple(BETAS)


def test_all_forms_of_folders_are_read(pipeline, saved, tmp_path):
    scheduler = PNDMScheduler(num_train_timesteps=100)
    in_pipeline = read_checkpoint(str(pipeline(scheduler)))
    assert in_pipeline.diffusion.set_alpha_to_one is False, "PNDM's default"
    bare = shutil.copytree(saved, tmp_path / "bare")
    assert read_checkpoint(str(bare)).diffusion == Diffusion()
    assert read_checkpoint(str(bare)).sample == {}
    scheduler.save_pretrained(bare)  # as google/ddpm-cifar10-32 is laid out
    (bare / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"], "_class_name": "P"}))
    beside = read_checkpoint(str(bare))
    assert (beside.diffusion, beside.sample) == (in_pipeline.diffusion, in_pipeline.sample)
    assert planned(bare).models[0].id == planned(in_pipeline.path).models[0].id


@pytest.mark.parametrize(("index", "unet"), [
    ({"vqvae": ["diffusers", "VQModel"], "unet": ["diffusers", "UNet2DModel"]}, {}),
    ({"safety_checker": ["a", "B"], "unet": ["diffusers", "UNet2DModel"]}, {}),
    ({"text_encoder": ["a", "B"], "tokenizer": ["a", "C"]}, {}), ({}, {"_class_name": "UNet3DModel"}),
    ({}, {"out_channels": 2}), ({}, {"sample_size": [8]}), ({}, {"sample_size": "8"}), ({}, {"sample_size": [8, 0]}),
    ({}, {"in_channels": "1"}), ({}, {"in_channels": [1, 1]}), ({}, {"out_channels": True}),
    ({}, {"class_embed_type": "identity"}), ({}, {"num_class_embeds": "ten"}),
    ({}, {"num_class_embeds": 11, "null_label": 3}), ({}, {"time_embedding_type": "fourier"}),
])  # fmt: skip
def test_networks_that_can_not_be_sampled_are_one_line(pipeline, index, unet):
    folder = pipeline()
    (folder / "model_index.json").write_text(json.dumps(index))
    edit(folder / "unet/config.json", **unet)
    recorded(refusal(read_checkpoint, str(folder)))


@pytest.mark.parametrize(
    "name",
    ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model-00001-of-00002.safetensors", "model.ckpt"],
)
def test_other_files_of_weights_are_one_line(pipeline, name):
    folder = pipeline() / "unet"
    (folder / WEIGHTS_FILE).rename(folder / name)
    recorded(refusal(read_checkpoint, str(folder)))


def test_damaged_and_divided_weights_are_one_line(pipeline):
    folder = pipeline() / "unet"
    whole = (folder / WEIGHTS_FILE).read_bytes()
    for content in (whole[: len(whole) // 2], b"version https://git-lfs.github.com/spec/v1\noid sha256:0", b""):
        (folder / WEIGHTS_FILE).write_bytes(content)
        recorded(refusal(read_checkpoint, str(folder)), "safetensors")
    (folder / WEIGHTS_FILE).write_bytes(whole)
    (folder / f"{WEIGHTS_FILE}.index.json").write_text("{}")
    recorded(refusal(read_checkpoint, str(folder)), "several")


def loaded(folder):
    return load_network(saved_network(Path(folder)), DIFFUSION_DEFAULTS, "cpu")


def as_pickle(folder):
    torch.save(load_file(folder / WEIGHTS_FILE), folder / PICKLED_WEIGHTS_FILE)
    return folder


def test_pickled_tensors_are_read_where_there_is_no_safetensors(pipeline, tmp_path):
    folder = as_pickle(pipeline() / "unet")
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, both = loaded(folder)(x, at(500)), read_checkpoint(str(folder)).weights_sha256
    (folder / WEIGHTS_FILE).unlink()
    assert torch.equal(loaded(folder)(x, at(500)), expected)
    [model] = planned(folder).models
    assert RunDir(tmp_path).weights_sha256(model, "ema") == model.source.checkpoint.weights_sha256 != both


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_of_more_than_tensors_is_refused_and_not_run(pipeline, tmp_path, write):
    folder, marker = pipeline() / "unet", tmp_path / "it was run"
    write(load_file(folder / WEIGHTS_FILE) | {"x": Malicious(marker)}, folder / PICKLED_WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    assert planned(folder).models, "only a worker opens it"
    with raises(WorkerRefusal):
        loaded(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("conv_in.bias", None),
        ("extra.weight", torch.zeros(1)),
        ("mid_block.resnets.0.conv1.weight", torch.zeros(8, 8, 1, 1)),
    ],
)
def test_weights_of_another_network_are_one_line(pipeline, name, tensor):
    """diffusers itself warns, and goes on with whatever lies in memory."""
    folder = pipeline() / "unet"
    tensors = load_file(folder / WEIGHTS_FILE) | {name: tensor}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / WEIGHTS_FILE)
    read_checkpoint(str(folder))
    recorded(refusal(loaded, folder))
    edit(folder / "config.json", up_block_types=["UpBlock2D"])
    recorded(refusal(loaded, folder), "provide")


def test_raw_weights_are_those_of_unet_raw(tmp_path):
    unet = config.Unet(**{key: value for key, value in UNET.items() if key in config.Unet.model_fields})
    torch.manual_seed(0)
    raw, ema = (build_unet(unet, (1, 8, 8)) for _ in range(2))
    save_pipeline(tmp_path / "p", raw, ema_start(ema), DIFFUSION_DEFAULTS)
    found, rundir = planned(tmp_path / "p", grid={"weights": ["ema", "raw"]}), RunDir(tmp_path)
    assert len(found.models) == 1
    assert [cell.axes for cell in found.cells] == [{"weights": "ema"}, {"weights": "raw"}]
    x = torch.randn(2, 1, 8, 8)
    hashes = set()
    for cell, network in zip(found.cells, (ema, raw), strict=True):
        hashes.add(rundir.sample_metadata(cell)["weights_sha256"])
        output = load_network(rundir.network(cell.model, cell.settings.weights), cell.model.diffusion, "cpu")(x, at(7))
        torch.testing.assert_close(output, network(x, 6).sample, rtol=0, atol=1e-5)
    assert len(hashes) == 2


def test_raw_weights_of_a_model_made_elsewhere_are_refused_when_it_is_planned(pipeline):
    recorded(refusal(planned, pipeline(), sample={"weights": "raw"}))


@pytest.mark.parametrize("scheduler", [DDIMScheduler(40, trained_betas=BETAS), DDIMScheduler(steps_offset=1), None])
def test_a_run_goes_on_knowing_of_a_model_that_is_gone(pipeline, tmp_path, scheduler):
    folder, rundir = pipeline(scheduler), RunDir(tmp_path / "run")
    rundir.root.mkdir()
    [before] = planned(folder, read=rundir.read_checkpoint).models
    rundir.record_model(before)
    shutil.rmtree(folder)
    assert planned(folder, read=rundir.read_checkpoint).models == (before,)


def test_a_model_on_the_hub_is_downloaded_once_and_then_found_without_it(pipeline, tmp_path, monkeypatch, capsys):
    folder = pipeline(DDIMScheduler(num_train_timesteps=500))
    as_pickle(folder / "unet")
    (folder / "README.md").write_text("not wanted")
    with serving({"models/someone/something": folder}, tmp_path / "cache", monkeypatch) as requests:
        first = read_checkpoint("someone/something")
        paths = {line.rsplit("/", 1)[-1] for line in requests if line.startswith("GET") and "/resolve/" in line}
        assert paths == {"config.json", WEIGHTS_FILE, "scheduler_config.json"}
    here = read_checkpoint(str(folder))
    assert (first.commit, first.weights_sha256) == (commit(folder), here.weights_sha256)
    assert (first.diffusion, first.sample) == (here.diffusion, here.sample)
    recorded(announced(planned("someone/something").models[0]).replace(first.commit[:10], "COMMIT"), "something")
    assert read_checkpoint("someone/something") == first, "the server is gone"
    assert planned("someone/something").models[0].id == planned(folder).models[0].id
    assert loaded(first.unet_folder)(torch.zeros(1, 1, 8, 8), at(1)).shape == (1, 1, 8, 8)
    assert capsys.readouterr().out == ""


def test_a_pickle_on_the_hub_is_taken_where_there_is_nothing_else(pipeline, tmp_path, monkeypatch):
    folder = as_pickle(pipeline(DDIMScheduler()) / "unet")
    (folder / WEIGHTS_FILE).unlink()
    with serving({"models/someone/something": folder}, tmp_path / "cache", monkeypatch):
        assert (Path(read_checkpoint("someone/something").unet_folder) / PICKLED_WEIGHTS_FILE).is_file()
    assert read_checkpoint("someone/something").weights_sha256 == read_checkpoint(str(folder)).weights_sha256


def test_a_run_keeps_to_the_commit_that_it_began_with(pipeline, tmp_path, monkeypatch):
    folder, rundir = pipeline(DDIMScheduler()), RunDir(tmp_path / "run")
    rundir.root.mkdir()
    with serving({"models/someone/something": folder}, tmp_path / "cache", monkeypatch) as requests:
        [before] = planned("someone/something", read=rundir.read_checkpoint).models
        rundir.record_model(before)
        assert json.loads((rundir.models / before.id / "model.json").read_text())["commit"] == commit(folder)
        DDIMScheduler(num_train_timesteps=500).save_pretrained(folder / "scheduler")
        assert planned("someone/something").models[0].diffusion.timesteps == 500, "a new run has the new one"
        requests.clear()
        assert planned("someone/something", read=rundir.read_checkpoint).models == (before,)
        assert requests == []


def test_what_the_hub_can_not_give_is_one_line(pipeline, tmp_path, monkeypatch):
    with serving({"models/someone/something": pipeline()}, tmp_path / "cache", monkeypatch):
        recorded(refusal(read_checkpoint, "someone/else"))
        recorded(refusal(read_checkpoint, "someone/something@v2"), "revision")
    gone = refusal(read_checkpoint, "someone/something")
    recorded(gone.replace("ConnectionError", "ConnectError"), "cache")  # as requests and httpx name it


@pytest.mark.parametrize("path", ["somewhere", "./some/where", "/some/where/else", "../where", "a b/c"])
def test_what_is_no_id_is_not_asked_for(path):
    assert "no folder" in refusal(read_checkpoint, path)


def test_the_weights_of_however_many_models_are_hashed_once(tmp_path, monkeypatch):
    """The cells of a grid that lists S before its checkpoints come back to each of a hundred checkpoints for each S."""
    files = [tmp_path / f"{number}.safetensors" for number in range(100)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
    hashed = []
    monkeypatch.setattr(checkpoint, "file_sha256", lambda path: [hashed.append(path), file_sha256(path)][1])
    first, again = ([checkpoint.weights_sha256(file) for file in files] for _ in range(2))
    assert first == again
    assert hashed == files
    files[0].write_bytes(b"other")
    assert checkpoint.weights_sha256(files[0]) != first[0]


@pytest.mark.parametrize("name", ["edm-cifar10-32x32-uncond-vp.pkl", "https://nvlabs.example/network-snapshot-1.pkl"])
def test_a_pickle_of_nvlabs_is_refused_by_its_name_with_the_way_to_convert_it(name):
    recorded(refusal(read_checkpoint, name))


def test_so_is_one_as_weights_by_what_it_holds_and_it_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pickle.load", lambda *_: pytest.fail("it was opened"))
    theirs = b"\x80\x04\x95ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
    for name, content in {
        "edm.pt": theirs,
        "edm-cifar10-32x32-uncond-vp.pkl": b"anything",
        "edm2-img512-xs-2147483-0.130.pkl": b"anything",
        "network-snapshot-000100.pkl": b"anything",
    }.items():
        (tmp_path / name).write_bytes(content)
        recorded(refusal(custom_process.describe, "mine:load", name, (3, 32, 32), DIFFUSION_DEFAULTS), "pickle")
    (tmp_path / "renamed").write_bytes(theirs)
    recorded(refusal(read_checkpoint, "renamed"), "pickle")
    refuse_pickle("model.weights", str(tmp_path / "absent"))
    (tmp_path / "mine.pkl").write_bytes(b"\x80\x04 weights of another")
    refuse_pickle("model.weights", str(tmp_path / "mine.pkl"))
