"""One table for all models of a metric, its means over seeds, and the marks in it."""

import math

import pytest
from snapshots import raises, recorded
from test_differences import cell, evidence, indistinguishable, spread
from test_tables import latex, markdown, table, table_rows

from taugrid.eval.figures.lines import places_of
from taugrid.eval.tables.cost import costs
from taugrid.eval.tables.differences import differences
from taugrid.eval.tables.long_form import FID, in_grid_order
from taugrid.eval.tables.seeds import averaged
from taugrid.grids import Layout

SCHEDULE, RATE, TRAINING = "diffusion.schedule", "train.learning_rate", "train.seed"


def ablation(values, **settings):
    """A row for each (schedule, rate, seed, steps) -> FID, in this order; `settings` for all."""
    rows = []
    for (schedule, rate, seed, steps), fid in values.items():
        name = f"{schedule}-{rate}-{seed}-{steps}"
        keys = {SCHEDULE: schedule, RATE: rate, TRAINING: seed, **settings}
        given = {key: value for key, value in keys.items() if value is not None}
        rows.append(cell(name, steps, 0.0, fid, model=f"{schedule}-{rate}-{seed}", **given))
    return rows


def tables(rows, *given, **more):
    return table(rows, *given, **more).section(FID).tables


def text_of(rows, **given):
    return table_rows(markdown(rows, **given))


def test_all_models_are_rows_of_one_table_in_the_configs_order_under_short_names():
    points = [(s, r, None, steps) for s in ("linear", "cosine") for r in (0.01, 0.001) for steps in (20, 10)]
    values = {point: fid for fid, point in enumerate(points, start=11)}
    rows = [row | {"fid_se": None} for row in ablation(values)]
    assert text_of(rows) == [
        ["schedule", "learning_rate", "η \\ S", "10", "20"],
        ["linear", "0.01", "0.0", "**12.00**", "**11.00**"],
        ["linear", "0.001", "0.0", "14.00", "13.00"],
        ["cosine", "0.01", "0.0", "16.00", "15.00"],
        ["cosine", "0.001", "0.0", "18.00", "17.00"],
    ]


def test_other_rows_and_columns_on_request_and_separate_tables_for_what_is_in_neither():
    values = {(s, r, None, 10): fid for (s, r), fid in zip(
        ((s, r) for s in ("linear", "cosine") for r in (0.01, 0.001)), (4.0, 3.0, 2.0, 1.0), strict=True)}  # fmt: skip
    rows = ablation(values)
    [one] = tables(rows, layout=Layout((RATE, "eta"), SCHEDULE))
    assert (one.row_keys, one.column_key) == (("learning_rate", "η"), "schedule")
    assert [[value.number for value in one.row(label)] for label in one.labels] == [[4.0, 2.0], [3.0, 1.0]]
    found = tables(rows, layout=Layout(("eta",), RATE))
    assert [each.label for each in found] == ["schedule=linear", "schedule=cosine"]
    assert [each.columns for each in found] == [["0.01", "0.001"]] * 2
    tex = latex(rows, layout=Layout(("eta",), RATE))
    assert tex.count(r"\begin{table}") == 2
    assert "schedule=cosine" in tex


def test_a_clip_that_follows_from_eta_is_noted_below_and_one_that_does_not_is_a_row():
    rows = [cell(f"{eta}", 10, eta, 5.0) for eta in (0.0, "sigma_hat")]
    [one] = tables(rows)
    assert one.row_keys == ("η",)
    recorded("\n".join(one.notes))
    rows.append(cell("clipped", 10, 0.0, 4.0, clip="x0"))
    [one] = tables(rows)
    assert one.labels == [("none", "0.0"), ("x0_and_eps", "σ̂"), ("x0", "0.0")]


def test_cells_that_cannot_be_compared_stay_apart_under_what_tells_them_apart():
    rows = [
        cell("a", 10, 0.0, 5.0, protocol="a", rounding="up"),
        cell("b", 10, 0.0, 4.0, protocol="b", rounding="down"),
    ]
    spelled = {"a": {"rounding": "up"}, "b": {"rounding": "down"}}
    assert [table.label for table in tables(rows, spelled)] == ["rounding=up", "rounding=down"]
    rows = [row | {"num_samples": n, "rounding": "up", "protocol": "a"} for row, n in zip(rows, (9, 8), strict=True)]
    assert [table.label for table in tables(rows, spelled)] == ["N=9", "N=8"]


def test_two_cells_in_one_place_are_refused_by_name():
    rows = [cell("first", 10, 0.0, 1.0), cell("second", 10, 0.0, 2.0)]
    with raises(ValueError):
        tables(rows)


def test_seeds_of_trainings_are_no_rows_but_means_with_their_spread():
    fids = {"linear": (10.0, 12.0, 14.0), "cosine": (9.0, 9.5, 13.0)}
    rows = ablation({(s, None, seed, 10): fid for s, its in fids.items() for seed, fid in enumerate(its)})
    text = markdown(rows)
    assert table_rows(text)[1:] == [["linear", "0.0", "12.0 ± 1.2 (2.0)"], ["cosine", "0.0", "**10.5 ± 1.3 (2.2)**"]]
    recorded(text, "deviation")
    assert "error of" not in text
    assert "(2.0)" in latex(rows)
    assert not [row for row in differences(rows, evidence(rows, {})) if row["along"] == TRAINING]


