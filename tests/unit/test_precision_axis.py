"""`sample.precision` and `sample.compile` as settings of cells: tables, protocols and files; old ones stay the same."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from in_process import CONFIG, drive, small_run
from snapshots import raises, recorded
from tiny import UNET

from taugrid.config import Config, Sample, validate
from taugrid.errors import UserError
from taugrid.eval.tables.long_form import COLUMNS
from taugrid.orchestrator.baseline.matching import matched
from taugrid.orchestrator.baseline.snapshot import snapshot_of_run
from taugrid.orchestrator.plan.conditions import require_no_gpu
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.work.ode import ode_cells
from taugrid.parquet import inspect
from taugrid.storage import LOCAL, read_json, write_json

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

GRID = CONFIG.replace("eta: [0.0, 1.0]", "eta: [0.0], precision: [float32, bf16]")
METADATA_OF_VERSION_1 = {
    "steps", "eta", "spacing", "sampler", "clip", "clip_range", "steps_offset", "weights", "precision", "batch_size",
    "seed", "shard_evaluations",
}  # fmt: skip


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A run of one cell in float32 and one in bf16, scored and reported."""
    root = tmp_path_factory.mktemp("precisions")
    with small_run(root, GRID) as opened:
        drive(opened, root / "run", LOCAL)
        Session(replace(opened, rundir=RunDir(root / "run")), "local", Progress.silent()).do(("report",))
    return root / "run"


def test_precisions_stand_in_one_table_and_are_compared(scored):
    frame = pd.read_csv(scored / "tables/quality.csv")
    assert list(frame.columns[: len(COLUMNS)]) == list(COLUMNS), "old columns stay where they are"
    assert sorted(frame["sample_precision"]) == ["bf16", "float32"]
    assert frame["protocol"].nunique() == 2
    quality = read_json(scored / "tables/quality.json")
    recorded("\n".join(sorted(protocol["precision"] for protocol in quality["protocols"].values())))
    differences = pd.read_csv(scored / "tables/differences.csv")
    assert len(differences) == 1
    assert frame["fid"].nunique() == 2, "bf16 makes other images"
    closed_form = frame.set_index("sample_precision")["fid_exact"].notna()
    assert closed_form.to_dict() == {"float32": True, "bf16": False}


def test_sample_files_of_float32_are_what_they_were(scored):
    """The settings in a file are part of its bytes: a key that came later may not be there while it has its default."""
    settings = [inspect(part).metadata["settings"] for part in scored.glob("samples/*/part-000000.parquet")]
    assert {each["precision"] for each in settings} == {"float32", "bf16"}
    assert all(set(each) == METADATA_OF_VERSION_1 for each in settings)


def test_a_baseline_from_before_the_keys_still_matches(scored, tmp_path):
    """Its settings lack `compile`, and its grid had no precision."""
    snapshot = snapshot_of_run(str(scored))
    assert all("compile" not in cell.settings for cell in snapshot.cells)
    assert len(matched(snapshot, snapshot).pairs) == 2


def test_a_run_from_before_the_keys_has_not_changed_in_them(scored, tmp_path):
    """The refusal names what differs; a key that its config.json lacks is no difference while it has its default."""
    config = read_json(scored / "config.json")
    del config["sample"]["compile"]
    config["seed"] = config["sample"]["seed"] = 5
    before = (scored / "config.json").read_bytes()
    write_json(scored / "config.json", config)
    other = GRID.replace("batch_size: 10", "batch_size: 5")
    try:
        with small_run(tmp_path, other) as opened, pytest.raises(UserError) as caught:
            drive(opened, scored, LOCAL)
    finally:
        (scored / "config.json").write_bytes(before)
    assert "batch_size: 10 -> 5" in str(caught.value)
    assert "compile" not in str(caught.value)
    assert f"`taugrid run {scored}`" in str(caught.value), "a way out"


ORACLE = {"model": {"oracle": "gaussian"}, "data": {"name": "gaussian", "shape": [1, 4, 4]}}


def planned(sections=None, **sample):
    sections = sections or {"model": {"unet": UNET}, "train": {"seed": 0}}
    return plan(validate(Config, {"name": "x", "sample": {"seed": 0} | sample} | sections, "test"))


def test_what_is_unusual_has_a_column_without_a_grid_too():
    assert planned().cells[0].axes == {}
    found = planned(precision="bf16", compile="default")
    assert found.cells[0].axes == {"sample_precision": "bf16", "compile": "default"}


def test_reconstructions_are_computed_in_float32():
    [cell] = ode_cells(planned(precision="bf16", compile="default"))
    assert (cell.settings.precision, cell.settings.compile, cell.axes) == ("float32", "none", {})
    assert cell.id == ode_cells(planned())[0].id


def test_tf32_without_any_gpu_is_refused_before_a_worker_starts():
    require_no_gpu(planned(precision="bf16"))
    with raises(UserError):
        require_no_gpu(planned(precision="tf32"))


@pytest.mark.parametrize("setting", [{"compile": "default"}, {"precision": "bf16-weights"}])
def test_compiling_and_cast_weights_are_refused_of_an_oracle(setting):
    with raises(UserError):
        planned(ORACLE, **setting)


def test_what_files_record_is_json_without_later_defaults():
    assert "compile" not in json.dumps(Sample().recorded)
    assert Sample(compile="default").recorded["compile"] == "default"
