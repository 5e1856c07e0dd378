"""Faults planted in nights with new weights, where they change no pixel that is compared, and with the same weights.

Each is seen red, and a healthy night beside it green. The code is today's for both networks of a second stage, so only
the canaries can see a fault of it. test_fault_table.py has more faults.
"""

import shutil
from types import SimpleNamespace

import nights
import pytest
from nights import CELLS, accept, checks, compared, failing, night, results, summary, taugrid, write_config
from planted_faults import (
    collapsed,
    darken_later_batches,
    drop_last_step,
    repeat_the_first_batch,
    scaled_fid,
    scaled_sigma,
    swap_images,
    swap_scores,
)
from snapshots import recorded

from taugrid import versions
from taugrid.errors import Exit
from taugrid.eval.gate.verdict import REGRESSIONS, Verdict, exit_of
from taugrid.eval.metrics import frechet
from taugrid.orchestrator.baseline.compared import MetricComparison
from taugrid.orchestrator.nightly import judging
from taugrid.orchestrator.plan import scoring
from taugrid.orchestrator.rundir import provenance
from taugrid.workers import actor
from taugrid.workers.diffusion import forward
from taugrid.workers.samplers import ddim

pytestmark = pytest.mark.usefixtures("one_thread", "sketched", "unreported")

begun, history = nights.begun, nights.history


@pytest.fixture(scope="module")
def healthy(begun):
    place = shutil.copytree(begun / "history", begun / "healthy")
    return place, night(place, begun / "nearby.yaml", "2")


@pytest.mark.long
@pytest.mark.parametrize("fault", [drop_last_step, scaled_sigma(1.02)], ids=["last step dropped", "sigma x 1.02"])
@pytest.mark.parametrize("weights", ["same", "nearby"])
def test_a_broken_sampler_is_red_whatever_the_weights(begun, history, monkeypatch, fault, weights):
    fault(monkeypatch)
    found = night(history, begun / f"{weights}.yaml", "2", code=3)
    assert found["result"] == ("changed pixels" if weights == "same" else "changed sampler")
    by_eta = {cell["name"][:10]: cell["result"] for cell in found["comparison"]["cells"]}
    if fault is not drop_last_step:  # eta = 0 has no sigma
        assert not Verdict(by_eta["S0002-eta0"]).is_regression or by_eta["S0002-eta0"] == "worse"
    assert checks(found)["sampler"] == "changed"
    assert not (history / "nights/2/fresh").exists(), "a second look would sample both networks with the fault"
    assert "❌ changed" in summary(history, "2").splitlines()[0]


@pytest.mark.long
@pytest.mark.parametrize("weights", ["same", "nearby"])
def test_a_changed_scorer_is_red_whatever_the_weights(begun, history, monkeypatch, weights):
    scaled_fid(1.01)(monkeypatch)
    found = night(history, begun / f"{weights}.yaml", "2", code=3)
    assert results(found) == {"changed scorer"}
    recorded(found["comparison"]["checks"]["scorer"]["reason"], "reference")
    if weights == "same":
        recorded(found["comparison"]["cells"][0]["note"], "images")


def test_a_fault_that_no_canary_shows_is_red_because_the_second_stage_denies_it(begun, history, monkeypatch):
    darken_later_batches(monkeypatch)
    found = night(history, begun / "nearby.yaml", "2", code=3)
    assert found["result"] == "worse"
    assert set(checks(found).values()) == {"clean"}
    assert {cell["seeds"] for cell in found["comparison"]["cells"]} == {"usual"}
    recorded(found["comparison"]["rule"], "second")
    assert (history / "nights/2/fresh").exists()


