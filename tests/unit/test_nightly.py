"""`taugrid nightly`, on runs of small networks that are really sampled and scored, and what it leaves on disk."""

import io
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import duckdb
import nights
import pandas as pd
import pyarrow.parquet as pq
import pytest
from in_process import PoolHere
from nights import (
    CELLS,
    CONFIG,
    accept,
    checkpoint,
    compared,
    failing,
    interrupted,
    night,
    summary,
    taugrid,
    write_config,
)
from snapshots import recorded

import taugrid as taugrid_api
from taugrid.orchestrator.baseline.compared import VERDICT
from taugrid.orchestrator.nightly.history import SCHEMA, remove_images, since_last_removal, without_newest
from taugrid.orchestrator.nightly.judging import fresh_seed
from taugrid.orchestrator.nightly.places import open_history
from taugrid.orchestrator.plan import patterns
from taugrid.orchestrator.rundir import lease
from taugrid.run_id import FORMAT
from taugrid.storage import open_place, read_sealed, upload_folder, write_sealed

pytestmark = pytest.mark.usefixtures("one_thread", "sketched", "unreported")

begun, history = nights.begun, nights.history


def every_file(root):
    found = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {path: data for path, data in found.items() if path.name not in ("lease.json", ".lock")}


@pytest.fixture(scope="module")
def judged(begun):
    history = shutil.copytree(begun / "history", begun / "judged")
    before = len(nights.connections)
    found = night(history, begun / "worse.yaml", "2", code=3)
    assert nights.connections[before:] == ["local"], "it connects to Ray once, canaries and second look too"
    return history, found


@pytest.fixture
def after_worse(judged, tmp_path):
    return shutil.copytree(judged[0], tmp_path / "judged")


def junit(history, name):
    (suite,) = ElementTree.fromstring((history / f"nights/{name}/junit.xml").read_text())
    return suite


def test_a_worse_night_is_confirmed_with_a_fresh_seed_and_exits_with_3(judged):
    history, found = judged
    assert found["result"] == "worse"
    recorded(found["comparison"]["rule"], "stages")
    fresh = {json.loads(path.read_text())["cell"] for path in (history / "nights/2/fresh/scores").glob("*.json")}
    assert len(fresh) == 2 * CELLS, "both networks were sampled again"
    seeds = {name.parent.name for name in (history / "nights/2/fresh/samples").rglob("*.parquet")}
    assert not seeds & {path.name for path in (history / "nights/2/run/samples").iterdir()}
    usual = night_row(history, "2")
    assert (usual["difference"] != usual["value"] - usual["baseline_value"]).all(), "the verdict is the fresh seed's"
    accepted = night_row(history, "1").set_index("label")["value"]
    for cell in found["comparison"]["cells"]:
        margin = 0.02 * accepted[cell["name"].rsplit("-", 1)[0]]
        assert cell["t"] * cell["se"] == pytest.approx(cell["difference"] - margin), "of the FID that was recorded"
    recorded(summary(history, "2"), "# night")
    suite = junit(history, "2")
    assert (suite.get("tests"), suite.get("failures")) == ("4", "4")
    case = suite.find("testcase")
    assert case.get("name") == "S0002-eta0"
    assert "T = +" in case.find("failure").text


def night_row(history, name):
    table = pd.read_parquet(history / "history.parquet")
    return table[(table.night == name) & (table.metric == "fid")]


def test_each_look_of_each_night_has_noise_of_its_own():
    """A second look with the first's noise would confirm what that noise had singled out."""
    seeds = [fresh_seed(night, look, seed) for night in ("2", "3") for look in ("fresh", "grown") for seed in (0, 1)]
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert fresh_seed("2", "fresh", 0) == seeds[0], "a resumed night goes on with its own"


