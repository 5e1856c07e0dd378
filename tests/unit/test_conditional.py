"""Networks with classes: a label's way to the network, the files and the Python API, and what is refused."""

import json
import logging
import shutil
from dataclasses import replace
from functools import partial

import diffusers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from denoisers import at as point
from in_process import drive, small_run
from snapshots import raises, recorded
from tiny import UNET

import taugrid
from taugrid import parquet
from taugrid.config import DIFFUSION_DEFAULTS, Config, validate
from taugrid.errors import CustomCodeError, UserError, WorkerRefusal
from taugrid.images import to_uint8
from taugrid.jobs import Conditions
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.plan import grid, record
from taugrid.orchestrator.plan.scoring import scoring_of
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.work.growing import Growth, Until
from taugrid.storage import LOCAL
from taugrid.workers import schedules
from taugrid.workers.accelerator.arithmetic import adapted
from taugrid.workers.accelerator.policy import Arithmetic, policy
from taugrid.workers.conditions import LabelRule
from taugrid.workers.diffusion import oracle
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.gaussian import Classes, Gaussian, gaussian
from taugrid.workers.diffusion.noise import normal
from taugrid.workers.diffusion.process import path
from taugrid.workers.network import custom
from taugrid.workers.network.load import load_network
from taugrid.workers.samplers import ddim

pytestmark = pytest.mark.usefixtures("one_thread")

K, SHAPE = 3, (1, 8, 8)
CONFIG = """
name: small
model: {{checkpoint: {folder}}}
data: {{name: gaussian, shape: [1, 8, 8]}}
sample: {{seed: 0, num_samples: {n}, batch_size: 4, shard_evaluations: 16, steps: 2, labels: {labels}}}
grid: {{}}
evaluate: {{metrics: [fid], extractor: pixels}}
cluster: {{workers: 1}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, one_thread):
    """A pipeline of a network with 3 classes and a null class, as taugrid trains it."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, num_class_embeds=K + 1, **UNET)
    unet.register_to_config(null_label=K)
    place = tmp_path_factory.mktemp("conditional") / "net"
    diffusers.DDIMPipeline(unet=unet, scheduler=diffusers.DDIMScheduler(clip_sample=False)).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def bare(folder, tmp_path_factory):
    """The network alone, of whose classes nothing is known but their number."""
    place = shutil.copytree(folder / "unet", tmp_path_factory.mktemp("bare") / "unet")
    config = json.loads((place / "config.json").read_text())
    del config["null_label"]
    (place / "config.json").write_text(json.dumps(config))
    return place


def planned(model, dry=False, shape=SHAPE, **sample):
    network = {"checkpoint": str(model)} if not isinstance(model, dict) else model
    values = {"name": "x", "model": network, "data": {"name": "gaussian", "shape": shape}}
    return grid.plan(validate(Config, values | {"sample": {"seed": 0, "steps": 2} | sample}, "test"), dry=dry)


def refusal(*arguments, **sample):
    with pytest.raises(UserError) as caught:
        planned(*arguments, **sample)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labels_file(path, values=(0, 1, 2) * 10, kind=None):
    pq.write_table(pa.table({"class": pa.array(values, kind)}), path)
    return {"parquet": str(path), "column": "class"}


def rows(run):
    files = sorted(run.glob("samples/*/part-*.parquet"))
    table = pa.concat_tables([pq.read_table(file) for file in files])
    images = np.concatenate([images for file in files for _, images in parquet.read_images(file)])
    return table, images


def one_by_one(folder, labels, steps=2):
    """Images of diffusers' own U-Net and our DDIM, each with its label and alone in its batch."""
    unet = diffusers.UNet2DModel.from_pretrained(folder / "unet").eval()
    [cell] = planned(folder, labels="balanced", steps=steps).cells
    process = schedules.process(cell.model.diffusion)
    images = []
    for n, label in enumerate(labels):

        def network(x, at, condition, label=label):
            with torch.no_grad():
                return unet(x, torch.tensor([at.time]), torch.tensor([int(label)])).sample

        noise = partial(normal, 0, torch.tensor([n]), shape=SHAPE)
        images.append(ddim.sample(noise(0), path(process, cell.tau), Denoise(network, process), noise, 0.0))
    return to_uint8(torch.cat(images).numpy())


@pytest.fixture(scope="module")
def ran(folder, tmp_path_factory):
    """The directory of a run of 10 balanced samples that was then grown to 22, and its opened config."""
    place = tmp_path_factory.mktemp("ran")
    for n in (10, 22):
        with small_run(place, CONFIG.format(folder=folder, n=n, labels="balanced")) as opened:
            outcome, _ = drive(opened, place / "run", LOCAL)
            assert not outcome.missing
    return place / "run", opened


