"""`compare DIR BASELINE` and `baseline accept`, on runs of small networks that are really sampled and scored."""

import json
import re
import shutil
import tracemalloc
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import get_args

import nights
import numpy as np
import pyarrow.parquet as pq
import pytest
from in_process import drive, small_run
from nights import CELLS, CONFIG, compared, taugrid, write_config
from planted_faults import scaled_sigma
from snapshots import recorded

from taugrid.orchestrator.baseline.compared import PixelDistance, Situation
from taugrid.orchestrator.baseline.comparison import compare_snapshots, pixel_distance
from taugrid.orchestrator.baseline.files import read_baseline
from taugrid.orchestrator.baseline.snapshot import Network, SamplingEnvironment, snapshot_of_opened
from taugrid.orchestrator.opened import open_existing
from taugrid.storage import LOCAL, write_sealed

GAUSSIAN = CONFIG["data"]
SAME, OTHER, _ = get_args(Situation)

begun = nights.begun

pytestmark = pytest.mark.usefixtures("one_thread", "sketched", "unreported")


def run(begun, folder, network, **changes):
    config = write_config(folder / "night.yaml", network, **changes)
    taugrid("run", config, "--out", folder / "run")
    return folder / "run"


@pytest.mark.long
@pytest.mark.parametrize("baseline", ["run", "baseline.json"])
def test_the_same_weights_make_the_same_pixels_and_a_broken_sampler_others(begun, tmp_path, monkeypatch, baseline):
    """Eq. 16's sigma times 1.02: cells at eta = 0 stay, the others change, however little their FID does."""
    (tmp_path / "healthy").mkdir()
    found = compared(run(begun, tmp_path / "healthy", begun / "same"), begun / baseline)
    assert (found["result"], found["critical"]) == ("identical", None)
    assert [cell["situation"] for cell in found["cells"]] == [SAME] * CELLS
    assert {cell["pixels"]["differing"] for cell in found["cells"]} == {0}
    assert "no cell" in found["rule"]
    scaled_sigma(1.02)(monkeypatch)
    found = compared(run(begun, tmp_path, begun / "same"), begun / baseline, code=3)
    results = {cell["name"].rsplit("-", 1)[0]: cell["result"] for cell in found["cells"]}
    assert [results[f"S000{steps}-eta0"] for steps in (2, 3)] == ["identical"] * 2
    assert [results[f"S000{steps}-eta1"] for steps in (2, 3)] == ["changed pixels"] * 2
    changed = [cell["pixels"] for cell in found["cells"] if cell["result"] == "changed pixels"]
    assert all(pixels["images"] == 200 and 0 < pixels["differing"] <= 200 for pixels in changed)
    assert all(1 <= pixels["largest"] <= 255 for pixels in changed)


def test_one_image_that_differs_is_seen(begun):
    old = read_baseline(begun / "baseline.json")
    digests = old.cells[0].load_digests().copy()
    digests[7] = digests[8]
    new = replace(old, cells=(replace(old.cells[0], load_digests=lambda: digests),))
    (found,) = compare_snapshots(new, old).cells
    assert (found.result, found.pixels.differing) == ("changed pixels", 1)


def test_equal_images_are_compared_without_decoding_any(begun, tmp_path, monkeypatch):
    monkeypatch.setattr("taugrid.parquet.reader.decode_png", lambda *_, **__: pytest.fail("an image is decoded"))
    found = compared(begun / "run", shutil.copytree(begun / "run", tmp_path / "copy"))
    assert found["result"] == "identical"
    assert {cell["pixels"]["images"] for cell in found["cells"]} == {200}


def test_without_the_baselines_images_it_is_still_known_how_many_differ(begun, tmp_path, monkeypatch):
    before = shutil.copytree(begun / "run", tmp_path / "before")
    taugrid("baseline", "accept", before, "--to", tmp_path / "baseline.json", "--reason", "its images go")
    shutil.rmtree(before)
    scaled_sigma(1.02)(monkeypatch)
    found = compared(run(begun, tmp_path, begun / "same"), tmp_path / "baseline.json", code=3)
    changed = [cell["pixels"] for cell in found["cells"] if cell["result"] == "changed pixels"]
    assert len(changed) == 2
    assert all(pixels["differing"] > 0 and pixels["largest"] is None for pixels in changed)


