"""`evaluate.precision`: features in bf16 stand beside those in float32 and are never mixed or compared with them."""

from dataclasses import asdict, replace

import pytest
import torch
from in_process import CONFIG, drive, results, small_run
from snapshots import raises, recorded

import taugrid
from taugrid.config import Config, validate
from taugrid.errors import UserError, WorkerRefusal
from taugrid.eval.features.load import load
from taugrid.eval.features.resolve import resolve
from taugrid.eval.reference import Reference
from taugrid.eval.sources import ImageSet
from taugrid.eval.tables.quality import QualityTable
from taugrid.orchestrator.baseline.matching import matched
from taugrid.orchestrator.baseline.snapshot import snapshot_of_run
from taugrid.orchestrator.plan.scoring import extractor, scoring_of
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.session import Session
from taugrid.protocol import disagreements
from taugrid.storage import LOCAL, read_json, write_json

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

IN_FLOAT32 = CONFIG.replace("[1, 4, 4]", "[1, 8, 8], limit: 40").replace(
    "metrics: [fid]", "metrics: [fid], extractor: digits-convnet"
)
IN_BF16 = IN_FLOAT32.replace("metrics: [fid]", "metrics: [fid], precision: bf16")


def convnet(precision="float32"):
    return resolve("digits-convnet", "any", None, (1, 8, 8), precision=precision)


def done(root, text):
    with small_run(root, text) as opened:
        drive(opened, root / "run", LOCAL)
        Session(replace(opened, rundir=RunDir(root / "run")), "local", Progress.silent()).do(("report",))
        return opened, results(root / "run"), snapshot_of_run(str(root / "run"))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A run directory that was scored in float32 and then in bf16: its folder, and what there was after each."""
    root = tmp_path_factory.mktemp("features")
    return root / "run", done(root, IN_FLOAT32), done(root, IN_BF16)


def test_a_gpu_without_bf16_extracts_nothing_in_it(monkeypatch):
    """torch would compute it through float32 there."""
    monkeypatch.setattr("taugrid.workers.accelerator.arithmetic.kind_of", lambda device: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with raises(WorkerRefusal):
        load(convnet("bf16"), "cpu")


def test_features_of_both_precisions_stand_beside_each_other(both):
    root, (_, before, _), (_, after, _) = both
    assert before.items() <= after.items(), "nothing that was there has changed"
    folders = {path.name for path in (root / "features").iterdir()}
    assert len(folders) == 2
    assert [name for name in folders if name.endswith("-bf16")]
    assert len(list(root.glob("scores/*.json"))) == 4, "each cell was scored in each"
    quality = read_json(root / "tables/quality.json")
    assert len(quality["rows"]) == 2, "a table has the rows of one"
    assert {protocol["extractor"]["precision"] for protocol in quality["protocols"].values()} == {"bf16"}
    recorded(QualityTable.read(quality).scored_as, "features")


def test_a_score_of_the_other_precision_does_not_count(both):
    root, (float32, *_), (bf16, *_) = both
    rundir, cell = RunDir(root), bf16.plan.cells[0]
    assert rundir.recorded_scoring(float32.config) is None, "the last session scored in the other"
    known = rundir.recorded_scoring(bf16.config)
    wanted = [(cell, scoring.id(cell)) for scoring in (scoring_of(float32.config, float32.plan), known)]
    assert known.id(cell) == scoring_of(bf16.config, bf16.plan).id(cell)
    one, other = rundir.read_scores(wanted, Listing(rundir))
    assert [score["protocol"]["extractor"].get("precision") for score in (one, other)] == [None, "bf16"]
    assert one["metrics"]["fid"] != other["metrics"]["fid"]
    assert one["metrics"]["fid"] == pytest.approx(other["metrics"]["fid"], rel=0.05)


def test_scores_of_both_are_not_compared(both):
    _, (_, _, float32), (_, _, bf16) = both
    protocols = {"a": float32.cells[0].protocol, "b": bf16.cells[0].protocol}
    assert disagreements(protocols) == {"extractor.precision": {"not set": ["a"], "bf16": ["b"]}}
    assert len(matched(bf16, bf16).pairs) == 2
    with raises(UserError):
        matched(bf16, float32)


def test_images_against_a_run_are_scored_in_its_precision_unless_another_is_asked_for(both, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root, *_ = both
    run = taugrid.open(root)
    row = run.quality.iloc[0]
    images = run.cell(row["cell"]).images()
    scores = {
        asked: taugrid.evaluate(
            images, root, progress=False, metrics=["fid"], **({"precision": asked} if asked else {})
        )
        for asked in (None, "bf16", "float32")
    }
    assert scores[None]["metrics"]["fid"] == scores["bf16"]["metrics"]["fid"] == pytest.approx(row["fid"], rel=1e-9)
    assert scores["float32"]["metrics"]["fid"] != scores["bf16"]["metrics"]["fid"]
    said = [scores[asked]["protocol"]["extractor"].get("precision") for asked in (None, "bf16", "float32")]
    assert said == ["bf16", "bf16", None]
    assert len(list((tmp_path / "taugrid/references").glob("*.npz"))) == 2, "a cached reference for each"


def test_float32_is_written_nowhere():
    """What was hashed before there was the key is still hashed so."""
    spec, half = convnet(), convnet("bf16")
    assert "precision" not in spec.describe()
    assert half.describe() == spec.describe() | {"precision": "bf16"}
    key = Reference(ImageSet("npz", "a.npz", 10, (1, 28, 28), "a")).cache_key
    assert key(spec) == key(convnet("float32")) != key(half)


def test_a_recorded_custom_extractor_has_the_precision_that_the_config_asks_for(tmp_path):
    """Commands that run no code have its record and the config; the last session may have used the other precision."""
    rundir = RunDir(tmp_path)
    rundir.runs_code = False
    made = replace(convnet("bf16"), name="mine:Extractor", source_sha256="b" * 64)
    write_json(rundir.plan, {"evaluation": {"image_shape": [1, 8, 8], "extractor": asdict(made)}})
    for precision in ("float32", "bf16"):
        evaluate = {"extractor": made.name, "precision": precision}
        config = validate(Config, {"name": "x", "model": {"oracle": "gaussian"}, "evaluate": evaluate}, "test")
        assert rundir.extractor(config) == replace(made, precision=precision)


def test_only_the_network_computes_in_bf16():
    images = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, half = load(convnet(), "cpu")(images), load(convnet("bf16"), "cpu")(images)
    for exact, rounded in ((whole.features, half.features), (whole.logits, half.logits)):
        assert exact.dtype == rounded.dtype == torch.float32
        error = (exact - rounded).norm() / exact.norm()
        assert 1e-4 < error < 0.02, "bf16 has 8 bits"


def test_pixels_have_no_network(tmp_path):
    with small_run(tmp_path, CONFIG.replace("metrics: [fid]", "metrics: [fid], precision: bf16")) as opened:
        with raises(UserError):
            extractor(opened.config)
        with raises(UserError):
            drive(opened, tmp_path / "run", LOCAL)
    assert not (tmp_path / "run/samples").exists(), "refused before anything is sampled"