def test_each_sample_is_that_of_its_label_whatever_its_batch_and_when_its_cell_grew(folder, ran):
    table, images = rows(ran[0])
    labels = LabelRule("balanced", 0, K).at(np.arange(22))
    assert table["index"].to_pylist() == list(range(22))
    assert table["label"].to_pylist() == labels.tolist()
    alone = one_by_one(folder, labels)
    assert np.abs(images.astype(int) - alone).max() <= 1
    others = one_by_one(folder, (labels + 1) % K)
    assert (np.abs(images.astype(int) - others).max(axis=(1, 2, 3)) > 1).all(), "labels count"


def test_files_of_conditional_cells_have_two_columns_more(ran, tmp_path):
    file = min(ran[0].glob("samples/*/part-*.parquet"))
    schema = pq.read_schema(file)
    assert schema.names[-2:] == ["label", "guidance"]
    assert (schema.field("label").type, schema.field("guidance").type) == (pa.int32(), pa.float64())
    assert set(pq.read_table(file)["guidance"].to_pylist()) == {1.0}
    about = parquet.inspect(file).metadata
    assert about["conditions"] == {"labels": "balanced", "classes": K}
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"dtype": "int32", "_type": "Value"}
    score = json.loads(min(ran[0].glob("scores/*.json")).read_text())
    assert score["protocol"]["conditions"] == {"labels": "balanced", "classes": K}
    assert "label" not in parquet.sample_schema({}).names


def test_labels_go_on_from_one_row_group_to_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("taugrid.parquet.samples.ROWS_PER_GROUP", 3)
    images, labels = np.zeros((7, 1, 2, 2), np.uint8), np.arange(40, 47, dtype=np.int32)
    settings = {name: None for name, _ in parquet.writer.SETTING_FIELDS} | {"guidance": 1.0}
    with parquet.PartWriter(tmp_path / "p", parquet.sample_schema({}, conditional=True)) as part:
        with parquet.SampleWriter(part, settings, 100, labels=labels) as writer:
            writer.append(images)
            writer.finish()
        part.commit(replace=False)
    found = pq.read_table(tmp_path / "p")
    assert (writer.counts, found["index"].to_pylist()) == ([3, 3, 1], [*range(100, 107)])
    assert found["label"].to_pylist() == labels.tolist()


def test_images_in_memory_are_those_of_the_run(folder, bare, ran):
    _, images = rows(ran[0])
    settings = {"steps": 2, "batch_size": 4, "labels": "balanced"}
    assert np.array_equal(taugrid.sample(folder, 22, **settings), images[:, 0])
    unet = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    here = taugrid.sample(unet, [7, 2], **{**settings, "labels": LabelRule("balanced", 0, K).at(np.arange(8))})
    assert np.abs(here.astype(int) - images[[7, 2], 0]).max() <= 1
    assert taugrid.sample(bare, 2, **settings).shape == (2, 8, 8), "all four rows are classes"


def test_the_folder_says_its_null_class_to_taugrid_and_nothing_to_diffusers(folder, bare, caplog):
    cells = {name: planned(place, labels="balanced").cells[0] for name, place in (("net", folder), ("bare", bare))}
    assert cells["net"].model.source.conditions == Conditions(K, K)
    assert cells["bare"].model.source.conditions == Conditions(K + 1, None)
    recorded(cells["net"].model.source.description(cells["net"].model.diffusion, []).partition("scheduler: ")[2])
    assert cells["net"].model.id != cells["bare"].model.id
    spec = cells["net"].model.source.network(None, "ema")
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    load_network(spec, cells["net"].model.diffusion, "cpu")
    logger.removeHandler(caplog.handler)
    assert "null_label" not in caplog.text


def test_labels_make_cells_and_a_columns_content_counts(folder, tmp_path):
    rules = ["balanced", "random", 1, [1], [2, 1]]
    one, same = labels_file(tmp_path / "a.parquet"), labels_file(tmp_path / "b.parquet", kind=pa.uint8())
    other = labels_file(tmp_path / "c.parquet", (2,) * 30)
    every = [planned(folder, labels=rule, num_samples=30).cells[0] for rule in (*rules, one, other)]
    assert len({cell.id for cell in every}) == len(every)
    assert every[0].id == planned(folder, labels="balanced", num_samples=5).cells[0].id
    moved = planned(folder, labels=same, num_samples=30).cells[0]
    assert moved.id == every[-2].id
    directory = RunDir(tmp_path / "run")
    blobs = [directory.sample_metadata(cell) for cell in (moved, every[-2])]
    assert blobs[0] == blobs[1], "the path is in no file"
    assert (moved.label_rule.at(np.arange(6)) == [0, 1, 2, 0, 1, 2]).all()
    shard = moved.label_rule.of_rows(4, 9)
    assert (len(shard.column), shard.at(np.array([5])).tolist()) == (5, [2])
    with_seed = grid.with_settings(every[0], {"seed": 1})
    assert (with_seed.label_rule.seed, with_seed.id != every[0].id) == (1, True)


