"""Ways in which a night was once green, or ended well, over something broken: looks that fail, other sessions' code."""

import json
import shutil
from types import SimpleNamespace

import click
import nights
import pytest
from nights import CELLS, accept, checks, interrupted, night, results, submitted, summary, taugrid
from planted_faults import drop_last_step, scaled_fid
from snapshots import recorded

from taugrid import parquet
from taugrid.eval import extract
from taugrid.orchestrator.rundir import provenance
from taugrid.storage import write_sealed
from taugrid.workers import sample as sampling
from taugrid.workers.device import LastSampled
from taugrid.workers.network.checkpoint import weights_file, weights_sha256

pytestmark = pytest.mark.usefixtures("one_thread", "sketched", "unreported")

begun, history = nights.begun, nights.history


@pytest.fixture(scope="module")
def second_night(begun):
    place = shutil.copytree(begun / "history", begun / "second")
    night(place, begun / "nearby.yaml", "2")
    return place


@pytest.fixture
def later(second_night, tmp_path):
    return shutil.copytree(second_night, tmp_path / "later")


def nan_where(monkeypatch, wanted):
    whole, jobs = sampling.sample_batch, []
    submitted(monkeypatch, lambda job: jobs.append(job) or job)
    factor = {True: float("nan"), False: 1.0}
    monkeypatch.setattr(sampling, "sample_batch", lambda *given: whole(*given) * factor[wanted(jobs[-1])])


def in_folder(name):
    return lambda job: f"/{name}" in str(getattr(job, "path", ""))


@pytest.mark.long
def test_a_second_look_that_fails_for_both_networks_leaves_one_stage_and_for_one_it_has_collapsed(
    begun, history, monkeypatch
):
    with monkeypatch.context() as patch:
        nan_where(patch, lambda job: job.settings.seed != 0)
        found = night(history, begun / "worse.yaml", "2", code=3)
    assert results(found) == {"worse"}
    recorded(found["comparison"]["rule"].partition(" (sample/")[0])
    tonight = weights_sha256(weights_file(begun / "worse"))
    nan_where(monkeypatch, lambda job: job.settings.seed != 0 and job.metadata["weights_sha256"] == tonight)
    found = night(history, begun / "worse.yaml", "3", code=3)
    assert results(found) == {"collapsed"}
    assert "fresh seed" in found["comparison"]["cells"][0]["note"]


def test_a_baseline_that_is_a_run_directory_is_not_scored_again_by_a_broken_scorer(begun, tmp_path, monkeypatch):
    """Its scores were recorded with the scorer that it had. A fault would cancel if both sides had today's."""
    scaled_fid(1.01)(monkeypatch)
    found = night(tmp_path / "history", begun / "nearby.yaml", "1", "--baseline", begun / "run", code=3)
    assert found["result"] == "changed scorer"


@pytest.mark.long
def test_a_sampler_that_was_mended_while_a_night_was_interrupted_is_not_called_clean(begun, history, monkeypatch):
    with monkeypatch.context() as patch:
        drop_last_step(patch)
        interrupted(patch, history, begun / "nearby.yaml", "2", at=in_folder("canary-"))
    monkeypatch.setattr(provenance, "code_sha256", lambda: "0" * 64)
    found = night(history, begun / "nearby.yaml", "2", code=None)
    assert "✅" not in summary(history, "2").splitlines()[0]
    recorded(found["comparison"]["checks"]["sampler"]["reason"], "taugrid")
    assert not (history / "nights/2/fresh").exists()


@pytest.mark.long
def test_a_scorer_that_changes_while_a_night_is_interrupted_does_not_judge_its_second_look(begun, history, monkeypatch):
    interrupted(monkeypatch, history, begun / "worse.yaml", "2", at=in_folder("canary-"))
    scaled_fid(0.0)(monkeypatch)
    found = night(history, begun / "worse.yaml", "2", code=3)
    assert found["result"] == "worse"
    recorded(found["comparison"]["rule"], "changed")


def test_a_cell_that_fails_is_red_although_the_baseline_lacks_it(begun, history, monkeypatch):
    nan_where(monkeypatch, lambda job: len(job.tau) == 4)
    grid = ("--set", "grid={steps: [2, 3, 4], eta: [0.0, 1.0]}")
    found = night(history, begun / "nearby.yaml", "2", *grid, code=3)
    assert (found["result"], found["comparison"]["result"]) == ("collapsed", "not worse")
    text = summary(history, "2")
    assert "❌ collapsed" in text.splitlines()[0]
    assert text.count("- **failed**: `S0004") == 2
    assert (history / "nights/2/junit.xml").read_text().count("<failure") == 2


@pytest.mark.long
def test_a_baseline_that_is_replaced_while_a_night_is_interrupted_gets_canaries_of_its_own(begun, later, monkeypatch):
    interrupted(monkeypatch, later, begun / "worse.yaml", "3", at=in_folder("fresh"))
    accept(later, "2")
    found = night(later, begun / "worse.yaml", "3", code=3)
    assert (found["result"], checks(found)["sampler"]) == ("worse", "clean")


@pytest.mark.long
def test_a_fault_in_reading_samples_is_red_because_the_baselines_network_denies_it(begun, history, monkeypatch):
    """Neither canary sees it: one compares pixels, the other scores the reference."""
    monkeypatch.setattr(LastSampled, "max_bytes", 0)  # else a worker would not read what it sampled itself

    def darker(*arguments, **options):
        return ((index, images // 2) for index, images in parquet.read_images(*arguments, **options))

    monkeypatch.setattr(extract, "parquet", SimpleNamespace(**vars(parquet) | {"read_images": darker}))
    found = night(history, begun / "nearby.yaml", "2", code=3)
    assert found["result"] == "worse"
    assert set(checks(found).values()) == {"clean"}
    recorded(found["comparison"]["rule"], "baseline")


def test_a_record_of_the_scorer_that_was_damaged_is_no_record(later):
    (later / "nights/2/run/scorer.json").write_text("x")
    shown, _ = taugrid("compare", later / "nights/2/run", later / "baseline.json")
    assert shown.startswith("➖")
    recorded(shown, "changed")


def test_a_night_without_its_verdict_or_its_influences_is_no_baseline(history):
    path = history / "nights/1/verdict.json"
    path.write_text(path.read_text().replace("no baseline", "not worse"))
    recorded(accept(history, "1", code=2)[1], "intact")
    path.unlink()
    accept(history, "1", "--force")
    before = (history / "baseline.json").read_bytes()
    for influences in (history / "nights/1/run/scores").glob("*.parquet"):
        influences.unlink()
    recorded(accept(history, "1", "--force", code=2)[1], "influences")
    assert (history / "baseline.json").read_bytes() == before


@pytest.mark.parametrize(("option", "value"), [("--margin", "nan"), ("--alpha", "inf"), ("--sharpness", "nan")])
def test_numbers_that_are_none_are_refused(begun, history, option, value):
    with pytest.raises(click.UsageError):
        night(history, begun / "nearby.yaml", "2", option, value)
    assert not (history / "nights/2").exists()


def test_a_distance_that_was_accepted_is_kept_by_the_next_baseline(later):
    path = later / "baseline.json"
    value = json.loads(path.read_text())
    value.pop("sha256")
    for cell in value["cells"]:
        cell["distances"] = {"a-b": 1.5}
    write_sealed(path, value)
    accept(later, "2")
    assert [cell["distances"] for cell in json.loads(path.read_text())["cells"]] == [{"a-b": 1.5}] * CELLS