def test_with_both_seeds_a_training_counts_with_the_mean_of_its_samplings():
    values = {(0, 0): 10.0, (0, 1): 12.0, (1, 0): 14.0, (1, 1): 18.0}
    rows = [cell(f"{t}-{s}", 10, 0.0, fid, model=f"m{t}", **{TRAINING: t, "seed": s}) for (t, s), fid in values.items()]
    found = averaged(in_grid_order(rows))
    assert found.over == TRAINING
    assert found.frame["fid"].tolist() == [13.5]
    assert found.spreads.loc["0-0", "fid"] == pytest.approx(5 / math.sqrt(2))
    assert found.errors.loc["0-0", "fid"] == pytest.approx(2.5)
    alone = averaged(in_grid_order(rows[:2]))
    assert (alone.over, alone.most, alone.frame["fid"].tolist()) == ("seed", 2, [11.0])


def test_a_mean_over_replicates_has_the_mean_of_their_seconds():
    rows = [cell(f"m{t}", 10, 0.0, 9.0, model=f"m{t}", **{TRAINING: t}) for t in range(4)]
    for row, seconds in zip(rows, (None, 100.0, 10.0, 12.0), strict=True):
        row["seconds"] = seconds
    means = averaged(in_grid_order(rows)).frame
    assert means["seconds"].tolist() == [pytest.approx(122 / 3)], "as in cost.csv, without what is not known"
    assert places_of(means, "seconds") == {"m0": pytest.approx(122 / 3 / rows[0]["num_samples"] * 1000)}
    [cost] = costs(table([row | {"network_evaluations": 10} for row in rows]), {})
    assert cost.seconds == pytest.approx(places_of(means, "seconds")["m0"])


def test_marks_among_means_pair_the_trainings_by_their_seeds():
    """What a seed does to all settings cancels: `far` is always 1 worse, `near` sometimes better."""
    noise = (0.0, 5.0, -4.0)
    shifts = {"best": (0.0, 0.0, 0.0), "near": (0.6, -0.5, 0.2), "far": (1.0, 1.1, 0.9)}
    values = {(s, None, seed, 10): 20 + noise[seed] + its[seed] for s, its in shifts.items() for seed in range(3)}
    rows = ablation(values)
    known = evidence(rows, {row["cell"]: spread(0.01) for row in rows})
    assert indistinguishable(rows, known) == {"near-None-0-10"}
    text = markdown(rows, known.protocols, {"near-None-0-10"})
    recorded(text, "distinguishable")
    assert indistinguishable([], known) == frozenset()


@pytest.mark.parametrize(("others", "marked"), [(1, False), (3, True)])
def test_marks_among_means_are_joint_for_all_settings_of_a_column(others, marked):
    """Each is 1 worse, with p = 0.026: below 5 %, and above the 1.3 % that four settings need."""
    shifts = (0.72, 1.0, 1.28)
    values = {("best", None, seed, 10): 20.0 for seed in range(3)}
    values |= {(f"other{i}", None, seed, 10): 20 + shifts[seed] for i in range(others) for seed in range(3)}
    rows = ablation(values)
    found = indistinguishable(rows, evidence(rows, {row["cell"]: spread(0.01) for row in rows}))
    assert found == ({f"other{i}-None-0-10" for i in range(others)} if marked else set())


def test_marks_among_means_count_the_noise_that_trainings_share():
    rows = ablation({(name, None, seed, 10): 20 + shift * (0.9 + 0.1 * seed)
                     for name, shift in (("best", 0.0), ("other", 1.0)) for seed in range(3)})  # fmt: skip
    phi = {row["cell"]: spread(1.0 if row[SCHEDULE] == "best" else 1.8) for row in rows}
    assert indistinguishable(rows, evidence(rows, phi)) == {"other-None-0-10"}, "of one sampling seed, give or take 0.8"
    own = {row["cell"]: row[TRAINING] for row in rows}
    assert indistinguishable(rows, evidence(rows, phi, pairings=own)) == set()


def test_other_metrics_are_marked_over_replicates_alone():
    scores = {"best": [7.0, 8.0, 9.0], "near": [7.1, 7.8, 8.9], "far": [5.0, 6.1, 7.0]}
    rows = [
        row | {"isc_mean": scores[row[SCHEDULE]][row[TRAINING]]}
        for row in ablation({(name, None, seed, 10): 5.0 + seed for name in scores for seed in range(3)})
    ]
    shares = {line[0]: line[-1] for line in text_of(rows)[-3:]}
    assert shares["best"].startswith("**8.0")
    assert [name for name, text in shares.items() if text.endswith("≈")] == ["near"]
    once = [row for row in rows if row[TRAINING] == 0]
    assert "≈" not in markdown(once)


def test_means_of_fewer_replicates_say_of_how_many():
    values = {(name, None, seed, 10): 5.0 + seed for name in ("linear", "cosine") for seed in range(3)}
    assert "n = " not in markdown(ablation(values))
    del values["cosine", None, 2, 10]
    rows = ablation(values)
    assert [line[-1] for line in text_of(rows)[1:]] == ["6.00 ± 0.58 (1.00)", "**5.50 ± 0.50 (0.71) (n = 2)**"]
    recorded(markdown(rows), "trainings")
    single = [row for row in rows if (row[SCHEDULE], row[TRAINING]) != ("cosine", 1)]
    assert "| **5.00 (n = 1)** |" in markdown(single)
    recorded(markdown(single), "difference")


def test_replicates_of_other_protocols_are_no_mean():
    rows = [cell(str(seed), 10, 0.0, 10.0 + seed, seed=seed) for seed in range(2)]
    known = evidence(rows, {}).protocols[rows[0]["protocol"]]
    rows[1]["protocol"] = "other"
    protocols = {rows[0]["protocol"]: known, "other": {**known, "reference": "another"}}
    assert averaged(in_grid_order(rows), protocols).frame["fid"].tolist() == [10.0, 11.0]