@pytest.mark.parametrize("labels", [None, 4, [0, 3]])
def test_labels_that_the_network_does_not_take_are_refused(folder, labels):
    recorded(refusal(folder, labels=labels))


@pytest.mark.parametrize(
    ("values", "kind", "column"),
    [
        ((0.0, 1.0), None, "class"),
        ((0, None), None, "class"),
        ((0, 1), None, "klass"),
        ((0, 3), None, "class"),
        ((0, 2**64 - 1), pa.uint64(), "class"),
        ((0,), None, "class"),
    ],
)
def test_columns_that_are_no_labels_are_refused(folder, tmp_path, values, kind, column):
    given = labels_file(tmp_path / "a.parquet", values, kind) | {"column": column}
    recorded(refusal(folder, labels=given, num_samples=2))


def test_each_image_in_memory_needs_a_row(folder, tmp_path):
    given = labels_file(tmp_path / "a.parquet")
    with raises(UserError):
        taugrid.sample(folder, [30], labels=given)
    (tmp_path / "a.parquet").write_text("text")
    recorded(refusal(folder, labels=given), "read")
    images = [taugrid.sample(folder, 3, labels=labels, steps=2) for labels in ([0, 1], range(2), np.arange(2))]
    assert np.array_equal(images, [images[0]] * 3)


def test_labels_of_an_unconditional_network_are_refused_and_recorded_nowhere():
    recorded(refusal({"oracle": "gaussian"}, labels=[0, 1]))
    with raises(UserError):
        taugrid.sample(lambda x, t: x, 2, shape=SHAPE, labels="random")
    assert "labels" not in record.to_json(planned({"oracle": "gaussian"}))["cells"][0], "as before there were any"


def test_labels_that_are_gone_are_missed_before_a_worker_starts_and_only_if_something_must_be_sampled(folder, tmp_path):
    given, root = labels_file(tmp_path / "a.parquet"), tmp_path / "run"
    with small_run(tmp_path, CONFIG.format(folder=folder, n=20, labels=json.dumps(given))) as opened:
        drive(opened, root, LOCAL)
    (tmp_path / "a.parquet").unlink()
    restored = record.from_json(json.loads(json.dumps(record.to_json(opened.plan)))).cells[0]
    assert restored.conditions_block == opened.plan.cells[0].conditions_block
    with raises(UserError):
        restored.label_rule.at(np.arange(3))
    with small_run(tmp_path) as _:
        gone = replace(open_existing(str(root)), rundir=RunDir(root))
        assert not drive(gone, root, LOCAL)[0].missing
        next((root / "samples").rglob("*.parquet")).unlink()
        for part in [*(root / "features").rglob("*.parquet"), *(root / "scores").iterdir()]:
            part.unlink()
        with raises(UserError):
            drive(gone, root, LOCAL)


