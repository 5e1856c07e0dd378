"""Nights of several samplers: canaries, gate, history and price, and what a changed sampler does to them."""

import json
import re

import nights
import pandas as pd
import pytest
from nights import begin, checks, night, results, taugrid
from snapshots import recorded

from taugrid.orchestrator.plan.cells import Cell
from taugrid.storage import LOCAL, read_sealed, write_sealed
from taugrid.workers.samplers import description, solvers

OF_DIFFUSERS = "diffusers:DPMSolverMultistepScheduler"
GRID = {"sampler": ["ddim", "dpm++2m", "heun", OF_DIFFUSERS], "steps": [2, 3]}
NAMES = ("eta0", "dpm++2m", "heun", OF_DIFFUSERS.replace(":", "_"))
LABELS = [f"S{steps:04d}-{name}" for name in NAMES for steps in (2, 3)]

pytestmark = pytest.mark.usefixtures("one_thread", "sketched", "unreported")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return begin(tmp_path_factory.mktemp("samplers"), grid=GRID)


history = nights.history


@pytest.mark.long
def test_a_healthy_night_checks_every_sampler_and_is_green(begun, history):
    out, err = taugrid("nightly", begun / "nearby.yaml", "--history", history, "--id", "2", "--json")
    found = json.loads(out)
    assert found["result"] == "not worse"
    assert "ignores" not in err, "the grid of the canaries is not the user's"
    assert checks(found) == {"sampler": "clean", "scorer": "clean"}
    assert [cell["label"] for cell in found["comparison"]["cells"]] == LABELS
    table = pd.read_parquet(history / "history.parquet")
    assert set(table["label"][table["eta"].notna()]) == {label for label in LABELS if label.endswith("eta0")}
    assert set(table["eta"].dropna()) == {"0"}
    assert night(history, begun / "same.yaml", "3")["result"] == "identical"


def test_a_night_is_priced_with_the_evaluations_of_each_sampler(begun, history):
    found = json.loads(taugrid("plan", begun / "nearby.yaml", "--history", history, "--json")[0])
    each = 3 * (2 + 3) + (3 + 5)
    assert found["network_evaluations"] == 200 * each
    assert found["night"]["network_evaluations_of_the_canary_at_most"] == 100 * each
    assert found["night"]["worker_seconds"] > 0


def test_a_changed_coefficient_is_red_although_the_weights_are_new(begun, history, monkeypatch):
    length = solvers.length
    monkeypatch.setattr(solvers, "length", lambda a, b: 1.02 * length(a, b))
    found = night(history, begun / "nearby.yaml", "2", code=3)
    assert found["result"] == "changed sampler"
    red = [cell["label"] for cell in found["comparison"]["cells"] if cell["result"] == "changed sampler"]
    assert red == ["S0002-dpm++2m", "S0003-dpm++2m"]
    assert not (history / "nights/2/fresh").exists(), "a second look would sample both networks with the fault"


def test_another_version_of_diffusers_is_compared_and_named(begun, history, monkeypatch):
    known = description.versions
    other = {"diffusers": "0.99.0"}
    monkeypatch.setattr(description, "versions", lambda names: known(names) | (other if names else {}))
    found = night(history, begun / "same.yaml", "2")
    assert found["result"] == "identical"
    assert re.search(r"with diffusers \S+ -> 0\.99\.0", json.dumps(found))


def with_block(monkeypatch, **fields):
    """Today's code plans another sampler block of heun's cells than the baseline's did."""
    whole = Cell.sampler_block

    def changed(self):
        block = whole.fget(self)
        return block and block | (fields if self.settings.sampler == "heun" else {})

    monkeypatch.setattr(Cell, "sampler_block", property(changed))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("options", {"solver_order": 3}, "solver_order is 3,"), ("times", [999.0, 10.0], "times is [999.0, 10.0],")],
)
def test_another_sampler_block_can_not_be_compared_and_the_night_says_what_differs(
    begun, history, monkeypatch, field, value, said
):
    """Red or not comparable, whatever FID says."""
    with_block(monkeypatch, **{field: value})
    _, by_night = taugrid("nightly", begun / "same.yaml", "--history", history, "--id", "2", code=2)
    recorded(re.sub(r"-[0-9a-f]{10}", "", by_night), "measured")
    assert "(S0002-heun-" in by_night
    words = ("--baseline", history / "baseline.json", "--out", history / "nights/2/run")
    assert said in taugrid("plan", begun / "same.yaml", *words, code=2)[1]


def test_other_code_of_a_sampler_leaves_its_cells_out_and_the_others_are_judged(begun, history, monkeypatch):
    with_block(monkeypatch, code="0" * 64)
    found = night(history, begun / "same.yaml", "2", code=5)
    assert [cell["label"] for cell in found["comparison"]["cells"]] == [name for name in LABELS if "heun" not in name]
    assert results(found) == {"identical"}
    [note] = found["comparison"]["notes"]
    recorded(note)
    assert found["next"] == "", "as the baseline it would have fewer cells"
    planned, _ = taugrid("plan", begun / "same.yaml", "--baseline", history / "baseline.json")
    recorded(planned, "code of")


def test_an_altered_block_of_a_recorded_score_is_seen(begun, history):
    run = history / "nights/1/run"
    scores = [path for path in (run / "scores").glob("*.json") if "heun" in path.read_text()]
    score = read_sealed(scores[0], LOCAL)
    score["protocol"]["sampler"]["last_sigma"] = 0.5
    write_sealed(scores[0], score, LOCAL)
    _, said = taugrid("compare", run, history / "baseline.json", code=2)
    recorded(said, "last_sigma")
    assert "last_sigma is 0.5," in said