def test_without_the_baselines_weights_there_is_one_stage_and_it_says_why(begun, tmp_path):
    network = checkpoint(tmp_path / "gone")
    config = write_config(tmp_path / "gone.yaml", network)
    night(tmp_path / "history", config, "1")
    shutil.rmtree(network)
    baseline = tmp_path / "history/nights/1/run"
    found = night(tmp_path / "history", begun / "worse.yaml", "2", "--baseline", baseline, code=3)
    recorded(found["comparison"]["rule"], "because")
    recorded(found["comparison"]["checks"]["sampler"]["reason"], "baseline")
    recorded(summary(tmp_path / "history", "2").lower(), "sampler not")


@pytest.mark.long
def test_undecided_cells_are_grown_and_alpha_is_split(begun, history, judged):
    """The margin is what the usual seeds measure for the first cell, so no test can tell whether it is exceeded."""
    first = judged[1]["comparison"]["cells"][0]
    margin = (first["fid"] - first["baseline_fid"]) / first["baseline_fid"]
    once = night(history, begun / "worse.yaml", "2", "--margin", margin, code=None)
    undecided = [cell for cell in once["comparison"]["cells"] if cell["result"] == "undecided"]
    assert undecided, once["comparison"]["cells"]
    grown = night(history, begun / "worse.yaml", "3", "--margin", margin, "--grow-to", 400, code=None)
    recorded(grown["comparison"]["rule"], "grown")
    by_name = {cell["name"]: cell for cell in grown["comparison"]["cells"]}
    assert all(by_name[cell["name"]]["se"] < cell["se"] for cell in undecided)


@pytest.mark.long
def test_a_cell_that_has_the_n_to_grow_to_keeps_its_usual_seeds(begun, tmp_path):
    """The margin is what they measure, so that the cell is undecided."""
    grid = [{"steps": [2], "num_samples": [200]}, {"steps": [3], "num_samples": [400]}]
    old, worse = (write_config(tmp_path / f"{name}.yaml", begun / name, grid=grid) for name in ("same", "worse"))
    history = tmp_path / "history"
    night(history, old, "1")
    compared = ("--baseline", history / "nights/1/run")
    large = night(history, worse, "measured", *compared, code=3)["comparison"]["cells"][1]
    margin = (large["fid"] - large["baseline_fid"]) / large["baseline_fid"]
    grown = night(history, worse, "2", *compared, "--margin", margin, "--grow-to", 400, code=None)["comparison"]
    assert grown["cells"][1]["result"] == "undecided"
    assert grown["cells"][1]["difference"] == pytest.approx(large["fid"] - large["baseline_fid"], rel=1e-12)


def test_the_same_night_again_changes_nothing_and_mends_what_a_kill_left_unwritten(begun, after_worse, judged):
    before = every_file(after_worse)
    assert night(after_worse, begun / "worse.yaml", "2", code=3) == judged[1]
    assert every_file(after_worse) == before
    shutil.copy(begun / "history/history.parquet", after_worse / "history.parquet")  # as before the verdict
    for name in ("trend.svg", "index.html"):
        (after_worse / name).unlink()
    night(after_worse, begun / "worse.yaml", "2", code=3)
    assert every_file(after_worse) == before


def test_a_complete_night_does_not_answer_for_another_model_or_another_n(begun, history, tmp_path):
    """Else tonight's model would get the verdict, and the exit code, of one that was sampled earlier."""
    network = checkpoint(tmp_path / "latest")
    config = write_config(tmp_path / "latest.yaml", network)
    night(history, config, "2")
    before = every_file(history)
    words = ("nightly", config, "--history", history, "--id", "2")
    told = taugrid(*words, "--set", "sample.num_samples=400", code=2)[1]
    assert "N = 400" in told
    recorded(told)
    checkpoint(network, 0.3)
    recorded(taugrid(*words, code=2)[1], "checkpoint")
    assert every_file(history) == before


def test_an_unfinished_night_is_continued_by_the_next_call(begun, history, monkeypatch):
    interrupted(monkeypatch, history, begun / "same.yaml", "yesterday")
    out, told = taugrid("nightly", begun / "same.yaml", "--history", history, "--json")
    assert json.loads(out)["night"] == "yesterday"
    recorded(told, "yesterday")


