import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from snapshots import raises

from taugrid.config import Config, Data, Diffusion, Sample, validate
from taugrid.errors import UserError, WeightsChanged
from taugrid.orchestrator.baseline.snapshot import Network
from taugrid.orchestrator.nightly.judging import unloadable
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.plan.record import from_json, to_json
from taugrid.orchestrator.plan.sections import data_identity
from taugrid.orchestrator.plan.sources import Oracle
from taugrid.orchestrator.work.ode import ode_cells
from taugrid.workers.network.checkpoint import WEIGHTS_FILE, read_checkpoint

UNET = {"block_out_channels": [8, 8], "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
BASE = {"name": "x", "model": {"unet": {**UNET, "norm_num_groups": 4}}}


def planned(**sections):
    seeded = {name: {"seed": 0} | sections.pop(name, {}) for name in ("train", "sample")}
    return plan(validate(Config, BASE | sections | seeded, "test"))


def ids(p):
    return [cell.id for cell in p.cells]


FIRST = {"batch_size": 256, "shard_evaluations": 50_000}
"""The defaults of the first version, which hashes leave out."""


def test_identities_never_change():
    """People have runs under these names. If this fails, an edit has orphaned every run there is: undo the edit."""
    grid = [{"steps": [10], "eta": [0.2]}, {"steps": [10], "eta": ["sigma_hat"], "clip": ["x0_and_eps"]}]
    p = planned(grid=grid, sample=FIRST)
    assert [model.id for model in p.models] == ["3acdc323b9"]
    assert [cell.name for cell in p.cells] == ["S0010-eta0.2-e224308b39", "S0010-sigma_hat-ed671f8a81"]


@pytest.mark.parametrize(("sections", "model", "cell"), [
    ({"model": {"oracle": "gaussian"}, "data": {"name": "gaussian", "shape": [3, 4, 4]}}, "f26d713d20", "ee9543e79e"),
    ({"model": {"oracle": "two-points"}, "data": {"name": "two-points"}}, "ea13e3cb25", "379df747a3"),
    ({"data": {"split": "train"}}, "c97e76902b", "546f5dc647"),
    ({"data": {"name": "gaussian", "shape": [3, 4, 4]}}, "ea86af1bda", "f687496a85"),
    ({"data": {"name": "gaussian", "shape": [1, 8, 8]}}, "c82dd0a5d8", "906cb95e28"),
    ({"diffusion": {"schedule": "jsd", "prediction": "v_prediction"}}, "12661fe82a", "48de6821e5"),
    ({"train": {"loss_weights": {"sigma_1": "sigma_hat", "steps": 20}}}, "184bfad426", "ec6095b884"),
    ({"sample": {"spacing": [1, 10, 100], "steps": 3}}, "3acdc323b9", "f29e517e7a"),
    ({"sample": {"spacing": "ermongroup-quad"}}, "3acdc323b9", "58007e7d61"),
    ({"sample": {"precision": "bf16"}}, "3acdc323b9", "bd01f22443"),
    ({"sample": {"compile": "default"}}, "3acdc323b9", "3cd275365e"),
])  # fmt: skip
def test_identities_of_later_keys_never_change(sections, model, cell):
    """As above."""
    p = planned(**sections | {"sample": sections.get("sample", {}) | FIRST})
    assert (p.models[0].id, p.cells[0].id) == (model, cell)


CIFAR10, CELEBA = {"name": "cifar10"}, {"name": "celeba"}
BEDROOM = {"name": "lsun", "category": "bedroom", "split": "train"}
DEFAULTS = {"steps": 50, "eta": 0, "clip": "none", "spacing": "linear", "precision": "float32", "compile": "none"}


@pytest.mark.parametrize(
    ("section", "before"),
    [
        ({"train": {"workers": 2, "checkpoint_every": 7, "tensorboard": True}}, {}),
        ({"train": {"learning_rate": "2e-4"}, "diffusion": {"timesteps": 1000, "schedule": "linear"}}, {}),
        ({"sample": DEFAULTS}, {}),
        ({"sample": {"num_samples": 7}}, {}),
        ({"cluster": {"workers": 3}}, {}),
        ({"evaluate": {"isc_splits": 3}}, {}),
        ({"name": "y"}, {}),
        ({"data": CIFAR10 | {"root": "elsewhere", "download": True}}, {"data": CIFAR10}),
        ({"data": CELEBA | {"shape": [3, 64, 64]}}, {"data": CELEBA}),
        ({"data": BEDROOM | {"shape": [3, 256, 256]}}, {"data": BEDROOM}),
    ],
)
def test_what_changes_no_image_changes_no_identity(section, before):
    assert ids(planned(**section)) == ids(planned(**before))


@pytest.mark.parametrize(
    ("section", "before"),
    [
        ({"train": {"steps": 7}}, {}),
        ({"sample": {"batch_size": 7}}, {}),
        ({"sample": {"eta": 0.1}}, {}),
        ({"sample": {"weights": "raw"}}, {}),
        ({"sample": {"precision": "tf32"}}, {}),
        ({"sample": {"compile": "default"}}, {}),
        ({"diffusion": {"schedule": "cosine"}}, {}),
        ({"data": CELEBA | {"shape": [3, 32, 32]}}, {"data": CELEBA}),
        ({"data": BEDROOM | {"shape": [3, 128, 128]}}, {"data": BEDROOM}),
    ],
)
def test_what_changes_images_changes_the_identity(section, before):
    assert ids(planned(**section)) != ids(planned(**before))


def test_a_grid_is_a_product_and_a_list_of_grids_their_union():
    p = planned(grid=[{"steps": [5, 10], "eta": [0, 1]}, {"steps": [5, 10], "eta": ["sigma_hat"], "clip": ["x0"]}])
    points = [(cell.settings.steps, cell.settings.eta, cell.settings.clip) for cell in p.cells]
    numbers = [(steps, eta, "none") for steps in (5, 10) for eta in (0, 1)]
    assert points == [*numbers, (5, "sigma_hat", "x0"), (10, "sigma_hat", "x0")]
    assert len(p.models) == 1
    assert list(p.cells[0].axes) == []


def test_dotted_keys_make_models_and_each_is_made_once():
    p = planned(grid={"diffusion.schedule": ["linear", "cosine"], "steps": [5, 10], "seed": [1, 2]})
    assert [model.diffusion.schedule for model in p.models] == ["linear", "cosine"]
    assert len(p.cells) == 8
    assert list(p.cells[0].axes) == ["diffusion.schedule", "seed"]
    assert p.cells[0].axes == {"diffusion.schedule": "linear", "seed": 1}


def test_an_axis_named_in_one_mapping_alone_has_its_default_in_the_others():
    p = planned(grid=[{"steps": [5]}, {"steps": [5], "diffusion.schedule": ["cosine"]}])
    assert [cell.axes["diffusion.schedule"] for cell in p.cells] == ["linear", "cosine"]


def of_classes(num_classes=10, **sections):
    unet = BASE["model"]["unet"] | {"num_classes": num_classes}
    return {"model": {"unet": unet}, "sample": {"labels": None if num_classes is None else "balanced"}} | sections


def test_classes_make_another_model_and_so_does_the_share_of_dropped_labels():
    models = [
        planned(**of_classes(k, train={"label_dropout": p})).models[0] for k, p in ((10, 0), (10, 0.1), (10, 0.2))
    ]
    assert len({model.id for model in [*models, planned().models[0]]}) == 4
    same = planned(**of_classes(None, train={"label_dropout": 0.0}))
    assert ids(same) == ids(planned()), "as if the keys were not there"
    recorded = to_json(planned())["models"][0]["source"]
    assert "num_classes" not in recorded["unet"]
    assert "label_dropout" not in recorded["train"]
    restored = from_json(json.loads(json.dumps(to_json(planned(**of_classes(train={"label_dropout": 0.1}))))))
    assert (restored.models[0].source.unet.num_classes, restored.models[0].source.train.label_dropout) == (10, 0.1)


@given(
    n=st.integers(1, 5000), more=st.integers(0, 5000), steps=st.integers(1, 1000),
    batch=st.integers(1, 600), evaluations=st.integers(1, 10**6),
)  # fmt: skip
def test_shards_tile_the_cell_in_whole_batches_and_growing_moves_no_boundary(n, more, steps, batch, evaluations):
    def shards(num_samples):
        sample = {"steps": steps, "num_samples": num_samples, "batch_size": batch, "shard_evaluations": evaluations}
        return planned(sample=sample).cells[0].shards

    small, large = shards(n), shards(n + more)
    assert [s.start for s in small] == [0, *(s.stop for s in small[:-1])]
    assert small[-1].stop == n
    assert all(s.start % batch == 0 and s.images > 0 for s in small)
    assert small[:-1] == large[: len(small) - 1], "only the last shard may be redone when a cell grows"
    assert small[-1].start == large[len(small) - 1].start


def test_shards_are_sized_by_cost():
    p = planned(sample={"num_samples": 3000, "batch_size": 100, "shard_evaluations": 50_000}, grid={"steps": [10, 100]})
    shards = [cell.shards for cell in p.cells]
    assert list(map(len, shards)) == [1, 6]  # 5000 and 500 images for 50,000 evaluations
    assert [cell.num_shards for cell in p.cells] == [1, 6]
    assert [cell.first_shard for cell in p.cells] == [first for first, *_ in shards]
    assert [cell.total_nfe for cell in p.cells] == [sum(shard.total_nfe for shard in its) for its in shards]
    assert p.longest is p.cells[1]


def checkpoint_folder(folder: Path, weights: bytes = b"w", **unet) -> Path:
    (folder / "unet").mkdir(parents=True)
    config = {"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1} | unet
    (folder / "unet/config.json").write_text(json.dumps(config))
    ends = {"conv_in.weight": np.zeros((8, 1, 3, 3)), "conv_out.weight": np.zeros((1, 8, 3, 3))}
    save_file(ends | {"others": np.frombuffer(weights, np.uint8)}, folder / "unet" / WEIGHTS_FILE)
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text('{"clip_sample": false}')
    return folder


def test_a_checkpoint_is_known_by_its_content_not_its_path(tmp_path):
    one = checkpoint_folder(tmp_path / "one")
    same = checkpoint_folder(tmp_path / "same")
    other = checkpoint_folder(tmp_path / "other", weights=b"v")
    heads = checkpoint_folder(tmp_path / "heads", attention_head_dim=4)
    names = [ids(planned(model={"checkpoint": str(folder)})) for folder in (one, same, other, heads)]
    assert names[0] == names[1]
    assert len({cell for [cell] in names}) == 3, "equal weights with other heads of attention compute other images"
    bare = planned(model={"checkpoint": str(one / "unet")})
    assert ids(bare) == names[0], "a bare network with default settings is the same model"


def test_checkpoints_are_a_grid_axis(tmp_path):
    folders = [str(checkpoint_folder(tmp_path / name, name.encode())) for name in ("a", "b")]
    p = planned(model={}, grid={"model.checkpoint": folders, "steps": [5]})
    assert len(p.models) == 2
    assert [cell.axes["model.checkpoint"] for cell in p.cells] == folders


def test_an_oracle_is_a_model_of_its_data():
    data = {"name": "gaussian", "shape": [1, 4, 4]}
    p = planned(model={"oracle": "gaussian"}, data=data, grid={"steps": [5, 10]})
    [model] = p.models
    assert isinstance(model.source, Oracle)
    assert (model.source.distribution, model.image_shape) == ("gaussian", (1, 4, 4))
    split = planned(model={"oracle": "gaussian"}, data=data | {"split": "test"})
    assert split.models[0].id == model.id, "an oracle is trained on no split"
    others = [
        planned(model={"oracle": "gaussian"}, data={"name": "gaussian", "shape": [1, 4, 2]}),
        planned(model={"oracle": "gaussian"}, data=data, diffusion={"schedule": "cosine"}),
        planned(model={"oracle": "two-points"}, data=data | {"name": "two-points"}),
    ]
    assert len({model.id, *(other.models[0].id for other in others)}) == 4


DROPOUT = {"unet": BASE["model"]["unet"] | {"dropout": 0.1}}
REFUSED = [
    *({"grid": grid} for grid in (
        {"step": [1]}, {"sample.steps": [1]}, {"evaluate.seed": [1]}, {"steps": [10, 10]}, {"train.workers": [1, 2]},
        [{"steps": [10], "eta": [0]}, {"steps": [10]}], {"num_samples": [1, 2]}, {"steps": [2000]}, {"eta": [2]},
        {"diffusion.schedule": ["lineal"]},
    )),
    of_classes(9),
    of_classes(11, data={"name": "cifar10"}),
    of_classes(2, data={"name": "gaussian"}),
    of_classes(40, data={"name": "celeba"}),
    {"train": {"label_dropout": 0.1}},
    {"train": {"workers": 2}, "model": DROPOUT},  # masks are drawn by one worker
    {"model": {}},
    {"model": {"oracle": "gaussian"}},
    {"model": {"oracle": "gaussian"}, "data": {"name": "gaussian"}, "diffusion": {"prediction": "sample"}},
    {"diffusion": {"schedule": "jsd"}},
    {"sample": {"spacing": [10, 5], "steps": 2}},
    {"sample": {"spacing": [10, 50], "steps": 3}},
    {"sample": {"spacing": [10, 2000], "steps": 2}},
    {"data": {"shape": [1, 8, 8]}},
    {"data": {"name": "gaussian", "shape": [2, 8, 8]}},
    {"diffusion": {"schedule": "constant", "beta_end": 0.9}},
    {"diffusion": {"beta_start": 1e-17}},
    {"train": {"loss_weights": {"sigma_1": 0.1}}, "diffusion": {"process": "flow"}},
    *({"train": {"loss_weights": weights}} for weights in (
        {"eta": 0, "sigma_1": 0.1}, {"eta": 1}, {"sigma_1": 0.1, "steps": 2000},
        {"sigma_1": 0.1, "spacing": "leading", "steps": 10},
    )),
]  # fmt: skip


@pytest.mark.parametrize("sections", REFUSED)
def test_what_neither_the_data_nor_the_mathematics_allow_is_refused(sections):
    with raises(UserError):
        planned(**sections)


def test_times_may_be_listed():
    p = planned(grid={"steps": [3], "spacing": [[1, 10, 999], [2, 20, 1000], "leading"]})
    assert [cell.tau for cell in p.cells] == [(1, 10, 999), (2, 20, 1000), (1, 334, 667)]
    assert len(set(ids(p))) == 3
    assert [cell.settings.spacing_name for cell in p.cells] == ["1,10,999", "2,20,1000", "leading"]


def test_network_evaluations_are_those_that_are_made():
    """The released code's uniform spacing makes 31 steps for S = 30; people hear of it, and the plan prices 31."""
    p = planned(grid={"steps": [30], "spacing": ["ermongroup-uniform", "ermongroup-quad"]}, sample={"num_samples": 10})
    assert [len(cell.tau) for cell in p.cells] == [31, 30]
    assert sum(shard.total_nfe for shard in p.cells[0].shards) == 310
    assert [("31" in remark, "repeats" in remark) for remark in p.remarks] == [(True, False), (False, True)]


def test_cells_that_differ_in_eta_and_clip_share_one_path_of_the_ode():
    p = planned(grid={"steps": [5, 10], "eta": [0.0, 1.0, "sigma_hat"], "clip": ["none", "x0"]})
    cells = ode_cells(p, num_samples=7)
    assert [(c.settings.steps, c.settings.eta, c.settings.clip) for c in cells] == [(5, 0.0, "none"), (10, 0.0, "none")]
    plain = next(c for c in p.cells if c.settings.steps == 5 and c.settings.eta == 0 and c.settings.clip == "none")
    assert cells[0].id == plain.id, "the deterministic cell itself"


def test_later_keys_at_their_defaults_are_not_recorded():
    """Baselines and sample files of earlier versions lack them, and what they record must still be equal."""
    betas = "timesteps schedule beta_start beta_end prediction trained_betas rescale_betas_zero_snr set_alpha_to_one"
    steps = "steps eta spacing sampler clip clip_range steps_offset weights precision"
    assert set(Diffusion().recorded) == set(betas.split())
    assert set(Sample().recorded) == {*steps.split(), "num_samples", "batch_size", "seed", "shard_evaluations"}


def test_other_labels_of_a_users_images_make_another_model():
    data = Data(name="folder", root="/x", shape=(1, 8, 8))
    identified = data_identity(data, lambda data, of="images": of, has_labels=True)
    assert (identified["sha256"], identified["labels"]) == ("images", "labels")


def test_a_cell_that_is_named_with_another_n_is_refused_though_an_ignored_key_differs():
    with pytest.raises(UserError):
        planned(grid=[{"sampler": ["heun"], "zip": [{"eta": [0.0, 1.0], "num_samples": [10, 20]}]}])


def test_weights_that_were_replaced_since_they_were_planned_are_refused(tmp_path):
    model = planned(model={"checkpoint": str(checkpoint_folder(tmp_path / "c"))}).models[0]
    other = checkpoint_folder(tmp_path / "other", weights=b"v")
    (other / "unet" / WEIGHTS_FILE).rename(tmp_path / "c/unet" / WEIGHTS_FILE)
    with pytest.raises(WeightsChanged):
        model.source.network(tmp_path, "ema")


def test_raw_weights_are_not_the_averaged_ones():
    source = planned().models[0].source
    files = [source.weights_file(Path("models"), weights).relative_to("models") for weights in ("ema", "raw")]
    assert files == [Path("unet") / WEIGHTS_FILE, Path("unet_raw") / WEIGHTS_FILE]


def test_a_baselines_folder_with_other_weights_is_not_sampled_again(tmp_path):
    folder = str(checkpoint_folder(tmp_path / "c"))
    averaged = SimpleNamespace(settings={"weights": "ema"})
    known = (read_checkpoint(folder).weights_sha256, "0" * 64)
    reasons = [unloadable(Network(digest, {}, None, folder), averaged, trust_code=False) for digest in known]
    assert [reason is None for reason in reasons] == [True, False]