def test_the_same_weights_with_other_software_are_judged_by_their_difference(begun, tmp_path, monkeypatch):
    scaled_sigma(1.02)(monkeypatch)
    root = run(begun, tmp_path, begun / "same")
    events = next((root / "events").glob("*.jsonl"))
    assert '"torch": "' in events.read_text()
    events.write_text(events.read_text().replace('"torch": "', '"torch": "9'))
    found = compared(root, begun / "run", "--margin", 1.0)
    assert {cell["situation"] for cell in found["cells"]} == {OTHER}
    assert any("with torch" in mark for mark in found["marks"])
    by_result = {cell["result"]: cell for cell in found["cells"]}
    assert set(by_result) == {"identical", "not worse"}
    assert by_result["not worse"]["pixels"]["largest"] >= 1


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_threads_are_those_that_ran_not_those_of_the_config(begun, tmp_path):
    """A resumed run may have other `cluster` settings than the session that made the images."""
    root = shutil.copytree(begun / "run", tmp_path / "run")
    rewrite(root / "config.json", '"cpus_per_worker": 1', '"cpus_per_worker": 4')
    found = compared(root, begun / "run")
    assert {cell["situation"] for cell in found["cells"]} == {SAME}
    rewrite(next((root / "events").glob("*.jsonl")), '"threads": 1', '"threads": 4')
    found = compared(root, begun / "run")
    assert {cell["situation"] for cell in found["cells"]} == {OTHER}
    recorded("\n".join(found["marks"]), "sampled")


@pytest.mark.long
@pytest.mark.parametrize("first", ["one", "another"])
def test_of_cells_made_by_workers_of_several_kinds_the_first_shard_tells(begun, tmp_path, monkeypatch, first):
    """Which worker made which image differs from night to night, and so may the pixels; that of image 0 is known."""
    scaled_sigma(1.02)(monkeypatch)
    root = run(begun, tmp_path, begun / "same")
    before = shutil.copytree(begun / "run", tmp_path / "before")
    for directory, kinds in ((root, (first, "third")), (before, ("one", "third"))):
        path = next((directory / "events").glob("*.jsonl"))
        events = [json.loads(line) for line in path.read_text().splitlines()]
        for event in events:
            if event["event"] == "shard" or event.get("task", "").startswith("sample/"):
                number = re.search(r"(\d+)(\.parquet)?$", event.get("path") or event["task"])[1]
                event["device"] = kinds[int(number) > 0]
        path.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    found = compared(root, before, "--margin", 1.0, code=3 if first == "one" else 0)
    assert {cell["situation"] for cell in found["cells"]} == {OTHER}
    changed = {"changed sampler"} if first == "one" else {"not worse"}
    assert {cell["result"] for cell in found["cells"]} == {"identical"} | changed
    assert found["checks"]["sampler"]["result"] == ("changed" if first == "one" else "unknown")
    told = "workers of several kinds" if first == "one" else "device one and third -> another and third"
    assert any(told in mark for mark in found["marks"])


def test_new_weights_are_judged_by_the_paired_difference_alone(begun, tmp_path):
    worse = run(begun, tmp_path, begun / "worse")
    found = compared(worse, begun / "baseline.json", code=3)
    assert {cell["situation"] for cell in found["cells"]} == {"new weights"}
    assert found["result"] == "worse"
    for cell in found["cells"]:
        assert cell["pixels"] is None
        assert cell["difference"] == pytest.approx(cell["fid"] - cell["baseline_fid"])
        assert cell["margin"] == pytest.approx(0.02 * cell["baseline_fid"])
        assert cell["t"] == pytest.approx((cell["difference"] - cell["margin"]) / cell["se"])
        assert (cell["result"] == "worse") == (cell["t"] > found["critical"])
    assert compared(begun / "run", worse)["result"] == "better"
    for kind in ("json", "parquet"):
        shutil.copy(begun / f"baseline.{kind}", tmp_path)
    shown, _ = taugrid("baseline", "accept", worse, "--to", tmp_path / "baseline.json", "--reason", "on purpose")
    recorded(shown, "accepted")
    assert compared(worse, tmp_path / "baseline.json")["result"] == "identical"