@pytest.mark.long
@pytest.mark.parametrize("jobs", [0, 5], ids=["before its first sample", "later"])
def test_an_unfinished_night_whose_checkpoint_changed_makes_way(history, tmp_path, monkeypatch, jobs):
    network = checkpoint(tmp_path / "latest")
    config = write_config(tmp_path / "latest.yaml", network)
    done = iter([False] * jobs)
    interrupted(monkeypatch, history, config, "yesterday", at=lambda job: next(done, True))
    checkpoint(network, 1e-4)
    if jobs:
        _, told = taugrid("nightly", config, "--history", history, "--id", "yesterday", code=2)
        assert "--id NAME" in told
        assert "--out" not in told
    out, told = taugrid("nightly", config, "--history", history, "--json")
    assert json.loads(out)["night"] != "yesterday"
    recorded(told, "checkpoint")


@pytest.mark.long
def test_a_night_of_the_newest_checkpoint_is_continued_with_the_one_it_began_with(
    begun, history, tmp_path, monkeypatch
):
    """Else it would have two, of which neither is the baseline's only one, and no night could be compared any more."""
    checkpoint(tmp_path / "x/step-100", 1e-4)
    grid = {"model.checkpoint": [{"newest": 1, "of": str(tmp_path / "x/step-*")}], **CONFIG["grid"]}
    config = write_config(tmp_path / "newest.yaml", "unused", model={}, grid=grid)
    monkeypatch.setattr(patterns, "SETTLED_SECONDS", 0)
    with monkeypatch.context() as patch:
        failing(patch, lambda job: job.settings.eta == 1)
        night(history, config, "2", code=4)
    checkpoint(tmp_path / "x/step-200", 0.3)
    found = night(history, config, "2")
    assert found["result"] == "not worse"
    assert len({score["weights_sha256"] for score in found["scores"]}) == 1
    assert night(history, config, "2") == found, "a newer checkpoint does not reopen it"
    assert night(history, config, "3", code=3)["result"] == "worse"


def test_a_night_with_quarantined_cells_says_so_and_exits_with_4(begun, history, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, lambda job: (job.settings.steps, job.settings.eta) == (3, 1))
        found = night(history, begun / "same.yaml", "2", code=4)
    assert [name.rsplit("-", 1)[0] for name in found["missing"]] == ["S0003-eta1"]
    assert "incomplete: 1 missing" in summary(history, "2").splitlines()[0]
    assert junit(history, "2").get("errors") == "1"
    assert not (history / "nights/2/verdict.json").exists()
    assert night(history, begun / "same.yaml", "2")["missing"] == {}


@pytest.mark.long
def test_a_night_with_missing_and_worse_cells_says_both_and_exits_with_4(begun, history, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, lambda job: (job.settings.steps, job.settings.eta, job.settings.seed) == (3, 1, 0))
        found = night(history, begun / "worse.yaml", "2", code=4)
    assert found["result"] == "worse"
    assert len(found["missing"]) == 1
    assert all(said in summary(history, "2").splitlines()[0] for said in ("1 missing", "worse"))
    suite = junit(history, "2")
    assert (suite.get("failures"), suite.get("errors")) == ("3", "1")
    assert night(history, begun / "worse.yaml", "2", code=3)["missing"] == {}


@pytest.mark.long
def test_an_unfinished_second_look_leaves_its_cells_undecided_and_exits_with_4(begun, history, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, lambda job: job.settings.seed != 0 and job.settings.eta == 1)
        found = night(history, begun / "worse.yaml", "2", "--grow-to", 400, code=4)
    assert {cell["result"] for cell in found["comparison"]["cells"]} == {"undecided"}
    assert all(name.startswith("fresh/") for name in found["missing"])
    assert "is unfinished" in summary(history, "2")
    assert not (history / "nights/2/grown").exists()
    assert night(history, begun / "worse.yaml", "2", "--grow-to", 400, code=3)["result"] == "worse"