@pytest.mark.parametrize(("usual", "fresh", "denied"), [
    ((9.0, 0.5), (1.0, 0.5), True),  # 11 standard errors apart
    ((4.0, 0.5), (1.0, 0.5), False),  # 4 of them
    ((4.0, 1.6), (1.0, 0.5), True),  # the usual seeds' samples no longer share their noise with the baseline's
    ((1.0, 0.5), (9.0, 0.5), False),  # worse by both
])  # fmt: skip
def test_a_fresh_seed_denies_the_usual_ones_only_beyond_chance(usual, fresh, denied):
    def side(difference, se, seeds):
        metric = MetricComparison(11.0, 10.0, 10.0, difference, 0.2, Verdict.WORSE, se, t=1.0)
        return SimpleNamespace(cells=[SimpleNamespace(judged={"fid": metric}, seeds=seeds, note="", label="a")])

    assert (judging.contradiction(side(*usual, "usual"), side(*fresh, "fresh")) is not None) == denied


@pytest.mark.long
@pytest.mark.parametrize(("plant", "result"), [(swap_images, "changed pixels"), (swap_scores, "changed scorer")])
def test_cells_that_are_taken_for_each_other_are_red(begun, history, monkeypatch, plant, result):
    """Two of four. Only the long fault table had shown that these plants planted nothing."""
    plant(monkeypatch)
    found = night(history, begun / "same.yaml", "2", code=3)
    by_steps = {cell["name"][:5]: cell["result"] for cell in found["comparison"]["cells"]}
    assert by_steps == {"S0002": "identical", "S0003": result}


def test_images_that_repeat_are_collapsed_although_fid_hardly_moves(begun, history, monkeypatch):
    repeat_the_first_batch(monkeypatch)
    found = night(history, begun / "nearby.yaml", "2", code=3)
    assert results(found) == {"collapsed"}
    note = "images repeat; distinct images: 50 % (the baseline: 100 %)"
    assert {cell["note"] for cell in found["comparison"]["cells"]} == {note}


def test_a_healthy_night_of_a_nearby_network_is_green_and_needs_no_second_look(healthy, tmp_path):
    history, found = healthy
    assert found["result"] == "not worse"
    assert set(checks(found).values()) == {"clean"}
    recorded(found["comparison"]["rule"], "single")
    assert not (history / "nights/2/fresh").exists()
    line = summary(history, "2").splitlines()[0]
    recorded(line.partition("; detects")[0])
    assert "not checked" not in line
    run, baseline = history / "nights/2/run", history / "baseline.json"
    assert taugrid("compare", run, baseline)[0].startswith("✅ not worse"), "with what the night left"
    shown, _ = taugrid("compare", shutil.copytree(run, tmp_path / "alone/run"), baseline)
    assert shown.startswith("➖ not worse")
    recorded(shown, "sampler not")


def test_a_collapsed_network_is_red_and_its_night_is_complete(begun, history, tmp_path):
    config = write_config(tmp_path / "white.yaml", collapsed(tmp_path / "white"))
    found = night(history, config, "2", code=3)
    assert results(found) == {"collapsed"}
    recorded(found["comparison"]["cells"][0]["note"])
    assert " 0.5 % " in found["comparison"]["cells"][0]["note"]
    assert night(history, config, "2", code=3) == found, "it is complete"
    assert taugrid("compare", history / "nights/2/run", history / "baseline.json", code=3)[0].startswith("❌ collapsed")


@pytest.mark.long
def test_a_network_that_returns_nan_is_red_and_its_night_is_complete(begun, history, tmp_path):
    config = write_config(tmp_path / "nan.yaml", collapsed(tmp_path / "nan", float("nan")))
    found = night(history, config, "2", code=3)
    assert (found["result"], found["missing"]) == ("collapsed", {})
    assert [cell["fid"] for cell in found["comparison"]["cells"]] == [None] * CELLS
    note = found["comparison"]["cells"][0]["note"]
    recorded(note.partition("NotFinite: ")[2].partition(" (")[0])
    assert "images that" not in note, "it was not scored"
    assert night(history, config, "2", code=3) == found, "it is complete"
    assert (history / "nights/2/junit.xml").read_text().count("<failure") == CELLS
    assert night(history, begun / "same.yaml", "3")["result"] == "identical"


