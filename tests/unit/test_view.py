"""A run as Python holds it, and the API that needs no run; the workers of the runs here are this process."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from denoisers import at
from in_process import CONFIG, small_run
from IPython.core.formatters import HTMLFormatter
from matplotlib.figure import Figure
from nbclient import NotebookClient
from PIL import Image
from snapshots import raises, recorded

import taugrid
from taugrid.config import DIFFUSION_DEFAULTS
from taugrid.errors import NotFinite, UserError
from taugrid.eval import sources
from taugrid.eval.figures.drawing import save
from taugrid.eval.pages.report import run_html
from taugrid.eval.sources import open_images
from taugrid.eval.tables.quality import QualityTable
from taugrid.images import decode_png
from taugrid.orchestrator.cli.main import cli
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.run import parsed
from taugrid.registry.metrics import METRICS
from taugrid.storage import open_place, replacing
from taugrid.workers import schedules
from taugrid.workers.data.load import fingerprint, load_images
from taugrid.workers.diffusion import gaussian, oracle

pytestmark = pytest.mark.usefixtures("one_thread")

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("view")
    with small_run(folder):
        made = taugrid.run(folder / "small.yaml", out=folder / "runs" / "digits", progress=False)
    return Path(made.directory)


@pytest.fixture
def run(finished):
    return taugrid.open(finished)


def test_tables_are_what_their_files_hold(run, finished):
    for name, table in (("quality", run.quality), ("quality", run.table()), ("differences", run.differences)):
        text = pd.read_csv(finished / f"tables/{name}.csv", dtype=str, keep_default_na=False)
        assert list(table) == list(text)
        for column in table:
            shown = ["" if value != value else str(value) for value in table[column]]
            assert shown == list(text[column]), column
    assert {"differences", "quality"} <= set(run.tables)
    assert set(run.quality["protocol"]) == set(run.protocols)
    with raises(UserError):
        run.table("nonsense")


def test_columns_of_ids_and_texts_stay_texts_and_numbers_are_exact():
    frame = parsed(b"cell,fid,steps,joined,diffusion.schedule,note,share\n123e456789,0.1,10,True,cosine,,\n")
    *values, share = frame.to_dict("records")[0].values()
    assert (values, np.isnan(share)) == (["123e456789", 0.1, 10, True, "cosine", ""], True)
    next_to_it = float(np.nextafter(0.1, 1))
    assert parsed(f"fid\n{next_to_it!r}\n".encode())["fid"][0] == next_to_it
    frame = parsed(b"key,base,value,effect\ntrain.steps,1000,0100,0.5\nmodel.unet.dropout,0.1,0.2,0.5\n")
    assert [list(frame[name]) for name in ("base", "value")] == [["1000", "0.1"], ["0100", "0.2"]]


def test_images_are_those_of_the_files_in_the_order_asked_for(run, finished):
    cell = run.cells[1]
    rows = pq.read_table(finished / "samples" / cell.name).to_pylist()
    images = cell.images(np.array([13, 2]))
    assert images.shape == (2, 4, 4)
    for image, index in zip(images, (13, 2), strict=True):
        [png] = [row["image"]["bytes"] for row in rows if row["index"] == index]
        assert (image == decode_png(png)[0]).all()
    assert len(cell.images()) == len(cell) == 20
    for wrong in ([20], [-1], np.arange(20) < 3, [True, False], [1.5], "12", 3):
        with raises(UserError):
            cell.images(wrong)


def test_a_cell_is_found_by_its_settings_or_the_beginning_of_its_name(run):
    assert run.cell("S0002-eta1").id == run.cell("eta=1").id == run.cells[1].id
    assert run.cells[1].label in repr(run.cells[1])
    with raises(UserError):
        run.cell("S0002")


def with_n(finished, folder, n):
    """The directory of the same run with N smaller than it was."""
    shutil.copytree(finished, folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"num_samples": 20', f'"num_samples": {n}'))
    return folder


def test_the_data_set_has_the_cells_rows_alone(run, finished, tmp_path):
    assert run.cells[0].dataset().to_table(columns=["index"])["index"].to_pylist() == list(range(20))
    cell = taugrid.open(with_n(finished, tmp_path / "fewer", 12)).cells[0]
    assert cell.dataset().count_rows() == len(cell) == len(cell.images()) == len(cell.features()) == 12


def test_a_run_in_a_bucket_is_looked_at_as_one_in_a_folder(run, finished, s3):
    name = s3.bucket()
    root, storage = open_place(f"s3://{name}/runs/digits", "--out")
    for path in filter(Path.is_file, finished.rglob("*")):
        if path.relative_to(finished).parts[0] in ("run.json", "config.json", "samples", "tables", "features"):
            with replacing(root / path.relative_to(finished), storage) as temporary:
                shutil.copy(path, temporary)
    there = taugrid.open(f"s3://{name}/runs/digits")
    assert there.quality.equals(run.quality)
    assert (there.cells[1].images([3, 15]) == run.cells[1].images([3, 15])).all()
    assert (there.cells[1].features() == run.cells[1].features()).all()
    assert there.cells[1].dataset().to_table().equals(run.cells[1].dataset().to_table())


def test_images_that_are_not_there_are_said_to_be_missing(run, finished, tmp_path):
    holed = shutil.copytree(finished, tmp_path / "holed")
    cell = taugrid.open(holed).cells[0]
    (holed / "samples" / cell.name / "part-000001.parquet").unlink()
    assert len(cell.images(range(10))) == 10
    with raises(UserError):
        cell.images([3, 15])


def test_what_is_said_to_bring_lost_features_back_does_so(run, finished, tmp_path):
    bare = shutil.copytree(finished, tmp_path / "bare")
    shutil.rmtree(bare / "features")
    cell = taugrid.open(bare).cells[0]
    with raises(UserError) as caught:
        cell.features()
    recorded(str(caught.value), "delete")
    recorded(str(caught.value), "evaluate")
    [score] = bare.glob(f"scores/{cell.id}-*.json")
    before = score.read_bytes()
    score.unlink()
    with small_run(tmp_path):
        taugrid.run(bare, stages=["evaluate"], progress=False, evaluate={"keep_features": True})
    assert (cell.features() == run.cells[0].features()).all()
    assert score.read_bytes() == before


def test_features_beyond_n_do_not_stand_in_for_missing_ones(finished, tmp_path):
    fewer = with_n(finished, tmp_path / "fewer", 10)
    cell = taugrid.open(fewer).cells[0]
    next(fewer.glob(f"features/*/{cell.name}/part-000000.parquet")).unlink()
    with raises(UserError):
        cell.features()


def test_features_are_in_the_order_of_the_images(run):
    cell = run.cells[0]
    expected = cell.images().reshape(20, 16).astype(np.float32) / 127.5 - 1
    assert np.allclose(cell.features(), expected, atol=1e-6)


def test_figures_are_matplotlibs(run, finished, tmp_path):
    figure = run.figure("quality")
    assert isinstance(figure, Figure)
    assert len(figure.axes[0].containers) == 2, "a line for each eta"
    [axes] = run.figure("samples").axes
    shown = axes.images[0].get_array()
    assert (np.rint(np.asarray(shown) * 255) == np.asarray(Image.open(finished / "figures/samples.png"))).all()
    for absent in ("nonsense", "loss"):
        with raises(UserError):
            run.figure(absent)


@pytest.mark.long
def test_the_figure_of_quality_is_of_the_metric_that_decides(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run/tables/quality.json"
    document = json.loads(file.read_text())
    for row in document["rows"]:
        row |= {"fid_se": None, "kid": 0.01, "kid_se": 0.001}
    file.write_text(json.dumps(document))
    label = taugrid.open(tmp_path / "run").figure("quality").axes[0].get_ylabel()
    assert label == METRICS["kid"].columns[0].heading


@pytest.mark.long
def test_the_figure_of_quality_is_that_of_the_report_with_means_over_seeds_too(tmp_path):
    with small_run(tmp_path, CONFIG.replace("eta: [0.0, 1.0]", "eta: [1.0, 0.0], seed: [0, 1]")):
        run = taugrid.run(tmp_path / "small.yaml", out=tmp_path / "seeds", progress=False)
    figure = run.figure("quality")
    assert len(figure.axes) == 1, "no panel for each seed"
    save(figure, tmp_path / "again")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "seeds/figures/quality.png").read_bytes()


def test_a_run_shows_its_table_in_a_notebook(run):
    html = HTMLFormatter()(run)
    assert f"{run.quality['fid'].min():.4f}"[:4] in html
    assert html.count('<th scope="row">') == 2
    assert "2 of 2 cells" in html


def test_texts_of_a_config_are_escaped_in_html(finished):
    document = json.loads((finished / "tables/quality.json").read_text())
    planted = "<script>alert(1)</script>"
    for place, row in enumerate(document["rows"]):
        row["diffusion.schedule"] = planted if place else "linear"
    html = run_html(planted, planted, planted, QualityTable.read(document))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 4, "name, directory, state, and the heading of a table"


def test_a_run_without_tables_says_how_to_get_them(tmp_path, finished):
    for name in ("run.json", "config.json"):
        shutil.copy(finished / name, tmp_path)
    run = taugrid.open(tmp_path)
    assert "0 of 2 cells" in HTMLFormatter()(run)
    for get in (lambda: run.quality, lambda: run.figure("quality"), lambda: run.cells[0].dataset()):
        with raises(UserError):
            get()


ORACLE = {"oracle": "gaussian"}
AS_IN_THE_RUN = {"shape": (1, 4, 4), "steps": 2, "batch_size": 10}


def test_samples_in_memory_are_the_runs(run):
    images = run.cell("S0002-eta1").images()
    for indices, expected in ((20, images), (np.int64(20), images), ([17, 4], images[[17, 4]])):
        assert (taugrid.sample(ORACLE, indices, eta=1.0, **AS_IN_THE_RUN) == expected).all()
    assert (taugrid.sample(ORACLE, 20, eta=1.0, seed=1, **AS_IN_THE_RUN) != images).any()


def test_a_network_in_memory_is_sampled(run):
    eps = oracle.gaussian_eps(gaussian.gaussian((1, 4, 4)), schedules.alpha_bar(DIFFUSION_DEFAULTS), "cpu")

    def network(x, index):
        assert index.shape == (len(x),)
        return eps(x, at(int(index[0]) + 1))

    found = taugrid.sample(network, 20, eta=1.0, **AS_IN_THE_RUN)
    assert (found == run.cell("S0002-eta1").images()).all()


@pytest.mark.parametrize("whole", [True, False])
def test_each_part_of_a_network_in_memory_is_in_evaluation_mode_and_then_as_it_was(whole):
    """A part may be frozen while the rest is trained, and dropout may be on in a network that is not."""

    class Network(torch.nn.Sequential):
        def forward(self, x, index):
            assert not any(part.training for part in self.modules())
            return x

    network = Network(torch.nn.BatchNorm2d(1), torch.nn.Dropout()).train(whole)
    network[0].eval()
    network[1].train()
    taugrid.sample(network, 2, **AS_IN_THE_RUN)
    assert [part.training for part in network.modules()] == [whole, False, True]


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": ORACLE, "indices": 0}, {"model": ORACLE, "indices": [-1]}, {"model": ORACLE, "indices": [0.5]},
        {"model": ORACLE, "indices": np.arange(4) == 2}, {"model": ORACLE, "indices": 2.0},
        {"model": ORACLE, "indices": 1, "device": "nonsense"}, {"model": ORACLE, "indices": 1, "device": ""},
        {"model": ORACLE, "num_samples": 5}, {"model": ORACLE, "steps": 0},
        {"model": {"unet": {}}}, {"model": {"callable": "a:b"}}, {"model": 5, "shape": (1, 4, 4)},
        {"model": lambda x, t: x}, {"model": lambda x, t: x[:1], "shape": (1, 4, 4)},
        {"model": lambda x, t: x, "shape": (1, 4, 4), "compile": "default"},
        {"model": lambda x, t: x, "shape": (1, 4, 4), "precision": "tf32", "device": "cpu"},
        {"model": ORACLE, "precision": "tf32", "device": "cpu"},
        {"model": lambda x, t: x, "shape": (1, 4, 4), "precision": "bf16-weights"}, {"model": "no/such/folder"},
    ],
)  # fmt: skip
def test_what_can_not_be_sampled_is_refused(arguments):
    with raises(UserError):
        taugrid.sample(**arguments)


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch is built with CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_torch_without_cuda_is_named(device):
    with pytest.raises(UserError, match=f"{device} can't be used.*device='cpu'"):
        taugrid.sample(ORACLE, 1, device=device)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_is_sampled_if_it_casts(half):
    network = torch.nn.Conv2d(1, 1, 1).to(half)
    assert taugrid.sample(lambda x, t: network(x.to(half)).float(), 1, shape=(1, 4, 4), steps=2).shape == (1, 4, 4)


def test_a_function_in_memory_may_need_gradients():
    """Such as an energy model, which predicts a gradient of its own."""

    def gradient(x, t):
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            return torch.autograd.grad((x**2).sum() / 2, x)[0]

    of_gradient, of_x = (
        taugrid.sample(network, 2, shape=(1, 4, 4), steps=3, seed=0) for network in (gradient, lambda x, t: x)
    )
    assert np.array_equal(of_gradient, of_x)


def test_a_network_in_memory_computes_in_the_precision_that_is_asked_for():
    types = []

    def network(x, index):
        types.append((x[:, 0] @ x[:, 0]).dtype)
        return x

    for precision in ("float32", "bf16"):
        taugrid.sample(network, 1, precision=precision, device="cpu", **AS_IN_THE_RUN)
    assert types == [torch.float32] * 2 + [torch.bfloat16] * 2


def test_a_runs_images_score_against_its_reference_as_in_the_run(run, finished, tmp_path, user_cache):
    row = run.quality.iloc[0]
    images = run.cell(row["cell"]).images()
    scores = taugrid.evaluate(images, finished, progress=False, metrics=["fid"])
    assert scores["metrics"]["fid"] == pytest.approx(row["fid"], rel=1e-9)
    assert scores["protocol"]["extractor"]["name"] == "pixels"
    assert scores["samples"]["kind"] == "array"
    assert scores["reference"]["dataset"] == "gaussian/all"

    cli.main(["export", str(finished), "--reference", "--to", str(tmp_path / "mean.npz")], standalone_mode=False)
    given = {"extractor": "pixels", "metrics": ["fid"], "progress": False}
    by_moments = taugrid.evaluate(images, tmp_path / "mean.npz", **given)
    assert by_moments["metrics"]["fid"] == pytest.approx(row["fid"], rel=1e-9)


def test_the_reference_is_exported_as_pictures(finished, tmp_path, monkeypatch):
    few = load_images(open_existing(str(finished)).config.data)[:1500]
    monkeypatch.setattr(sources, "load_images", lambda data: few)
    monkeypatch.setattr(sources, "content_fingerprint", lambda data: fingerprint(few))
    cli.main(["export", str(finished), "--reference", "--to", str(tmp_path / "pngs")], standalone_mode=False)
    assert open_images(str(tmp_path / "pngs")).sha256 == fingerprint(few)
    with raises(UserError):
        cli.main(["export", str(finished), "--reference", "--to", str(tmp_path / "pngs")], standalone_mode=False)


@pytest.mark.long
def test_every_snippet_of_the_docs_runs(finished, tmp_path, monkeypatch, user_cache):
    shutil.copytree(finished, tmp_path / "runs/digits-v2")
    monkeypatch.chdir(tmp_path)
    names = {}
    with small_run(tmp_path):
        snippets = re.findall(r"^```python\n(.*?)^```", (DOCS / "python.md").read_text(), re.MULTILINE | re.DOTALL)
        for text in snippets:
            exec(compile(text, "docs/python.md", "exec"), names)
    assert (tmp_path / "quality.pdf").stat().st_size
    assert list(names["known"].quality["steps"]) == [2, 5, 10, 2, 5, 10]
    assert names["known"].quality["fid_exact"].notna().all()
    assert len(names["indices"]) == 20


@pytest.mark.long
def test_the_notebook_runs(finished, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/digits-v2").symlink_to(finished)
    notebook = nbformat.read(DOCS / "look-at-a-run.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output["data"] for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert "tg-pivot" in shown[0]["text/html"]
    assert "image/png" in shown[1], "the figure"
    assert "fid_se" in shown[2]["text/html"]
    assert not CONFIG.startswith("name: digits"), "the run is a small one of that name"


@pytest.mark.long
def test_the_notebook_of_images_reaches_its_verdict(tmp_path, user_cache):
    notebook = nbformat.read(DOCS / "from-images-to-a-verdict.ipynb", as_version=4)
    committed = [output["text"] for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.get("name") == "stdout"]
    assert [output["text"] for output in said] == committed
    recorded("".join(committed))
    assert len((tmp_path / "worst/pairs.csv").read_text().splitlines()) == 1001


def test_a_network_that_returns_nan_is_told_by_the_indices_of_its_images():
    for indices, named in ([7000, 7001], "images 7000 to 7001"), ([9, 3], "images 3 to 9"):
        with pytest.raises(NotFinite, match=named):
            taugrid.sample(lambda x, t: x * np.nan, indices, shape=(1, 4, 4), steps=2)