@pytest.mark.long
def test_old_images_are_removed_and_count_as_done(begun, history, reported):
    taugrid("report", history / "nights/1/run")
    night(history, begun / "same.yaml", "2", "--keep-images", 1)
    root = history / "nights/1/run"
    assert not list(root.glob("samples/*/*.parquet"))
    assert list((history / "nights/2/run").glob("samples/*/*.parquet"))
    assert "removed" in taugrid("status", root)[0]
    assert json.loads(taugrid("status", root, "--json")[0])["network_evaluations_remaining"] == 0
    said, _ = taugrid("verify", root)
    recorded(said, "decoded")
    figures = {path.name for path in (root / "figures").iterdir()}
    _, told = taugrid("run", root)
    recorded(told, "removed")
    assert "to do" not in told
    assert {path.name for path in (root / "figures").iterdir()} == figures
    assert "were removed" in taugrid("export", root, "S0002-eta0-", "--to", history / "pngs", code=2)[1]
    assert compared(history / "nights/2/run", root)["result"] == "identical"
    record = next((root / "removed").glob("*.parquet"))
    record.write_bytes(record.read_bytes()[:-3])
    assert "missing" in taugrid("verify", root, code=1)[0], "a damaged record is none"


@pytest.fixture(scope="module")
def removed(begun):
    """A history whose night 1 has no images any more; those of night 2 are there."""
    place = shutil.copytree(begun / "history", begun / "removed")
    night(place, begun / "same.yaml", "2", "--keep-images", 1)
    return place


