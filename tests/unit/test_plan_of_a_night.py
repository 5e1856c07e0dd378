"""`plan --baseline` says what a night would compare and refuses what it would refuse; `plan --strict`."""

import json
import shutil

import pytest
from nights import CELLS, CONFIG, checkpoint, taugrid, write_config
from snapshots import recorded

pytestmark = pytest.mark.usefixtures("one_thread", "sketched", "unreported")

FEWER = {"grid": {"steps": [2], "eta": [0.0]}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run, its config and its baseline file."""
    folder = tmp_path_factory.mktemp("base")
    config = write_config(folder / "night.yaml", checkpoint(folder / "old"))
    taugrid("run", config, "--out", folder / "run")
    taugrid("baseline", "accept", folder / "run", "--to", folder / "baseline.json", "--reason", "the first")
    return folder


def planned(config, base, *more, code=0):
    """The key `baseline` of the plan."""
    words = ("plan", config, "--out", config.parent / "out", "--baseline", base, "--json", *more)
    return json.loads(taugrid(*words, code=code)[0])["baseline"]


@pytest.mark.parametrize("baseline", ["run", "baseline.json"])
def test_all_cells_would_be_compared(base, tmp_path, baseline):
    config = write_config(tmp_path / "night.yaml", base / "old")
    found = planned(config, base / baseline)
    assert (found["cells"], found["compared"], found["only_new"], found["only_baseline"]) == (CELLS, CELLS, [], [])
    text, _ = taugrid("plan", config, "--out", tmp_path / "out", "--baseline", base / baseline)
    recorded(text, "compared")
    assert not (tmp_path / "out").exists()


def test_cells_that_are_not_compared_are_listed(base, tmp_path):
    config = write_config(tmp_path / "night.yaml", base / "old", grid={"steps": [2, 5], "eta": [0.0]})
    found = planned(config, base / "baseline.json")
    assert (found["compared"], found["only_new"]) == (1, ["S0005-eta0"])
    assert found["only_baseline"] == ["S0003-eta0", "S0002-eta1", "S0003-eta1"]
    text, _ = taugrid("plan", config, "--out", tmp_path / "out", "--baseline", base / "baseline.json")
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
    ids=["another N", "too few", "another seed", "another grid", "no fid", "another reference"],
)
def test_what_the_night_would_refuse_is_refused_in_its_words(base, tmp_path, changes):
    config = write_config(tmp_path / "night.yaml", base / "old", **changes)
    file = ("--baseline", base / "baseline.json")
    _, by_night = taugrid("nightly", config, "--history", tmp_path / "history", "--id", "1", *file, code=2)
    out, by_plan = taugrid("plan", config, "--out", tmp_path / "history/nights/1/run", *file, "--json", code=2)
    assert by_plan == by_night.splitlines()[-1]
    assert out == ""


def test_a_baseline_that_is_none_is_refused(base, tmp_path):
    config = write_config(tmp_path / "night.yaml", base / "old")
    recorded(taugrid("plan", config, "--baseline", tmp_path / "absent", code=2)[1], "directory")


@pytest.mark.parametrize("lacking", ["a model", "the reference"])
def test_what_is_not_here_leaves_it_unknown_and_downloads_nothing(base, tmp_path, lacking, user_cache, monkeypatch):
    from taugrid.workers.data import fashion_mnist

    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path)
    monkeypatch.setattr(fashion_mnist, "download", lambda *_: pytest.fail("nothing may be downloaded"))
    shape = {"name": "fashion-mnist", "download": True}
    changes = (
        {} if lacking == "a model" else {"evaluate": {"metrics": ["fid"], "reference": shape, "extractor": "pixels"}}
    )
    config = write_config(
        tmp_path / "night.yaml", tmp_path / "absent" if lacking == "a model" else base / "old", **changes
    )
    found = planned(config, base / "baseline.json")
    assert found["compared"] is None
    recorded(found["unknown"])
    text, _ = taugrid("plan", config, "--out", tmp_path / "out", "--baseline", base / "baseline.json")
    recorded(text, "compared")


def test_strict_exits_with_2_if_there_is_any_warning_and_shows_the_plan_all_the_same(base, tmp_path):
    clean = write_config(tmp_path / "night.yaml", base / "old")
    taugrid("plan", clean, "--out", tmp_path / "out", "--strict")
    small = write_config(tmp_path / "small.yaml", base / "old", sample={**CONFIG["sample"], "num_samples": 100})
    out, told = taugrid("plan", small, "--out", tmp_path / "out", "--strict", "--json", code=2)
    assert len(json.loads(out)["remarks"]) == 1
    recorded(told)
    taugrid("plan", small, "--out", tmp_path / "out")
    missing = write_config(tmp_path / "missing.yaml", tmp_path / "absent")
    assert "warning: " in taugrid("plan", missing, "--out", tmp_path / "out", "--strict", code=2)[0]


@pytest.mark.parametrize("command", ["run", "train", "sample", "evaluate"])
def test_a_dry_run_prints_what_plan_prints_and_begins_nothing(command, base, tmp_path):
    config = write_config(tmp_path / "night.yaml", base / "old")
    out = ("--out", tmp_path / "out", "--set", "sample.seed=3", "--workers", "2")
    for more in ((), ("--json",)):
        assert taugrid(command, config, "--dry-run", *out, *more) == taugrid("plan", config, *out, *more)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_some_cells_shows_these(base):
    plan = json.loads(taugrid("plan", base / "night.yaml", "--out", base / "run", "--json")[0])
    words = ("run", base / "night.yaml", "--out", base / "run", "--only", "steps=3", "--dry-run", "--json")
    found = json.loads(taugrid(*words)[0])
    assert found["cells"] == [cell for cell in plan["cells"] if "S=3" in cell["label"]]
    assert len(found["cells"]) == 2
    assert found["network_evaluations"] == sum(cell["network_evaluations"] for cell in found["cells"])
    assert found["remarks"] == plan["remarks"], "the others are no orphans"


def test_a_dry_run_of_a_night_is_the_plan_of_the_night_in_its_own_folder(base, tmp_path):
    config, history = write_config(tmp_path / "night.yaml", base / "old"), tmp_path / "history"
    words = (config, "--history", history, "--json", "--baseline", base / "baseline.json")
    found = json.loads(taugrid("nightly", *words, "--id", "one", "--dry-run")[0])
    assert found == json.loads(taugrid("plan", *words, "--out", history / "nights" / "one" / "run")[0])
    assert found["baseline"]["compared"] == CELLS
    assert not history.exists()


def test_a_dry_run_of_images_from_elsewhere_is_refused(base, tmp_path):
    night = taugrid("nightly", "--samples", tmp_path, "--history", tmp_path / "history", "--dry-run", code=2)[1]
    scores = taugrid("evaluate", "--samples", tmp_path, "--reference", base / "run", "--dry-run", code=2)[1]
    recorded(night)
    recorded(scores)


def test_compare_of_folders_that_are_no_runs_says_which_command_compares_what(base, tmp_path):
    for name in ("A", "B"):
        (tmp_path / name).mkdir()
    for words in ((base / "run", tmp_path / "B"), (tmp_path / "A", "x", "y")):
        told = taugrid("compare", *words, code=2)[1]
        recorded(told)


def test_compare_of_a_run_that_has_lost_its_config_says_how_to_write_it_again(base, tmp_path):
    lost = shutil.copytree(base / "run", tmp_path / "lost")
    (lost / "config.json").unlink()
    recorded(taugrid("compare", lost, base / "baseline.json", code=2)[1], "taugrid")


def test_a_cell_may_have_the_name_of_a_folder(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "S0002-eta0").mkdir()
    assert "FID" in taugrid("compare", base / "run", "S0002-eta0", "S0003-eta0")[0]
