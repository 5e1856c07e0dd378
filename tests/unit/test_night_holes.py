"""Ways in which a night was once green, or ended well, over something broken: looks that fail, other sessions' code."""

import json
import shutil

import click
import pytest
from nights import CELLS, checkpoint, taugrid, write_config
from planted_faults import drop_last_step, scaled_fid
from snapshots import recorded

from taugrid.eval import extract
from taugrid.eval.sources import Batch
from taugrid.orchestrator.nightly import night as night_module
from taugrid.orchestrator.rundir import provenance
from taugrid.storage import write_sealed
from taugrid.workers import pixels
from taugrid.workers import sample as sampling
from taugrid.workers.diffusion.decoder import Identity
from taugrid.workers.network.checkpoint import weights_file, weights_sha256

pytestmark = pytest.mark.usefixtures("one_thread", "sketched", "unreported")


def night(history, config, name, *options, code=0):
    out, _ = taugrid("nightly", config, "--history", history, "--id", name, *options, "--json", code=code)
    return json.loads(out)


def accept(history, name, *options, code=0):
    words = ("--to", history / "baseline.json", "--reason", "a night")
    return taugrid("baseline", "accept", history / f"nights/{name}/run", *words, *options, code=code)


def first_line(history, name):
    return (history / f"nights/{name}/summary.md").read_text().splitlines()[0]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A history whose first night is its baseline, and three networks; the same network in a run of its own."""
    folder = tmp_path_factory.mktemp("begun")
    for name, worse in (("same", 0.0), ("nearby", 1e-4), ("worse", 0.3)):
        write_config(folder / f"{name}.yaml", checkpoint(folder / name, worse))
    night(folder / "history", folder / "same.yaml", "1")
    accept(folder / "history", "1")
    taugrid("run", folder / "same.yaml", "--out", folder / "plain")
    return folder


@pytest.fixture
def history(begun, tmp_path):
    return shutil.copytree(begun / "history", tmp_path / "history")


@pytest.fixture(scope="module")
def second_night(begun):
    """That history with a second night, of the network nearby."""
    place = shutil.copytree(begun / "history", begun / "second")
    night(place, begun / "nearby.yaml", "2")
    return place


@pytest.fixture
def later(second_night, tmp_path):
    """A copy of it."""
    return shutil.copytree(second_night, tmp_path / "later")


class NaNs(Identity):
    """A decoder that makes no number of any sample."""

    def __call__(self, x0):
        return super().__call__(x0) * float("nan")


def nan_where(monkeypatch, wanted):
    """Samples of the jobs that are `wanted` are NaN."""
    whole = sampling._transfers

    def transfers(job, first_new, labels, model, decode, *rest):
        return whole(job, first_new, labels, model, NaNs(job.decoder.shape) if wanted(job) else decode, *rest)

    monkeypatch.setattr(sampling, "_transfers", transfers)


def interrupted(monkeypatch, history, config, name):
    """A night that ends after tonight's cells are sampled and scored."""
    with monkeypatch.context() as patch:
        patch.setattr(night_module, "_judge", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            night(history, config, name)


def other_code(monkeypatch):
    monkeypatch.setattr(provenance, "code_sha256", lambda: "0" * 64)


@pytest.mark.long
def test_a_second_look_that_fails_for_both_networks_leaves_the_verdict_of_one_stage(begun, history, monkeypatch):
    nan_where(monkeypatch, lambda job: job.settings.seed != 0)
    found = night(history, begun / "worse.yaml", "2", code=3)
    assert {cell["result"] for cell in found["comparison"]["cells"]} == {"worse"}
    recorded(found["comparison"]["rule"].partition(" (sample/")[0])


@pytest.mark.long
def test_a_network_that_fails_with_a_fresh_seed_has_collapsed(begun, history, monkeypatch):
    tonight = weights_sha256(weights_file(begun / "worse"))
    nan_where(monkeypatch, lambda job: job.settings.seed != 0 and job.metadata["weights_sha256"] == tonight)
    found = night(history, begun / "worse.yaml", "2", code=3)
    assert {cell["result"] for cell in found["comparison"]["cells"]} == {"collapsed"}
    assert "fresh seed" in found["comparison"]["cells"][0]["note"]


def test_a_baseline_that_is_a_run_directory_is_not_scored_again_by_a_broken_scorer(begun, tmp_path, monkeypatch):
    """Its scores were recorded with the scorer that it had. A fault would cancel if both sides had today's."""
    scaled_fid(1.01)(monkeypatch)
    found = night(tmp_path / "history", begun / "nearby.yaml", "1", "--baseline", begun / "plain", code=3)
    assert found["result"] == "changed scorer"


def test_a_run_without_a_record_of_its_scorer_gets_no_tick(begun, tmp_path):
    plain = shutil.copytree(begun / "plain", tmp_path / "plain")
    (plain / "scorer.json").unlink()
    taugrid("baseline", "accept", plain, "--to", tmp_path / "b.json", "--reason", "of an earlier version")
    found = night(tmp_path / "history", begun / "nearby.yaml", "1", "--baseline", tmp_path / "b.json")
    assert found["comparison"]["checks"]["scorer"]["result"] == "unknown"
    assert "➖ not worse" in first_line(tmp_path / "history", "1")


@pytest.mark.long
def test_a_sampler_that_was_mended_while_a_night_was_interrupted_is_not_called_clean(begun, history, monkeypatch):
    with monkeypatch.context() as patch:
        drop_last_step(patch)
        interrupted(patch, history, begun / "nearby.yaml", "2")
    other_code(monkeypatch)
    found = night(history, begun / "nearby.yaml", "2", code=None)
    assert "✅" not in first_line(history, "2")
    recorded(found["comparison"]["checks"]["sampler"]["reason"], "taugrid")
    assert not (history / "nights/2/fresh").exists()


@pytest.mark.long
def test_a_scorer_that_changes_while_a_night_is_interrupted_does_not_judge_its_second_look(begun, history, monkeypatch):
    interrupted(monkeypatch, history, begun / "worse.yaml", "2")
    scaled_fid(0.0)(monkeypatch)
    found = night(history, begun / "worse.yaml", "2", code=3)
    assert found["result"] == "worse"
    recorded(found["comparison"]["rule"], "changed")


def test_a_cell_that_fails_is_red_although_the_baseline_lacks_it(begun, history, monkeypatch):
    nan_where(monkeypatch, lambda job: len(job.tau) == 4)
    grid = ("--set", "grid={steps: [2, 3, 4], eta: [0.0, 1.0]}")
    found = night(history, begun / "nearby.yaml", "2", *grid, code=3)
    assert (found["result"], found["comparison"]["result"]) == ("collapsed", "not worse")
    assert "❌ collapsed" in first_line(history, "2")
    text = (history / "nights/2/summary.md").read_text()
    assert text.count("- **failed**: `S0004") == 2
    recorded(text, "Next:")
    assert (history / "nights/2/junit.xml").read_text().count("<failure") == 2


@pytest.mark.long
def test_a_baseline_that_is_replaced_while_a_night_is_interrupted_gets_canaries_of_its_own(begun, later, monkeypatch):
    history = later
    with monkeypatch.context() as patch:
        patch.setattr(night_module, "judge_night", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            night(history, begun / "worse.yaml", "3")
    accept(history, "2")
    found = night(history, begun / "worse.yaml", "3", code=3)
    assert found["comparison"]["checks"]["sampler"]["result"] == "clean"
    assert found["result"] == "worse"


def test_a_run_with_damaged_influences_is_no_baseline(begun, history):
    before = (history / "baseline.json").read_bytes()
    for path in (history / "nights/1/run/scores").glob("*.parquet"):
        path.unlink()
    recorded(accept(history, "1", code=2)[1], "influences")
    assert (history / "baseline.json").read_bytes() == before


@pytest.mark.long
def test_trainings_with_other_diffusion_are_no_recipe(begun, tmp_path):
    runs = []
    for number, worse in enumerate((0.0, 0.02, 0.04)):
        diffusion = {"prediction": "sample", "schedule": "cosine" if number == 1 else "linear"}
        network = checkpoint(tmp_path / f"training-{number}", worse)
        config = write_config(tmp_path / f"{number}.yaml", network, diffusion=diffusion)
        runs.append(tmp_path / f"run-{number}")
        taugrid("run", config, "--out", runs[-1])
    told = taugrid("baseline", "accept", *runs, "--to", tmp_path / "b.json", "--reason", "x", code=2)[1]
    recorded(told, "differ")
    assert not (tmp_path / "b.json").exists()


@pytest.mark.long
def test_a_fault_in_reading_samples_is_red_because_the_baselines_network_denies_it(begun, history, monkeypatch):
    """Neither canary sees it: one compares pixels, the other scores the reference."""
    monkeypatch.setattr(pixels, "MAX_BYTES", 0)  # else a worker would not read what it sampled itself
    whole = extract._batches

    def darker(job):
        batches = whole(job)
        return (Batch(index, images // 2) for index, images in batches) if isinstance(job.images, str) else batches

    monkeypatch.setattr(extract, "_batches", darker)
    found = night(history, begun / "nearby.yaml", "2", code=3)
    assert found["result"] == "worse"
    assert {check["result"] for check in found["comparison"]["checks"].values()} == {"clean"}
    recorded(found["comparison"]["rule"], "baseline")


def test_a_record_of_the_scorer_that_was_damaged_is_no_record(later):
    history = later
    (history / "nights/2/run/scorer.json").write_text("x")
    shown, _ = taugrid("compare", history / "nights/2/run", history / "baseline.json")
    assert shown.startswith("➖")
    recorded(shown, "changed")


def test_a_night_without_its_verdict_is_no_baseline(begun, history):
    path = history / "nights/1/verdict.json"
    path.write_text(path.read_text().replace("no baseline", "not worse"))
    recorded(accept(history, "1", code=2)[1], "changed")
    path.unlink()
    recorded(accept(history, "1", code=2)[1], "finished")
    accept(history, "1", "--force")


@pytest.mark.parametrize("option", ["--margin", "--alpha", "--sharpness"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_that_are_none_are_refused(begun, history, option, value):
    with pytest.raises(click.UsageError):
        night(history, begun / "nearby.yaml", "2", option, value)
    assert not (history / "nights/2").exists()


def test_a_distance_that_was_accepted_is_kept_by_the_next_baseline(later):
    history = later
    path = history / "baseline.json"
    value = json.loads(path.read_text())
    value.pop("sha256")
    for cell in value["cells"]:
        cell["distances"] = {"a-b": 1.5}
    write_sealed(path, value)
    accept(history, "2")
    cells = json.loads(path.read_text())["cells"]
    assert [cell["distances"] for cell in cells] == [{"a-b": 1.5}] * CELLS
