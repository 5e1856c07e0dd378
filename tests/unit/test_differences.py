import math

import numpy as np
import pandas as pd
import pytest
from snapshots import raises, recorded

from taugrid.eval.tables.differences import (
    DIFFERENCE_COLUMNS,
    Evidence,
    difference_line,
    differences,
    pair,
    write_differences,
)
from taugrid.eval.tables.long_form import COLUMNS, FID
from taugrid.eval.tables.quality import QualityTable

N = 400


def indistinguishable(rows, known, joined=frozenset()):
    return QualityTable(rows, known, joined=joined).section(FID).alike


def protocol(steps=10, clip="none", torch="2.9.1", **others):
    reference = {"dataset": "digits", "split": "train", "num_images": 9, "sha256": "ab" * 32}
    fields = {
        "reference": reference,
        "num_samples": N,
        "weights": "ema",
        "tau": [1000 * i // steps for i in (1, steps)],
    }
    return fields | {"clip": clip, "seed": 2020, "versions": {"torch": torch, "numpy": "2.4.6"}} | others


def cell(name, steps=10, eta=0.0, fid=10.0, **others):
    """A row of quality.csv; `eta` may be "sigma_hat", which clips."""
    sigma_hat = eta == "sigma_hat"
    row = dict.fromkeys(COLUMNS) | {"cell": name, "model": "m1", "sampler": "ddim", "steps": steps}
    row |= {"eta": 1.0 if sigma_hat else eta, "sigma": "sigma_hat" if sigma_hat else "eta", "spacing": "linear"}
    row |= {"clip": "x0_and_eps" if sigma_hat else "none", "num_samples": N, "fid": fid, "fid_se": 0.5}
    return row | {"protocol": f"{steps}-{'x0_and_eps' if sigma_hat else 'none'}"} | others


def evidence(rows, influences, **others):
    """All cells share their noise, and protocols differ in tau and clip alone."""
    protocols = {row["protocol"]: protocol(row["steps"], row["clip"]) for row in rows}
    return Evidence(**({"influences": influences, "pairings": dict.fromkeys((r["cell"] for r in rows), 7),
                        "protocols": protocols} | others))  # fmt: skip


def spread(error, first=1.0):
    """phi (N,) of mean 0 whose standard error, sd / sqrt(N), is `error`; the two signs alternate from `first`."""
    signs = np.where(np.arange(N) % 2, -first, first)
    return signs * error * math.sqrt(N) * math.sqrt((N - 1) / N)


def grid():
    """S = 10, 20, 50 by eta = 0, 1 and sigma_hat, in no order, with one cell that has no score."""
    fids = {(10, 0.0): 30.0, (20, 0.0): 20.0, (50, 0.0): 12.0, (10, 1.0): 41.0, (20, 1.0): None, (50, 1.0): 11.0}
    fids |= {(10, "sigma_hat"): 90.0, (20, "sigma_hat"): 40.0, (50, "sigma_hat"): 15.0}
    return [cell(f"{s}/{eta}", s, eta, fid) for (s, eta), fid in reversed(fids.items())]


def pairs(found, along):
    return [(row["cell_a"], row["cell_b"]) for row in found if row["along"] == along]


def test_neighbours_are_paired_along_both_axes_in_order_and_over_gaps():
    found = differences(grid(), evidence(grid(), {}))
    assert pairs(found, "steps") == [
        ("10/0.0", "20/0.0"), ("20/0.0", "50/0.0"), ("10/1.0", "50/1.0"),
        ("10/sigma_hat", "20/sigma_hat"), ("20/sigma_hat", "50/sigma_hat"),
    ]  # fmt: skip
    assert pairs(found, "eta") == [
        ("10/0.0", "10/1.0"), ("10/1.0", "10/sigma_hat"), ("20/0.0", "20/sigma_hat"),
        ("50/0.0", "50/1.0"), ("50/1.0", "50/sigma_hat"),
    ]  # fmt: skip
    assert {row["others"] for row in found if row["along"] == "steps"} == {""}
    clipped = {row["cell_a"] for row in found if "x0_and_eps" in row["others"]}
    assert clipped == {"10/1.0", "20/0.0", "50/1.0"}
    assert differences(grid()[::-1], evidence(grid(), {})) == found


def test_difference_error_and_z_are_those_worked_out_by_hand():
    """phi_a - phi_b alternates between +d and -d: its sd is d sqrt(N / (N - 1)), and the se that over sqrt(N)."""
    rows = [cell("a", 10, fid=13.0), cell("b", 20, fid=10.6)]
    influences = {"a": spread(1.0), "b": spread(0.4)}
    (found,) = differences(rows, evidence(rows, influences))
    assert found["difference"] == pytest.approx(-2.4, abs=1e-12)
    assert found["se"] == pytest.approx(0.6, rel=1e-12)  # 1.0 - 0.4: what noise does to both cancels
    assert found["z"] == pytest.approx(-4.0, rel=1e-12)
    (opposed,) = differences(rows, evidence(rows, influences | {"b": spread(0.4, first=-1.0)}))
    assert opposed["se"] == pytest.approx(1.4, rel=1e-12)
    assert (found["steps_a"], found["steps_b"], found["fid_a"], found["fid_b"]) == (10, 20, 13.0, 10.6)
    assert (found["num_samples"], found["protocol_a"], found["protocol_b"]) == (N, "10-none", "20-none")
    assert (found["joined"], found["note"]) == (False, "")


def test_cells_that_share_no_noise_have_unpaired_errors():
    rows = [cell("a", 10), cell("b", 20), cell("c", 50, fid=14.2)]
    known = evidence(rows, {"a": spread(1.0), "b": spread(0.8), "c": spread(0.6)}, pairings={"a": 1, "b": 1, "c": 2})
    paired, unpaired = differences(rows, known)
    assert (paired["cell_b"], unpaired["cell_b"]) == ("b", "c")
    assert [paired["se"], unpaired["se"]] == pytest.approx([0.2, 1.0])
    assert unpaired["z"] == pytest.approx(4.2)
    asked = pair(rows[1], rows[2], known)
    assert not asked["joined"]
    assert [asked["se"], asked["z"]] == pytest.approx([1.0, 4.2])
    assert asked["note"] == unpaired["note"] == "unpaired standard error: the cells share no noise"


def test_other_models_other_n_and_an_axis_that_moves_what_must_agree_are_no_neighbours():
    rows = [cell(name, rounding=name, protocol=name) for name in ("nearest", "down")]
    spelled = {name: protocol(rounding=name) for name in ("nearest", "down")}
    assert differences(rows, evidence(rows, {}, protocols=spelled)) == []
    assert len(differences(rows, evidence(rows, {}, protocols=dict.fromkeys(spelled, protocol())))) == 1
    rows = [cell("a", 10, **{"train.steps": 1}), cell("b", 20, model="m2", **{"train.steps": 2})]
    assert differences(rows, evidence(rows, {})) == []
    rows = [cell("a", 10), cell("b", 20, num_samples=2 * N)]
    assert differences(rows, evidence(rows, {})) == []


def test_cells_that_differ_in_one_other_axis_are_neighbours_in_the_order_of_the_grid(tmp_path):
    checkpoints = ["/runs/a/step-5000", "/runs/a/step-10000"]
    rows = [
        cell(f"{path[-5:]}{weights}", model=path, **{"model.checkpoint": path}, weights=weights, protocol=weights)
        for path in checkpoints
        for weights in ("raw", "ema", "other")
    ]
    rows[4]["fid"] = None
    spelled = {weights: protocol(weights=weights) for weights in ("raw", "ema", "other")}
    influences = {row["cell"]: spread(0.2 + 0.1 * i) for i, row in enumerate(rows)}
    found = differences(rows, evidence(rows, influences, protocols=spelled))
    # The weights in the order in which the rows have them, over the gap; the two that differ in both are no pair.
    assert [(row["along"], row["settings"], row["cell_a"], row["cell_b"]) for row in found] == [
        ("model.checkpoint", "weights = other", "-5000other", "10000other"),
        ("model.checkpoint", "weights = raw", "-5000raw", "10000raw"),
        ("weights", "model.checkpoint = step-5000", "-5000raw", "-5000ema"),
        ("weights", "model.checkpoint = step-5000", "-5000ema", "-5000other"),
        ("weights", "model.checkpoint = step-10000", "10000raw", "10000other"),
    ]  # fmt: skip
    recorded(found[0]["others"])
    assert [row["se"] for row in found] == pytest.approx([0.3, 0.3, 0.1, 0.1, 0.2])
    write_differences(found, tmp_path)
    text = (tmp_path / "differences.md").read_text(encoding="utf-8")
    assert "| S = 10 at η = 0.0, checkpoint: step-5000 → step-10000 | 0.00 ± 0.30 | +0.0 | ≈ |" in text
    recorded(text, "checkpoint")


@pytest.mark.parametrize(
    "changes",
    [
        {"reference": {"dataset": "digits", "split": "test", "num_images": 9, "sha256": "cd" * 32}},
        {"rounding": "8 bits, down"},
        {"versions": {"torch": "2.10.0", "numpy": "2.4.6"}},
    ],
)
def test_cells_that_differ_in_what_must_agree_are_no_neighbours_and_it_is_named(changes):
    rows = [cell("a"), cell("b", 20), cell("c", 50, protocol="other")]
    spelled = {"10-none": protocol(), "20-none": protocol(20), "other": protocol(50) | changes}
    known = evidence(rows, {}, protocols=spelled)
    assert pairs(differences(rows, known), "steps") == [("a", "b")]
    with raises(ValueError):
        pair(rows[1], rows[2], known)


def test_settings_of_a_metric_keep_only_its_own_differences_from_being_made():
    """KID is of all pairs of images, whatever subsets kid_mean is of."""
    others = {"kid": 0.5, "kid_se": 0.1, "mind": 0.5, "mind_se": 0.1}
    rows = [cell("a", fid=12.0, **others), cell("b", 20, fid=11.0, **others | {"mind": 0.4}), cell("c", 50, fid=10.0)]
    both = {"metrics": ["fid", "kid", "mind"], "kid_subset_size": 100}
    spelled = {
        "10-none": protocol(**both, kid_subsets=100, mind_projections=1000),
        "20-none": protocol(20, **both, kid_subsets=50, mind_projections=10),
        "50-none": protocol(50, metrics=["fid"]),
    }
    phi = {"a": spread(1.0), "b": spread(0.5), "c": spread(0.2)}
    known = evidence(rows, phi, protocols=spelled, others={"kid": phi, "mind": phi})
    found = differences(rows, known)
    assert pairs(found, "steps") == [("a", "b"), ("b", "c")]
    assert [row["difference"] for row in found] == [-1.0, -1.0]
    assert [row.get("kid_difference") for row in found] == [0.0, None]
    assert all("mind_difference" not in row for row in found)
    joined = pair(*rows[:2], known, override=True)
    assert joined["mind_difference"] == pytest.approx(-0.1)
    assert joined["note"] == "joined although mind_projections is 1000 and 10"
    of_mind = [row | {"fid": None, "kid_se": None} for row in rows[:2]]
    with pytest.raises(ValueError, match="mind_projections is 1000 and 10"):
        pair(*of_mind, known)
    spelled["20-none"] = spelled["10-none"]
    assert pair(*rows[:2], known)["mind_difference"] == pytest.approx(-0.1)


def test_an_override_joins_and_says_so():
    rows = [cell("a", fid=12.0), cell("b", fid=11.0, protocol="new")]
    spelled = {"10-none": protocol(), "new": protocol(torch="2.10.0")}
    known = evidence(rows, {"a": spread(1.0), "b": spread(0.5)}, protocols=spelled)
    found = pair(*rows, known, override=True)
    assert found["joined"]
    recorded(found["note"])
    assert found["z"] == pytest.approx(-2.0)
    assert difference_line(found) == "S = 10 at η = 0.0: -1.00 ± 0.50, z = -2.0 ‡"
    near = [cell("a", fid=11.1), rows[1] | {"eta": 1.0}]
    assert indistinguishable(near, known) == set()
    assert indistinguishable(near, known, joined={"a"}) == {"a"}


def test_an_override_can_not_pair_different_numbers_of_samples():
    rows = [cell("a"), cell("b", num_samples=2 * N, protocol="large")]
    spelled = {"10-none": protocol(), "large": protocol(num_samples=2 * N)}
    known = evidence(rows, {"a": spread(1.0), "b": np.tile(spread(1.0), 2)}, protocols=spelled)
    found = pair(*rows, known, override=True)
    assert (found["se"], found["others"]) == (None, f"num_samples: {N} -> {2 * N}")
    assert found["num_samples"] == N, "what both have"
    recorded(found["note"], "standard")


def test_a_cell_without_influences_leaves_error_and_z_empty_and_says_why():
    rows = [cell("a", 10, fid=3.0), cell("b", 20, fid=2.0)]
    known = evidence(rows, {"a": spread(1.0)}, reasons={"b": "400 samples for 64 varying features"})
    (found,) = differences(rows, known)
    assert (found["difference"], found["se"], found["z"]) == (-1.0, None, None)
    recorded(found["note"])
    recorded(pair(*rows, evidence(rows, {"a": spread(1.0)}))["note"], "influences")


def test_influences_of_too_few_samples_and_cells_without_fid_are_errors():
    rows = [cell("a", 10), cell("b", 20)]
    with raises(ValueError):
        differences(rows, evidence(rows, {"a": spread(1.0), "b": spread(1.0)[:-1]}))
    for missing in (None, math.nan):
        with raises(ValueError):
            pair(rows[0], cell("b", fid=missing), evidence(rows, {}))


def test_the_same_samples_have_no_z_though_rounding_tells_them_apart():
    """At S = 1 every eta gives the same images; sums in another order may move FID in its last digits."""
    rows = [cell("a", 10, 0.0, 5.0), cell("b", 10, 1.0, 5.0 + 1e-12)]
    influences = {"a": spread(1.0), "b": spread(1.0) + 1e-13 * np.random.default_rng(0).normal(size=N)}
    (found,) = differences(rows, evidence(rows, influences))
    assert (found["se"], found["z"]) == (0.0, None)
    recorded(found["note"])
    assert indistinguishable(rows, evidence(rows, influences)) == {"b"}


@pytest.mark.parametrize(("z", "marked"), [(1.95, True), (1.97, False)])
def test_what_can_not_be_told_from_the_best_is_marked(z, marked):
    """The paired error is 0.5, half of what the errors of the two cells alone would give."""
    rows = [cell("best", 10, 0.0, 4.0), cell("other", 10, 1.0, 4.0 + 0.5 * z)]
    known = evidence(rows, {"best": spread(1.0), "other": spread(0.5)})
    assert indistinguishable(rows, known) == ({"other"} if marked else set())


@pytest.mark.parametrize(("others", "marked"), [(1, False), (3, True)])
def test_the_limit_of_a_mark_grows_with_the_cells_of_its_column(others, marked):
    """Independent cells, each 2.3 paired errors worse than the best: 1.96 is the limit for two, 2.57 for four."""
    names = ["best", *(f"other-{i}" for i in range(others))]
    rows = [cell(name, 10, i / 10, 4.0 + 2.3 * math.hypot(0.5, 0.5) * (i > 0)) for i, name in enumerate(names)]
    influences = {name: spread(0.5, 1 - 2 * (np.arange(N) >> (i + 1) & 1)) for i, name in enumerate(names)}
    assert indistinguishable(rows, evidence(rows, influences)) == (set(names[1:]) if marked else set())


def test_marks_are_per_column_of_all_models_and_spare_what_has_no_test():
    rows = [
        cell("far-best", 10, 0.0, 4.0), cell("far", 10, 1.0, 9.0),
        cell("near", 20, 0.0, 3.1), cell("near-best", 20, 1.0, 3.0),
        cell("no-error", 20, 0.5, 3.05), cell("other-noise", 20, "sigma_hat", 3.05),
        cell("alone", 50, 0.0, 1.0), cell("no-score", 50, 1.0, None),
        cell("tie", 100, 0.0, 2.0), cell("other-tie", 100, 1.0, 2.0),
        cell("worst", 200, 0.0, 9.0), cell("last-best", 200, 1.0, 1.0),
    ]  # fmt: skip
    rows += [cell(f"{name}-2", 10, eta, fid, model="m2", **{"train.steps": 2})
             for name, eta, fid in (("near-the-other-model", 0.0, 4.05), ("far-from-it", 1.0, 7.0))]  # fmt: skip
    influences = {row["cell"]: spread(0.1 + 0.1 * row["eta"]) for row in rows if row["cell"] != "no-error"}
    pairings = {row["cell"]: 0 for row in rows} | {"other-noise": 1}
    section = QualityTable(rows, evidence(rows, influences, pairings=pairings)).section(FID)
    assert section.alike == {"near", "other-noise", "near-the-other-model-2"}
    assert section.untested == {"no-error"}


@pytest.mark.parametrize(
    ("a", "b", "numbers"),
    [
        (cell("a", 10, 0.2, 5.0), cell("b", 10, 0.5, 6.0), "+1.00 ± 0.80, z = +1.2 ≈"),
        (cell("a", 10, 0.0, 5.0), cell("b", 20, "sigma_hat", 9.0), "+4.00 ± 0.80, z = +5.0"),
    ],
)
def test_how_a_difference_is_written(a, b, numbers):
    known = evidence([a, b], {"a": spread(1.0), "b": spread(0.2)})
    line = difference_line(pair(a, b, known))
    recorded(line)
    assert line.endswith(f": {numbers}")


def test_csv_reads_back_and_does_not_depend_on_the_order_of_rows(tmp_path):
    rows = grid()
    influences = {row["cell"]: spread(0.3 * row["steps"] ** 0.5) for row in rows if row["cell"] != "10/0.0"}
    known = evidence(rows, influences, reasons={"10/0.0": "too few samples, for once"})
    found = differences(rows, known)
    write_differences(found, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_differences(differences(rows[::-1], known), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert set(first) == {"differences.csv", "differences.md"}
    back = pd.read_csv(tmp_path / "differences.csv", keep_default_na=True)
    assert list(back.columns) == list(DIFFERENCE_COLUMNS)
    assert back["difference"].tolist() == [row["difference"] for row in found]


def test_the_list_is_readable_and_says_each_reason_once(tmp_path):
    rows = grid()
    influences = {row["cell"]: spread((0.1 + (row["sigma"] == "sigma_hat")) * row["steps"])
                  for row in rows if row["eta"] != 0.0}  # fmt: skip
    reasons = dict.fromkeys(("10/0.0", "20/0.0", "50/0.0"), "too few samples")
    write_differences(differences(rows, evidence(rows, influences, reasons=reasons)), tmp_path)
    lines = (tmp_path / "differences.md").read_text(encoding="utf-8").splitlines()
    recorded(lines[0])
    first = lines.index("| S = 10 → 20 at η = 0.0 | -10.00 |  |  |")
    assert lines.index("## Along S") < first < lines.index("## Along η")
    assert "| S = 10 → 50 at η = 1.0 | -30.0 ± 4.0 | -7.5 |  |" in lines
    recorded("\n".join(lines), "clip")
    assert [line for line in lines if line.endswith("| +4 ± 50 | +0.1 | ≈ |")]
    assert sum("too few" in line for line in lines) == 1
    write_differences([], tmp_path)
    assert pd.read_csv(tmp_path / "differences.csv").empty, "it replaces the older one"
    recorded((tmp_path / "differences.md").read_text(), "neighbours")