def test_a_run_ends_with_4_only_if_the_same_command_can_finish_something(tmp_path, monkeypatch):
    config = write_config(tmp_path / "nan.yaml", collapsed(tmp_path / "nan", float("nan")))
    taugrid("run", config, "--out", tmp_path / "run", code=1)
    failing(monkeypatch, lambda job: job.settings.steps == 2)
    taugrid("run", config, "--out", tmp_path / "another", code=4)


def test_a_metric_that_fails_is_red_and_its_night_is_complete(begun, history, monkeypatch):
    def fails(inputs):
        raise ValueError("planted")

    monkeypatch.setattr(frechet, "compute_fid", fails)
    found = night(history, begun / "nearby.yaml", "2", code=3)
    assert (found["result"], found["missing"]) == ("collapsed", {})
    assert "planted" in found["comparison"]["cells"][0]["note"]


def test_a_blunt_night_says_so_and_can_be_refused(begun, history, healthy):
    loss = healthy[1]["comparison"]["sharpness"]["loss"]
    assert 0.02 < loss < 0.03, "just above the margin, for a network this near"
    again = (healthy[0] / "nights/2/run", history / "baseline.json", "--sharpness")
    assert compared(*again, 1.01 * loss)["not_judged"] == []
    blunt = night(history, begun / "nearby.yaml", "4", "--sharpness", 0.9 * loss, code=5)
    assert blunt["not_judged"][0].startswith("--sharpness")
    named = int(blunt["not_judged"][0].partition("N = ")[2].partition(" ")[0].replace(",", ""))
    assert named == pytest.approx(200 * ((loss - 0.02) / (0.9 * loss - 0.02)) ** 2, rel=0.2)
    recorded(compared(*again, 0.02, code=5)["not_judged"][0], "detects")
    recorded(summary(history, "4"), "Not judged")


@pytest.mark.long
def test_other_software_is_unknown_until_a_night_with_it_is_accepted(begun, history, monkeypatch):
    """The distance that was accepted is allowed twice; a sampler that is further off is a changed one."""
    known = versions.versions

    def nudged(monkeypatch, by):  # as other kernels would; one grey level here and there
        monkeypatch.setattr(ddim, "sigma", lambda *at: by * forward.sigma(*at))

    with monkeypatch.context() as patch:
        for module in (actor, scoring, provenance):
            patch.setattr(module, "versions", lambda names: known(names) | {"torch": "9"})
        nudged(patch, 1.001)
        found = night(history, begun / "nearby.yaml", "2")
        assert checks(found)["sampler"] == "unknown"
        assert "➖ not worse" in summary(history, "2").splitlines()[0]
        assert "torch" in found["comparison"]["checks"]["sampler"]["reason"]
        recorded(accept(history, "2")[0], "allowed")
    assert checks(night(history, begun / "same.yaml", "3"))["sampler"] == "clean"
    nudged(monkeypatch, 1.3)
    assert night(history, begun / "same.yaml", "4", code=3)["result"] == "changed sampler"


@pytest.mark.long
def test_a_night_judged_worse_is_accepted_by_force_alone(begun, history, monkeypatch):
    with monkeypatch.context() as patch:
        drop_last_step(patch)
        night(history, begun / "nearby.yaml", "2", code=3)
        before = (history / "baseline.json").read_text()
        recorded(accept(history, "2", code=2)[1], "changed")
        assert (history / "baseline.json").read_text() == before
        recorded(accept(history, "2", "--force")[0], "accepted")
        assert night(history, begun / "nearby.yaml", "3")["result"] == "identical"
    assert night(history, begun / "nearby.yaml", "4", code=3)["result"] == "changed pixels"


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_has_its_exit_code(verdict):
    """Missing cells come first, then regressions, then what could not be judged."""
    red = verdict in REGRESSIONS
    assert exit_of(verdict, {}, []) == (3 if red else 0)
    assert exit_of(verdict, {}, ["x"]) == (3 if red else 5)
    assert exit_of(verdict, {"a": "b"}, ["x"]) == 4
    assert (verdict in list(Verdict)[:5]) == red
    assert [Exit.REGRESSION, Exit.INCOMPLETE, Exit.NOT_JUDGED] == [3, 4, 5]