def test_the_removal_of_images_costs_requests_for_the_nights_that_have_some_alone(removed, s3, monkeypatch):
    """Each night of a history of a year opened and locked those whose images were gone, and asked for each shard."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 600.0)
    used = []
    for gone in (1, 4):
        history = open_history(f"s3://{s3.bucket()}/nights")
        copies = [(f"1-{number}", "1") for number in range(gone)] + [("2", "2"), ("3", "2")]
        for name, copied in copies:
            upload_folder(history.night(name).folder, removed / "nights" / copied, VERDICT, history.storage)
        nights, told = history.complete_nights(), []
        assert [night.id for night in nights] == [name for name, _ in copies]
        before = s3.requests.total()
        remove_images(since_last_removal(without_newest(nights, 1)), told.append)
        used.append(s3.requests.total() - before)
        assert [line.partition(":")[0] for line in told] == ["night 2"]
    assert used[0] == used[1]


def test_a_removal_that_was_interrupted_is_finished_by_the_next_one(removed, tmp_path):
    for name, copied in (("1", "1"), ("2", "2"), ("3", "2"), ("4", "2")):
        shutil.copytree(removed / "nights" / copied, tmp_path / "nights" / name)
    nights = open_history(str(tmp_path)).complete_nights()

    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remove_images(since_last_removal(nights), interrupt)
    told = []
    remove_images(since_last_removal(nights), told.append)
    assert [line.partition(":")[0] for line in told] == ["night 3", "night 4"]
    assert not list(tmp_path.rglob("samples/*/*.parquet"))


def test_history_is_documented_and_read_by_duckdb(after_worse, rendered, reported):
    taugrid("report", after_worse)
    path = after_worse / "history.parquet"
    assert pq.read_schema(path).equals(SCHEMA, check_metadata=True)
    assert all(field.metadata[b"about"] for field in pq.read_schema(path))
    chosen = "metric = 'fid' and (t is null or t > 3)"
    counted = duckdb.sql(f"select night, count(*) from '{path}' where {chosen} group by night order by night")
    assert counted.fetchall() == [("1", CELLS), ("2", CELLS)]
    assert (after_worse / "trend.png").stat().st_size > 10_000


def test_a_verdict_of_another_version_is_a_line_of_the_history_and_stops_no_night(begun, history):
    """It was met when the next night was sampled and judged: that ended with 2, and so did each later one."""
    path = history / "nights/1/verdict.json"
    verdict = read_sealed(path)
    shutil.copytree(history / "nights/1", history / "nights/older/")
    of_images = history / "nights/images/verdict.json"
    of_images.parent.mkdir()
    write_sealed(history / "nights/older/verdict.json", {**verdict, "format": 0})
    write_sealed(of_images, {key: value for key, value in verdict.items() if key != "scores"})
    assert night(history, begun / "same.yaml", "2", "--keep-images", 1)["result"] == "identical"
    lines = json.loads(taugrid("status", history, "--json")[0])["nights"]
    verdicts = {line["night"]: line["verdict"] for line in lines}
    assert verdicts == {"older": "unreadable", "images": "unreadable", "1": "no baseline", "2": "identical"}
    assert sorted(set(pd.read_parquet(history / "history.parquet").night)) == ["1", "2"]
    assert list((history / "nights/older/run").glob("samples/*/*.parquet")), "only nights that count lose images"
    recorded(taugrid("status", history)[0], "older")
    out, _ = taugrid("nightly", begun / "same.yaml", "--history", history, "--json")
    assert json.loads(out)["night"] not in verdicts, "it is not continued"
    recorded(taugrid("nightly", begun / "same.yaml", "--history", history, "--id", "older", code=2)[1])


def test_an_unfinished_night_of_another_version_is_a_line_of_the_history_and_stops_no_night(
    begun, history, monkeypatch
):
    """Each later night without an id wanted to continue it, and ended with 2."""
    interrupted(monkeypatch, history, begun / "same.yaml", "older")
    path = history / "nights/older/run/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT - 1}))
    out, _ = taugrid("nightly", begun / "same.yaml", "--history", history, "--json")
    assert json.loads(out)["night"] != "older"
    assert json.loads(out)["result"] == "identical"
    lines = json.loads(taugrid("status", history, "--json")[0])["nights"]
    assert [line["verdict"] for line in lines] == ["unreadable", "no baseline", "identical"]
    recorded(taugrid("status", history)[0], "older")
    assert "unreadable" in (history / "index.html").read_text()
    taugrid("plan", begun / "same.yaml", "--history", history)


def test_two_at_once_do_not_corrupt_a_history(begun, history, monkeypatch):
    submit, refusals = PoolHere.submit, []

    def with_a_rival(pool, worker, job, key):
        if not refusals:
            refusals.append(taugrid("nightly", begun / "same.yaml", "--history", history, "--id", "3", code=2)[1])
        submit(pool, worker, job, key)

    monkeypatch.setattr(PoolHere, "submit", with_a_rival)
    night(history, begun / "same.yaml", "2")
    assert "is running" in refusals[0]
    assert sorted(set(pd.read_parquet(history / "history.parquet").night)) == ["1", "2"]


def test_what_can_not_be_a_night_is_refused_before_anything_starts(begun, tmp_path):
    config = write_config(tmp_path / "small.yaml", begun / "same", sample={**CONFIG["sample"], "num_samples": 159})
    words = ("--history", tmp_path / "history")
    recorded(taugrid("nightly", config, *words, "--id", "1", code=2)[1], "night")
    recorded(taugrid("plan", config, *words)[0], "at least")
    words = ("nightly", begun / "same.yaml", *words, "--id")
    assert "--id" in taugrid(*words, "../x", code=2)[1]
    assert not (tmp_path / "history/nights/1/run/samples").exists()


def test_plan_prices_a_night_in_time_and_bytes(begun, judged, tmp_path):
    out, _ = taugrid("plan", begun / "same.yaml", "--out", tmp_path / "run", "--history", begun / "history", "--json")
    found = json.loads(out)["night"]
    text = next((begun / "history/nights/1/run/events").glob("*")).read_text()
    events = [json.loads(line) for line in text.splitlines()]
    seconds = sum(event["seconds"] for event in events if event["event"] == "shard")
    assert found["worker_seconds"] == pytest.approx(seconds, abs=0.06)
    assert found["bytes_at_most"] == 200 * CELLS * (16 + 200)
    shown, _ = taugrid("plan", begun / "same.yaml", "--out", tmp_path / "run", "--history", tmp_path / "none")
    recorded(shown, "unknown")
    priced = json.loads(taugrid("plan", begun / "nearby.yaml", "--history", judged[0], "--json")[0])["night"]
    assert judged[1]["comparison"]["sharpnesses"].keys() == {"fid"}
    assert priced["smallest_losses_seen"] == {}, "a broken night does not tell what one will detect"


def test_plan_knows_the_time_of_the_last_night_of_a_run_after_one_of_images(begun, history):
    words = ("plan", begun / "same.yaml", "--history", history, "--json")
    before = json.loads(taugrid(*words)[0])["night"]
    assert before["worker_seconds"] is not None
    images = {"path": "pngs", "sha256": "0" * 64, "reference": "gaussian"}
    verdict = nights.empty_verdict("2", "2100-01-01T00:00:00+00:00") | {"images": images}
    (history / "nights/2").mkdir()
    write_sealed(history / "nights/2/verdict.json", verdict)
    assert [line.split()[0] for line in taugrid("status", history)[0].splitlines()] == ["1", "2"]
    assert json.loads(taugrid(*words)[0])["night"] == before


@pytest.mark.long
def test_a_history_in_a_bucket(begun, s3):
    """Two nights and a baseline in a bucket: the same results as in a folder, and images of the first are removed."""
    history, one = f"s3://{s3.bucket()}/nights", ("--set", "grid={steps: [2], eta: [0.0]}")
    night(history, begun / "same.yaml", "1", *one)
    accept(history, "1")
    found = night(history, begun / "worse.yaml", "2", *one, "--keep-images", 1, code=3)
    assert found["baseline"]["place"] == f"{history}/baseline.json"
    recorded(found["comparison"]["rule"], "stages")
    assert night(history, begun / "worse.yaml", "2", *one, code=3) == found, "it is complete"
    root, storage = open_place(history, "--history")
    table = pd.read_parquet(io.BytesIO(storage.read(root / "history.parquet")))
    assert table[table.metric == "fid"].groupby("night").size().to_dict() == {"1": 1, "2": 1}
    assert all(storage.exists(root / f"trend.{kind}") for kind in ("png", "svg"))
    assert "removed" in taugrid("status", f"{history}/nights/1/run")[0]
    assert [line.split()[0] for line in taugrid("status", history)[0].splitlines()] == ["1", "2"]
    storage.delete(root / "index.html")
    assert taugrid("report", history)[0] == f"page: {history}/index.html\n"
    assert storage.exists(root / "index.html")
    opened = taugrid_api.open(history)
    assert (opened.directory, opened.table.night.nunique()) == (history, 2)
    assert opened.open("2").directory == f"{history}/nights/2/run"
    shown, _ = taugrid("plan", begun / "same.yaml", "--history", history)
    assert "in night 2" in shown
    assert not Path("s3:").exists()


@pytest.mark.parametrize(
    "prepare",
    [
        lambda place: place.write_text("x"),
        lambda place: (place / "thesis").mkdir(parents=True),
        lambda place: place.mkdir() or (place / "config.json").write_text("{}"),
        lambda place: [(place / name).mkdir(parents=True) for name in ("baseline.json", "src")],
    ],
)
def test_a_place_that_is_no_history_is_refused_and_left_alone(begun, tmp_path, prepare):
    place = tmp_path / "place"
    prepare(place)
    before = sorted(tmp_path.rglob("*"))
    for command in (("nightly", begun / "same.yaml"), ("plan", begun / "same.yaml")):
        recorded(taugrid(*command, "--history", place, code=2)[1])
    assert sorted(tmp_path.rglob("*")) == before