def test_a_small_change_needs_a_margin_and_damaged_influences_are_missing_and_no_collapse(begun, tmp_path):
    root = run(begun, tmp_path, begun / "nearby")
    assert compared(root, begun / "run")["result"] == "not worse"
    assert "margin 0" in compared(root, begun / "run", "--margin", 0, code=None)["notes"][0]
    path = next((root / "scores").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-3])
    recorded(taugrid("compare", root, begun / "baseline.json", code=4)[0], "influences")
    found = compared(root, begun / "baseline.json", code=4)
    assert sorted(cell["result"] for cell in found["cells"]) == ["not judged"] + ["not worse"] * (CELLS - 1)
    assert not found["not_judged"], "it can still be judged"


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate": {"metrics": ["fid"], "reference": GAUSSIAN | {"limit": 500}}},
        {"sample": CONFIG["sample"] | {"num_samples": 250}},
        {"diffusion": {"process": "flow", "prediction": "sample"}},
        {"data": {"name": "two-points", "shape": [1, 4, 4]}},
    ],
)
def test_runs_measured_in_different_ways_are_refused(begun, tmp_path, changes):
    root = run(begun, tmp_path, begun / "same", **changes)
    _, told = taugrid("compare", root, begun / "baseline.json", code=2)
    assert told.count("reference is") <= 1
    recorded(told)
    assert len(told.strip().splitlines()) == 1


def test_cells_of_one_side_alone_are_listed(begun, tmp_path):
    root = run(begun, tmp_path, begun / "same", grid={"steps": [3, 4], "eta": [0.0]})
    found = compared(root, begun / "run", code=5)
    assert [cell["name"].split("-")[0] for cell in found["cells"]] == ["S0003"]
    assert [name.rsplit("-", 1)[0] for name in found["only_new"]] == ["S0004-eta0"]
    assert len(found["only_baseline"]) == 3
    shown, _ = taugrid("compare", root, begun / "run", code=5)
    recorded(shown, "identical")
    assert shown.splitlines()[0].endswith(f"{root} (new) - {begun / 'run'}")
    recorded(taugrid("compare", root, begun / "run", "--allow-missing")[0], "identical")


def test_a_baseline_file_holds_no_images_and_pandas_reads_it(begun):
    table = pq.read_table(begun / "baseline.parquet").to_pandas()
    assert len(table) == 200 * CELLS
    assert table.groupby("cell").size().tolist() == [200] * CELLS
    value = json.loads((begun / "baseline.json").read_text())
    cell = value["cells"][0]
    influence = table[table.cell == cell["cell"]].influence.to_numpy()
    assert np.std(influence, ddof=1) / np.sqrt(200) == pytest.approx(cell["metrics"]["fid_se"])
    assert cell["protocol"]["reference"]["dataset"] == "gaussian"
    assert "the first" in taugrid("baseline", "show", begun / "baseline.json")[0]


def test_a_baseline_that_can_judge_nothing_or_is_damaged_is_not_accepted_in_silence(begun, tmp_path):
    few = run(begun, tmp_path, begun / "same", sample={"num_samples": 50, "batch_size": 50})
    shown, _ = taugrid("baseline", "accept", few, "--to", tmp_path / "few.json", "--reason", "too few")
    recorded(shown, "standard")
    (tmp_path / "file").touch()
    _, told = taugrid("baseline", "accept", few, "--to", tmp_path / "file/b.json", "--reason", "r", code=2)
    recorded(told, "write")
    (tmp_path / "other").mkdir()
    other = run(begun, tmp_path / "other", begun / "same", evaluate={"metrics": ["prc"]}, grid={"steps": [2]})
    _, told = taugrid("baseline", "accept", other, "--to", tmp_path / "prc.json", "--reason", "r", code=2)
    recorded(told, "without")
    (few / "scorer.json").write_text("{}")
    _, told = taugrid("baseline", "accept", few, "--to", tmp_path / "few.json", "--reason", "r", code=2)
    recorded(told, "changed")


def test_a_baseline_file_that_was_changed_or_torn_apart_is_refused(begun, tmp_path):
    for kind in ("json", "parquet"):
        shutil.copy(begun / f"baseline.{kind}", tmp_path)
    path, beside = tmp_path / "baseline.json", tmp_path / "baseline.parquet"
    data = beside.read_bytes()
    beside.write_bytes(data[:-1])
    recorded(taugrid("compare", begun / "run", path, code=2)[1], "restore")
    beside.unlink()
    assert "missing" in taugrid("compare", begun / "run", path, code=2)[1]
    path.write_text(path.read_text().replace("the first", "another"))
    recorded(taugrid("compare", begun / "run", path, code=2)[1], "changed")
    recorded(taugrid("baseline", "show", tmp_path / "none.json", code=2)[1], "missing")