@pytest.mark.parametrize("precision", ["float32", "bf16-weights"])
def test_a_batch_that_is_filled_up_keeps_its_labels(folder, precision):
    [cell] = planned(folder, labels="random").cells
    how = policy("cpu", precision)._replace(pads=True)
    network = load_network(cell.model.source.network(None, "ema"), cell.model.diffusion, "cpu", how)
    x, labels = torch.randn(3, *SHAPE), torch.tensor([2, 0, 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taugrid.workers.accelerator.arithmetic.policy", lambda *_: how)
        full = adapted(network, Arithmetic(precision, batch_size=8), "cpu")
    alone = torch.cat([full(x[i : i + 1], point(500), labels[i : i + 1]) for i in range(3)])
    assert torch.equal(full(x, point(500), labels), alone)
    assert not torch.equal(full(x, point(500), labels.flip(0)), alone)


def test_growth_beyond_the_labels_is_refused_at_once(folder, tmp_path):
    given = json.dumps(labels_file(tmp_path / "a.parquet", (0, 1, 2) * 20))
    with small_run(tmp_path, CONFIG.format(folder=folder, n=40, labels=given)) as opened, raises(UserError):
        Growth(opened, opened.plan, scoring_of(opened.config, opened.plan), Until.of("told-apart", 80), print)


def test_classes_with_one_covariance_have_their_own_optimal_eps():
    """As the oracle of each class by itself, and the last row is the null class."""
    data, process = gaussian((1, 4, 4)), schedules.alpha_bar(planned({"oracle": "gaussian"}).models[0].diffusion)
    offsets = np.random.default_rng(0).normal(size=(K + 1, 16))
    network = oracle.gaussian_eps(Classes(data, offsets), process, "cpu", torch.float64)
    x, labels = torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.tensor([2, 0, 3, 1, 2])
    for t in (1, 300, 1000):
        moved = [Gaussian(data.mean + offset, data.eigenvalues, data.eigenvectors) for offset in offsets]
        own = [oracle.gaussian_eps(each, process, "cpu", torch.float64)(x, point(t)) for each in moved]
        expected = torch.stack([own[label][i] for i, label in enumerate(labels)])
        torch.testing.assert_close(network(x, point(t), labels), expected, rtol=1e-9, atol=1e-12)


SOURCE = """
import torch

class Conditional(torch.nn.Module):
    num_classes, null_label = 3, 3
    def __init__(self, rows=4):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(rows, 64)
    def forward(self, x, t, label):
        return 0.5 * x + t[:, None, None, None] * 1e-4 + self.table(label).view(-1, 1, 8, 8)

def good():
    return Conditional()

def with_(network=None, **attributes):
    network = network or Conditional()
    for name, value in attributes.items():
        setattr(network, name, value)
    return network

def function():
    inner = Conditional().eval()
    return with_(lambda x, t, label: inner(x, t, label), num_classes=3, null_label=None)

def one_for_all():
    return with_(lambda x, t, label: x + label[0], num_classes=3, null_label=None)

def in_place():
    return with_(lambda x, t, label: x + label.mul_(0)[:, None, None, None], num_classes=3, null_label=None)

def few_rows():
    return Conditional(rows=3)

def too_many():
    return with_(num_classes=9, null_label=None)

def null_is_a_class():
    return with_(null_label=1)

def says_nothing():
    return lambda x, t, label: x

def of_two():
    return with_(lambda x, t: x, num_classes=3, null_label=3)

def with_an_option():
    return with_(lambda x, t, y=None: x, num_classes=3)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_with_labels.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "mine_with_labels", raising=False)
    described = lambda function, arguments, *_: vars(custom.describe(**arguments)) | {}  # noqa: E731
    monkeypatch.setattr(grid.custom_process, "ask", described)
    return lambda name: custom.describe(f"mine_with_labels:{name}", None, SHAPE, DIFFUSION_DEFAULTS)


def test_a_callables_result_says_what_it_takes(mine):
    taken = {"good": Conditions(3, 3), "function": Conditions(3, None), "of_two": None, "with_an_option": None}
    assert {name: mine(name).conditions for name in taken} == taken


@pytest.mark.parametrize("name", ["one_for_all", "in_place", "few_rows", "too_many", "null_is_a_class", "says_nothing"])
def test_mistakes_with_labels_are_found_when_a_callable_is_tried(mine, name):
    with raises(CustomCodeError):
        mine(name)


def test_a_callable_with_classes_is_sampled_with_labels_and_says_so_in_its_id(mine, tmp_path):
    [cell] = planned({"callable": "mine_with_labels:good"}, labels=[2, 0]).cells
    content = cell.model.source.content(cell.model.diffusion)
    assert content["conditions"] == [3, 3]
    recorded(cell.model.source.description(cell.model.diffusion, []), "classes")
    unconditional = replace(cell.model.source.spec, conditions=None)
    assert unconditional.recorded["conditions"] is None
    assert grid.Custom(unconditional).content(cell.model.diffusion) == {
        key: value for key, value in content.items() if key != "conditions"
    }
    restored = custom.CustomNetwork(**cell.model.source.spec.recorded)
    assert list(restored.conditions) == [3, 3]
    images = taugrid.sample({"callable": "mine_with_labels:good"}, 4, shape=SHAPE, labels=[2, 0], steps=2)
    of_two = taugrid.sample({"callable": "mine_with_labels:good"}, 4, shape=SHAPE, labels=2, steps=2)
    assert [np.array_equal(a, b) for a, b in zip(images, of_two, strict=True)] == [True, False, True, False]
    in_memory = taugrid.sample(custom.make("mine_with_labels:good", None), 4, shape=SHAPE, labels=2, steps=2)
    assert np.array_equal(in_memory, of_two)
    with raises(UserError):
        planned({"callable": "mine_with_labels:good"})


def test_a_worker_with_another_config_refuses_the_network(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "net")
    [cell] = planned(place, labels="balanced").cells
    spec = cell.model.source.network(None, "ema")
    config = json.loads((place / "unet/config.json").read_text())
    (place / "unet/config.json").write_text(json.dumps(config | {"null_label": None}))
    with pytest.raises(WorkerRefusal):
        load_network(spec, cell.model.diffusion, "cpu")
