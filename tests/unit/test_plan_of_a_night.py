"""`plan --baseline` says what a night would compare and refuses what it would refuse; `plan --strict`."""

import json
import shutil

import nights
import pytest
from nights import CELLS, CONFIG, taugrid, write_config
from snapshots import recorded

from taugrid.workers.data import published

begun = nights.begun

pytestmark = pytest.mark.usefixtures("one_thread", "sketched", "unreported")


def planned(config, baseline):
    words = ("plan", config, "--out", config.parent / "out", "--baseline", baseline)
    return json.loads(taugrid(*words, "--json")[0])["baseline"], taugrid(*words)[0]


@pytest.mark.parametrize("baseline", ["run", "baseline.json"])
def test_all_cells_would_be_compared(begun, tmp_path, baseline):
    found, text = planned(write_config(tmp_path / "night.yaml", begun / "same"), begun / baseline)
    assert (found["cells"], found["compared"], found["only_new"], found["only_baseline"]) == (CELLS, CELLS, [], [])
    recorded(text, "compared")
    assert not (tmp_path / "out").exists()


def test_cells_that_are_not_compared_are_listed(begun, tmp_path):
    config = write_config(tmp_path / "night.yaml", begun / "same", grid={"steps": [2, 5], "eta": [0.0]})
    found, text = planned(config, begun / "baseline.json")
    assert (found["compared"], found["only_new"]) == (1, ["S0005-eta0"])
    assert found["only_baseline"] == ["S0003-eta0", "S0002-eta1", "S0003-eta1"]
    recorded(text, "not compared")


@pytest.mark.parametrize(
    "changes",
    [
        {"sample": {**CONFIG["sample"], "num_samples": 300}},
        {"sample": {**CONFIG["sample"], "num_samples": 159}},
        {"sample": {**CONFIG["sample"], "seed": 3}},
        {"grid": {"steps": [7], "eta": [0.0]}},
        {"evaluate": {"metrics": ["kid"]}},
        {"evaluate": {"metrics": ["fid"], "reference": {"name": "gaussian", "shape": [1, 4, 4], "split": "test"}}},
    ],
)
def test_what_the_night_would_refuse_is_refused_in_its_words(begun, tmp_path, changes):
    config = write_config(tmp_path / "night.yaml", begun / "same", **changes)
    file = ("--baseline", begun / "baseline.json")
    _, by_night = taugrid("nightly", config, "--history", tmp_path / "history", "--id", "1", *file, code=2)
    out, by_plan = taugrid("plan", config, "--out", tmp_path / "history/nights/1/run", *file, "--json", code=2)
    assert (by_plan, out) == (by_night.splitlines()[-1], "")
    assert not (tmp_path / "history/nights/1/run/samples").exists()


@pytest.mark.parametrize("lacking", ["a model", "the reference"])
def test_what_is_not_here_leaves_it_unknown_and_downloads_nothing(begun, tmp_path, lacking, user_cache, monkeypatch):
    monkeypatch.setattr(published, "DEBIAN_FOLDER", tmp_path)
    monkeypatch.setattr(published, "download", lambda *_: pytest.fail("nothing may be downloaded"))
    if lacking == "a model":
        config = write_config(tmp_path / "night.yaml", tmp_path / "absent")
    else:
        reference = {"name": "fashion-mnist", "download": True}
        evaluate = {"metrics": ["fid"], "reference": reference, "extractor": "pixels"}
        config = write_config(tmp_path / "night.yaml", begun / "same", evaluate=evaluate)
    found, text = planned(config, begun / "baseline.json")
    assert found["compared"] is None
    recorded(found["unknown"])
    recorded(text, "compared")


def test_strict_exits_with_2_if_there_is_any_warning_and_shows_the_plan_all_the_same(begun, tmp_path):
    clean = write_config(tmp_path / "night.yaml", begun / "same")
    taugrid("plan", clean, "--out", tmp_path / "out", "--strict")
    small = write_config(tmp_path / "small.yaml", begun / "same", sample={**CONFIG["sample"], "num_samples": 100})
    out, told = taugrid("plan", small, "--out", tmp_path / "out", "--strict", "--json", code=2)
    assert len(json.loads(out)["remarks"]) == 1
    recorded(told)
    taugrid("plan", small, "--out", tmp_path / "out")
    missing = write_config(tmp_path / "missing.yaml", tmp_path / "absent")
    assert "warning: " in taugrid("plan", missing, "--out", tmp_path / "out", "--strict", code=2)[0]


def test_a_dry_run_prints_what_plan_prints_and_begins_nothing(begun, tmp_path):
    config = write_config(tmp_path / "night.yaml", begun / "same")
    out = ("--out", tmp_path / "out", "--set", "sample.seed=3", "--workers", "2")
    for command, *more in (("run",), ("train", "--json"), ("sample", "--json"), ("evaluate",)):
        assert taugrid(command, config, "--dry-run", *out, *more) == taugrid("plan", config, *out, *more)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_some_cells_shows_these(begun):
    plan = json.loads(taugrid("plan", begun / "same.yaml", "--out", begun / "run", "--json")[0])
    words = ("run", begun / "same.yaml", "--out", begun / "run", "--only", "steps=3", "--dry-run", "--json")
    found = json.loads(taugrid(*words)[0])
    assert found["cells"] == [cell for cell in plan["cells"] if "S=3" in cell["label"]]
    assert len(found["cells"]) == 2
    assert found["network_evaluations"] == sum(cell["network_evaluations"] for cell in found["cells"])
    assert found["remarks"] == plan["remarks"], "the others are no orphans"


def test_a_dry_run_of_a_night_is_the_plan_of_the_night_in_its_own_folder(begun, tmp_path):
    config, history = write_config(tmp_path / "night.yaml", begun / "same"), tmp_path / "history"
    words = (config, "--history", history, "--json", "--baseline", begun / "baseline.json")
    found = json.loads(taugrid("nightly", *words, "--id", "one", "--dry-run")[0])
    assert found == json.loads(taugrid("plan", *words, "--out", history / "nights" / "one" / "run")[0])
    assert found["baseline"]["compared"] == CELLS
    assert not history.exists()


def test_a_dry_run_of_images_from_elsewhere_is_refused(begun, tmp_path):
    for words in (("nightly", "--history", tmp_path / "history"), ("evaluate", "--reference", begun / "run")):
        recorded(taugrid(*words, "--samples", tmp_path, "--dry-run", code=2)[1])


def test_what_is_no_run_is_told_with_the_command_that_takes_it_and_a_cell_may_have_a_folders_name(
    begun, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("A", "B", "S0002-eta0"):
        (tmp_path / name).mkdir()
    lost = shutil.copytree(begun / "run", tmp_path / "lost")
    (lost / "config.json").unlink()
    for words in ((begun / "run", "B"), ("A", "x", "y"), (lost, begun / "baseline.json")):
        recorded(taugrid("compare", *words, code=2)[1])
    recorded(taugrid("plan", begun / "same.yaml", "--baseline", tmp_path / "absent", code=2)[1], "directory")
    assert "FID" in taugrid("compare", begun / "run", "S0002-eta0", "S0003-eta0")[0]