@pytest.mark.parametrize("damage", ["json", "parquet", "an older format"])
def test_a_baseline_file_that_can_not_be_read_is_replaced_with_a_remark(begun, tmp_path, damage):
    """The messages about such a file say: accept a run. A kill between the two files leaves one that can't be read."""
    for kind in ("json", "parquet"):
        shutil.copy(begun / f"baseline.{kind}", tmp_path)
    path, beside = tmp_path / "baseline.json", tmp_path / "baseline.parquet"
    if damage == "json":
        path.write_text(path.read_text() + "x")
    elif damage == "parquet":
        beside.write_bytes(beside.read_bytes()[:-1])
    else:
        value = {**json.loads(path.read_text()), "format": "taugrid baseline 2"}
        value.pop("sha256")
        write_sealed(path, value)
    taugrid("compare", begun / "run", path, code=2)
    taugrid("baseline", "accept", begun / "run", "--to", path, "--reason", "again")
    value = json.loads(path.read_text())
    assert (value["reason"], value["replaces"], len(value["remarks"])) == ("again", None, 1)
    recorded(value["remarks"][0])
    taugrid("compare", begun / "run", path)


@pytest.mark.parametrize("content", ['{"name": "a package"}', "", "format: taugrid baseline 3"])
def test_a_file_that_is_no_baseline_is_not_replaced(begun, tmp_path, content):
    path = tmp_path / "package.json"
    path.write_text(content)
    told = taugrid("baseline", "accept", begun / "run", "--to", path, "--reason", "r", code=2)[1]
    recorded(told)
    assert path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


def test_the_mean_distance_of_images_is_over_all_their_pixels():
    grey = np.zeros((10, 1, 2, 2), np.uint8)
    other = grey.copy()
    other[3, 0, 1, 1] = 8
    new, old = (
        SimpleNamespace(load_digests=partial(np.sum, side, axis=(1, 2, 3)), load_images=partial(np.array, side))
        for side in (other, grey)
    )
    assert pixel_distance(new, old) == PixelDistance(10, 1, 8, 2.0)


def sampled(folder, count, seed, shard):
    """The only cell of a run of that many images, of 768 bytes each."""
    folder.mkdir()
    grid = (
        f"grid: {{steps: [2], eta: [1.0]}}\nsample: {{seed: {seed}, num_samples: {count}, shard_evaluations: {shard}}}"
    )
    text = f"name: x\nmodel: {{oracle: gaussian}}\ndata: {{name: gaussian, shape: [3, 16, 16]}}\n{grid}"
    with small_run(folder, text) as opened:
        drive(opened, folder / "run", LOCAL, ["sample"])
    (cell,) = snapshot_of_opened(open_existing(str(folder / "run")), with_scores=False).cells
    return cell


def test_the_memory_of_a_comparison_does_not_grow_with_the_images(tmp_path):
    """Once all images of both sides were in memory, with their differences: 4 bytes a pixel."""
    peaks = {}
    for count in (1500, 4500):
        new = sampled(tmp_path / f"new-{count}", count, seed=0, shard=800)
        old = sampled(tmp_path / f"old-{count}", count, seed=1, shard=600)
        tracemalloc.start()
        found = pixel_distance(new, old)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    images = [np.stack(list(side.load_images())).astype(int) for side in (new, old)]
    means = np.abs(images[0] - images[1]).mean(axis=(1, 2, 3))
    assert found == PixelDistance(4500, 4500, np.abs(images[0] - images[1]).max(), means.mean())
    assert peaks[4500] - peaks[1500] < 3000 * 768 / 4


def test_images_that_are_gone_have_no_distance_but_a_number(tmp_path):
    new, old = (sampled(tmp_path / f"seed-{seed}", 300, seed, 200) for seed in (0, 1))
    assert pixel_distance(new, old).largest > 0
    sorted((tmp_path / "seed-1/run/samples").rglob("*.parquet"))[-1].unlink()
    assert pixel_distance(new, old) == PixelDistance(300, 300, None, None)


def test_what_is_unknown_on_both_sides_is_not_taken_for_equal():
    known, unknown = (SamplingEnvironment(("cpu",), {"torch": torch}, "1", 8) for torch in ("2.9", "unknown"))
    assert (known.differences(known), len(unknown.differences(unknown))) == ([], 1)


def test_equal_weights_of_another_process_are_another_network():
    linear, cosine = (Network("weights", {"schedule": schedule}, None, None) for schedule in ("linear", "cosine"))
    assert (linear.is_same(linear), linear.is_same(cosine)) == (True, False)
