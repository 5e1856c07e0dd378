"""`report.by: label`: metrics label by label, their table, and figures with a row for each class."""

import json
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from conditional import text, write_module
from in_process import CONFIG, drive, small_run
from nights import taugrid
from PIL import Image
from snapshots import raises, recorded

from taugrid.config import Data
from taugrid.errors import UserError
from taugrid.eval.figures.pictures import FONT_SIZE, GAP, MARGIN
from taugrid.eval.metrics.frechet import Frechet
from taugrid.eval.metrics.statistics import Moments
from taugrid.eval.score_cell import Extracted, of_label
from taugrid.eval.sources import open_images
from taugrid.eval.tables.by_label import SHOWN, LabelTable
from taugrid.images import encode_png
from taugrid.orchestrator.plan.scoring import per_sample
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.report import sample_figures
from taugrid.orchestrator.run import parsed
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import Session
from taugrid.registry.extractors import ExtractorSpec
from taugrid.registry.metrics import MetricSettings
from taugrid.storage import LOCAL

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

SPEC = ExtractorSpec("digits-convnet", None, "", "f", "logits", 4, 10)
SAMPLES = per_sample(Data(name="digits"), 10)
WANTED = MetricSettings(("fid", "kid", "agreement"))


def images(n, seed, shift=0.0):
    stream = np.random.default_rng(seed)
    labels = stream.integers(0, 3, n)
    features = (stream.normal(size=(n, 4)) + shift + labels[:, None]).astype(np.float32)
    return Extracted(features, np.eye(10, dtype=np.float32)[labels] + 0.0, labels)


def test_a_labels_numbers_are_those_of_its_images_alone():
    own, reference = images(600, 0, 0.3), images(500, 1)
    found, _ = of_label(own.of(1), reference.of(1), WANTED, SPEC, SAMPLES)
    a, b = (side.features[side.labels == 1] for side in (own, reference))
    assert found["fid"] == pytest.approx(Frechet.of(Moments.of(a), Moments.of(b)).distance, rel=1e-9)
    assert found["fid"] < 0.9 * Frechet.of(Moments.of(a), Moments.of(reference.features)).distance
    assert {"fid_se", "kid", "kid_se"} <= set(found)
    assert found["agreement"] == 1.0
    swapped = own._replace(logits=np.roll(own.logits, 1, axis=1))
    assert of_label(swapped.of(1), reference.of(1), WANTED, SPEC, SAMPLES)[0]["agreement"] == 0.0


def test_a_label_with_too_few_images_says_so():
    own, reference = images(600, 0), images(500, 1)
    few = Extracted(own.features[:12], own.logits[:12], np.repeat([0, 1, 2], [7, 4, 1]))
    by_label = [of_label(few.of(label), reference.of(label), WANTED, SPEC, SAMPLES) for label in range(4)]
    assert [sorted({"fid", "kid", "agreement"} & set(found)) for found, _ in by_label] == [
        ["agreement", "fid", "kid"], ["agreement", "kid"], ["agreement"], [],
    ]  # fmt: skip
    recorded(by_label[1][1][0])
    recorded("\n".join(by_label[2][1]), "images")
    recorded("\n".join(by_label[3][1]))
    unlabelled, notes = of_label(own.of(1), None, WANTED, SPEC, SAMPLES)
    assert set(unlabelled) == {"agreement", "agreement_se"}
    recorded("\n".join(notes))


def row(label, cell="c", **numbers):
    return {"cell": cell, "settings": f"S=2 {cell}", "label": label, "class": f"class {label}", "num_samples": 9.0,
            "num_reference": 8.0, **numbers}  # fmt: skip


def test_the_table_has_a_row_for_each_cell_and_of_many_classes_the_worst():
    rows = [row(label, cell, agreement=0.5 + 0.01 * label + (cell == "d") / 8, agreement_se=0.01)
            for cell in "cd" for label in range(30)]  # fmt: skip
    table = LabelTable.of(rows, {"a": ["class 1"], "b": ["class 1"] * 60})
    assert table.notes[1:] == ["class 1 in 1 of 2 cells: a", "every label: b"]
    (pivot,) = table.tables
    assert pivot.columns == [f"class {label}" for label in range(SHOWN)]
    assert pivot.labels == [("S=2 c",), ("S=2 d",)]
    assert "| S=2 d | **0.625 ± 0.010** |" in table.markdown
    recorded(table.markdown, "classes")
    assert len(table.frame) == 60


def test_a_figure_of_many_classes_has_rows_of_twenty(monkeypatch):
    """It showed one image of each of ImageNet's classes that came first."""
    labels = np.concatenate([np.random.default_rng(i).permutation(100) for i in range(10)])
    images = np.tile(labels.astype(np.uint8)[:, None, None, None], (1, 2, 2))
    monkeypatch.setattr(sample_figures, "read_numbers", lambda *_: [(np.arange(1000), labels.astype(float))])
    monkeypatch.setattr(sample_figures, "read_png", lambda _, wanted, __: {i: encode_png(images[i]) for i in wanted})
    cell = Mock(label_rule=Mock(classes=100), shards=[Mock(start=0)])
    cell.model.data.dataset.classes = ()
    rows = sample_figures.images_of_classes(cell, Mock(), 8)
    assert {name: (images.shape, set(images.flat)) for name, images in rows.items()} == {
        str(label): ((8, 2, 2), {label}) for label in range(SHOWN)
    }


def evaluate(opened, root):
    session = Session(replace(opened, rundir=RunDir(root)), "local", Progress.silent())
    assert not session.do(("sample", "evaluate", "report")).missing
    lines = [json.loads(line) for path in sorted((root / "events").iterdir()) for line in path.read_text().splitlines()]
    last = max(i for i, line in enumerate(lines) if line["event"] == "session")
    return [line["event"] for line in lines[last:] if line["event"] in ("shard", "extract", "score", "by_label")]


@pytest.fixture
def code(tmp_path, monkeypatch, asked_here):
    write_module(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.long
def test_a_guided_run_has_a_table_and_figures_by_class_and_computes_them_once(tmp_path, code):
    root = tmp_path / "run"
    sections = {"evaluate": {"metrics": ["agreement", "kid"]}, "grid": {"guidance": [1.0, 2.0]}}
    with small_run(tmp_path, text(**sections)) as opened:
        evaluate(opened, root)
        assert not (root / "tables/by_label.csv").exists()
        scores = {path.name: path.read_bytes() for path in (root / "scores").iterdir()}
    with small_run(tmp_path, text(**sections, report={"by": "label"})) as opened:
        assert evaluate(opened, root) == ["by_label"] * 2, "nothing else is computed again"
        assert evaluate(opened, root) == []
    assert {path.name: path.read_bytes() for path in (root / "scores").iterdir()} == scores
    frame, quality = (pd.read_csv(root / f"tables/{name}.csv") for name in ("by_label", "quality"))
    assert frame["num_samples"].tolist() == [20] * 20
    assert frame["num_reference"].sum() == 2 * 1797
    assert parsed((root / "tables/by_label.csv").read_bytes())["class"][9] == "9", "a name, not a number"
    assert quality["guidance"].tolist() == [1.0, 2.0]
    assert quality["network_evaluations"].tolist() == [2, 4]
    means = frame.groupby("cell", sort=False)["agreement"].mean().tolist()
    assert means == pytest.approx(quality["agreement"].tolist()), "labels are balanced"
    assert 0.9 < means[0] < means[1] <= 1
    assert {"kid", "agreement_se"} <= set(frame.columns)
    assert 'id="labels"' in (root / "report.html").read_text()
    [told] = [line for line in taugrid("compare", root, "guidance=1", "guidance=2")[0].splitlines() if "Agree" in line]
    recorded(told)
    assert "+0.060" in told
    assert told.endswith("better"), "higher is better"
    back = taugrid("compare", root, "guidance=2", "guidance=1")[0]
    assert [line.endswith("worse") for line in back.splitlines() if "Agree" in line] == [True]
    for cell in opened.plan.cells:
        with Image.open(root / f"figures/classes-{cell.name}.png") as picture:
            assert picture.height == 3 * MARGIN + 2 * FONT_SIZE + 10 * (48 + GAP) - GAP + MARGIN, "a row for each class"
    taugrid("export", root, "guidance=1", "--to", tmp_path / "pngs")
    assert open_images(str(tmp_path / "pngs")).num_images == 200, "beside metadata.csv and SHA256SUMS"


def test_labels_that_cannot_be_compared_are_refused_before_anything_is_sampled(tmp_path):
    with small_run(tmp_path, CONFIG + "report: {by: label}") as opened, raises(UserError):
        drive(opened, tmp_path / "run", LOCAL)
    assert not (tmp_path / "run/samples").exists()


def test_a_reference_of_other_classes_is_refused(tmp_path, code):
    others = {"metrics": ["agreement"], "reference": {"name": "folder", "root": "others", "shape": [1, 8, 8]}}
    for label in ("cat", "dog"):
        (tmp_path / "others" / label).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / "others" / label / f"{i}.png")
    with small_run(tmp_path, text(evaluate=others, report={"by": "label"})) as opened, raises(UserError):
        drive(opened, tmp_path / "run", LOCAL)
