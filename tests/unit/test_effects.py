"""Effects of a grid's keys: paired differences to a base, with errors over sampling and over trainings."""

import csv
import io
import math
from itertools import product

import pytest
from scipy import stats
from snapshots import recorded
from test_differences import cell, evidence, spread
from test_one_table import RATE, SCHEDULE, TRAINING, ablation
from test_tables import table

from taugrid.eval.figures.ablation import effects_figure, heat_maps, per_key_figures
from taugrid.eval.tables.effects import Effects, effects, effects_markdown, write_effects
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.quality import QualityTable


def trained(seeds=3, steps=(10, 20), rates=(0.01,)):
    """Two schedules: cosine is 1 better at S = 10 and 0.5 at S = 20, give or take 0.1 with the seed."""
    return ablation({
        (schedule, rate, seed, s): 30 + 3 * seed - s + (schedule == "cosine") * (0.1 * (seed - 1) - 10 / s)
        for schedule in ("linear", "cosine") for rate in rates for seed in range(seeds) for s in steps
    })  # fmt: skip


def known(rows, error=0.3, other=None, **more):
    """Evidence with these standard errors, of linear schedules and of others."""
    influences = {row["cell"]: spread(error if other is None or row[SCHEDULE] == "linear" else other) for row in rows}
    return evidence(rows, influences, **more)


def every(rows, *errors, **more):
    return Effects.of(QualityTable(rows, known(rows, *errors, **more)))


def test_an_effect_over_trainings_is_students_t_of_differences_paired_by_seed():
    rows = trained()
    found = effects(rows, known(rows))
    assert [(e.scope, e.settings) for e in found] == [("all", ""), ("S", "S=10"), ("S", "S=20")]
    assert {(e.key, e.base, e.value) for e in found} == {(SCHEDULE, "linear", "cosine")}
    expected = stats.ttest_1samp([-1.1, -1.0, -0.9], 0)
    low, high = expected.confidence_interval()
    at_10 = found[1]
    assert (at_10.over, at_10.replicates, at_10.pairs) == ("training", 3, 3)
    assert [at_10.effect, at_10.low, at_10.high, at_10.p] == pytest.approx([-1.0, low, high, expected.pvalue])
    assert found[0].effect == pytest.approx(-0.75)
    assert found[0].p_holm == found[0].p, "the only comparison of its family"
    both = sorted((found[1].p, found[2].p))
    assert sorted((found[1].p_holm, found[2].p_holm)) == pytest.approx([2 * both[0], max(2 * both[0], both[1])])


def test_noise_that_both_cells_and_all_trainings_share_cancels_or_adds_up_in_the_error_of_sampling():
    rows = trained(seeds=2, steps=(10,))
    [found] = effects(rows, known(rows, 0.5, 0.8))
    assert found.se_sampling == pytest.approx(0.3), "the same noise in both trainings: no smaller for the mean of two"
    noise = {row["cell"]: row[TRAINING] for row in rows}
    [found] = effects(rows, known(rows, 0.5, 0.8, pairings=noise))
    assert found.se_sampling == pytest.approx(0.3 / math.sqrt(2))
    [found] = effects(rows, evidence(rows, {}))
    assert (found.se_sampling, found.over) == (None, "training")
    rows = trained(seeds=1, steps=(10,))
    [found] = effects(rows, known(rows, 0.5, 0.8))
    assert (found.over, found.replicates, found.se_sampling) == ("sampling", 1, pytest.approx(0.3))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.3)
    recorded(effects_markdown(Effects({FID: [found]})), "training")


def test_an_interval_over_trainings_includes_the_sampling_noise_that_they_share():
    rows = [row | {"isc_mean": row["fid"]} for row in trained(steps=(10,))]
    se = 0.1 / math.sqrt(3)
    for own_seeds, shared in ((False, 0.3), (True, 0.0)):
        noise = {row["cell"]: row[TRAINING] if own_seeds else 7 for row in rows}
        found = every(rows, 0.5, 0.8, pairings=noise)
        (fid,), (isc,) = found.by_metric.values()
        assert fid.se_shared == pytest.approx(shared)
        assert fid.high - fid.effect == pytest.approx(math.hypot(stats.t.isf(0.025, 2) * se, 1.96 * shared), rel=1e-4)
        assert isc.high - isc.effect == pytest.approx(stats.t.isf(0.025, 2) * se), "it has no influences"
        assert (fid.is_conditional_on_seed, isc.is_conditional_on_seed) == (False, not own_seeds)
        assert effects_markdown(found).count("% interval, given") == (not own_seeds)
    assert effects(rows, evidence(rows, {}))[0].is_conditional_on_seed, "FID without influences, too"


def test_trainings_whose_sampling_seeds_differ_all_count():
    """With `zip: {train.seed: [0, 1, 2], seed: [7, 8, 9]}`; earlier, one training was left."""
    rows = [row | {"seed": 7 + row[TRAINING]} for row in trained()]
    found = effects(rows, evidence(rows, {}, pairings={row["cell"]: row["seed"] for row in rows}))
    alone = effects(trained(), evidence(rows, {}))
    assert [(e.replicates, e.over, e.note, e.is_conditional_on_seed) for e in found] == 3 * [(3, "training", "", False)]
    assert [e.effect for e in found] == pytest.approx([e.effect for e in alone])


def test_effects_are_read_as_they_were_written(tmp_path):
    written = every(trained())
    write_effects(written, tmp_path)
    listed = csv.DictReader(io.StringIO((tmp_path / "effects.csv").read_text()))
    numbers = {"effect", "low", "high", "p", "p_holm", "replicates", "mean_base", "mean_value"}
    given = [{k: float(v) if k in numbers else v or None for k, v in row.items()} for row in listed]
    read = Effects.read(given, [FID]).every
    assert [(effect.key, effect.effect, effect.p) for effect in read] == [
        (effect.key, effect.effect, effect.p) for effect in written.every
    ]
    assert not any(effect.is_conditional_on_seed for effect in read)


def test_other_metrics_have_an_interval_over_trainings_and_without_replicates_no_effects(tmp_path):
    rows = [row | {"isc_mean": 9 - row["fid"] / 10, "kid_mean": row["fid"] / 1000} for row in trained()]
    found = every(rows)
    fid, score, kid = found.by_metric.values()
    assert [metric.name for metric in found.by_metric] == ["fid", "isc_mean", "kid_mean"]
    for one, other in zip(fid, score, strict=True):
        assert (other.effect, other.low, other.high) == pytest.approx((-one.effect / 10, -one.high / 10, -one.low / 10))
        assert (other.p, other.p_holm) == pytest.approx((one.p, one.p_holm)), "a family for each metric"
    assert {effect.se_sampling for effect in (*score, *kid)} == {None}
    write_effects(found, tmp_path)
    lines = (tmp_path / "effects.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["metric", *["fid"] * 3, *["isc_mean"] * 3, *["kid_mean"] * 3]
    text = (tmp_path / "effects.md").read_text()
    recorded(text, "Inception")
    assert f"| **{kid[0].effect:.5f}** |" in text, "with the decimals of its interval"
    once = [row for row in rows if row[TRAINING] == 0]
    assert [metric.name for metric in Effects.of(QualityTable(once, evidence(once, {}))).by_metric] == ["fid"]


def test_the_base_is_the_first_value_unless_one_is_given_and_s_and_eta_count_on_request():
    rows = trained()
    assert {(e.base, e.value) for e in effects(rows, known(rows), {SCHEDULE: "cosine"})} == {("cosine", "linear")}
    assert {e.key for e in effects(rows, known(rows), {"steps": 20})} == {SCHEDULE, "steps"}
    with_eta = [cell("a", 10, 0.0, 5.0), cell("b", 10, "sigma_hat", 9.0, clip="none")]
    [found] = effects(with_eta, evidence(with_eta, {}), {"eta": "sigma_hat"})
    assert (found.base, found.value, found.effect) == ("σ̂", "0.0", -4.0)
    assert effects(with_eta, evidence(with_eta, {})) == []


def test_effects_average_over_the_other_keys_and_are_given_cell_by_cell():
    rows = ablation({("linear", 0.1, None, 10): 5.0, ("linear", 0.2, None, 10): 7.0,
                     ("cosine", 0.1, None, 10): 6.0, ("cosine", 0.2, None, 10): 11.0})  # fmt: skip
    found = effects(rows, evidence(rows, {}))
    assert [(e.scope, e.key, e.value, e.settings, e.effect) for e in found] == [
        ("all", SCHEDULE, "cosine", "", 2.5), ("all", RATE, "0.2", "", 3.5),
        ("cell", SCHEDULE, "cosine", "learning_rate=0.1", 1.0), ("cell", SCHEDULE, "cosine", "learning_rate=0.2", 4.0),
        ("cell", RATE, "0.2", "schedule=linear", 2.0), ("cell", RATE, "0.2", "schedule=cosine", 5.0),
    ]  # fmt: skip


def test_a_training_that_failed_costs_its_seed_and_is_named():
    rows = [row for row in trained() if row["cell"] != "cosine-0.01-2-20"]
    found = effects(rows, evidence(rows, {}))
    assert [(e.settings, e.replicates) for e in found] == [("", 2), ("S=10", 3), ("S=20", 2)]
    recorded(found[0].note)
    assert found[2].note == found[0].note, "also where a value has fewer seeds than the base"
    assert found[1].note == ""
    recorded(effects_markdown(Effects({FID: found})), "schedule")
    rows = [row for row in trained(seeds=12) if row["cell"] not in ("cosine-0.01-2-20", "cosine-0.01-10-20")]
    assert "train.seed 2, 10:" in effects(rows, evidence(rows, {}))[0].note, "by number"


def test_zipped_keys_are_one_and_what_follows_from_eta_is_no_key():
    rows = ablation({("linear", 0.1, None, 10): 5.0, ("cosine", 0.2, None, 10): 6.0})
    [found] = effects(rows, evidence(rows, {}), {RATE: 0.2})
    assert (found.key, found.base, found.value) == (f"{SCHEDULE} & {RATE}", "cosine & 0.2", "linear & 0.1")
    demo = [cell("a", 10, 0.0, 5.0), cell("b", 10, "sigma_hat", 9.0)]
    assert effects(demo, evidence(demo, {})) == []
    assert effects([rows[0], rows[1] | {"num_samples": 9}], evidence(rows, {})) == [], "they can't be compared"


def test_files_hold_every_effect_and_both_values_of_p(tmp_path):
    rows = trained(rates=(0.01, 0.02))
    write_effects(every(rows), tmp_path)
    lines = (tmp_path / "effects.csv").read_text().splitlines()
    assert lines[0].endswith("se_sampling,replicates,over,low,high,p,p_holm,pairs,note,se_shared")
    text = (tmp_path / "effects.md").read_text()
    recorded(text, "comparisons")
    recorded(text, "Cell")
    assert "| learning_rate | 0.02 | 0.01 |" in text
    assert len([line for line in text.splitlines() if line.startswith(("| schedule", "| learning"))]) == len(lines) - 1


def test_figures_have_a_panel_for_each_value_a_row_for_each_effect_and_a_square_for_each_pair_of_numbers():
    rows = trained(rates=(0.02, 0.01))
    found = effects(rows, known(rows))
    panels = dict(per_key_figures(table(rows), found))
    assert list(panels) == ["by-schedule", "by-learning_rate"]
    assert [panel.get_title() for panel in panels["by-schedule"].axes] == ["schedule=linear", "schedule=cosine"]
    assert len({panel.get_ylim() for panel in panels["by-schedule"].axes}) == 1
    forest = effects_figure(found)
    assert sum(len(panel.containers) for panel in forest.axes) == len(found)
    for panel in forest.axes:
        assert panel.xaxis.get_major_ticks()[0].label1.get_visible(), "each panel says what its places are"
        labels = [label.get_text() for label in panel.get_yticklabels()]
        recorded(labels[-1])
    [(_, heat)] = heat_maps(table(rows), found)
    first = heat.axes[0]
    assert [text.get_text() for text in first.get_yticklabels()] == ["0.01", "0.02"], "ascending, whatever the config"
    assert (first.get_xlabel(), first.get_ylabel(), first.get_title()) == ("S", "learning_rate", "schedule=linear")
    for figure in (forest, heat, *panels.values()):
        figure.draw_without_rendering()


def test_sigma_hat_and_eta_1_have_a_heat_map_each_and_there_is_none_over_eta_with_sigma_hat():
    """Both have 1 as the number eta, and sigma-hat has no place between numbers."""

    def maps(etas, bases, key="clip", values=("none",)):
        rows = [
            cell(f"{steps}-{eta}-{value}", steps, eta, 10.0 + steps) | {"protocol": "one", key: value}
            for steps, eta, value in product((10, 20), etas, values)
        ]
        return list(heat_maps(table(rows), effects(rows, known(rows), bases)))

    [(_, heat)] = maps((1.0, "sigma_hat"), {"rate": 1.0}, "rate", (1.0, 2.0))
    assert [panel.get_title() for panel in heat.axes[:2]] == ["η=1.0", "η=σ̂"]
    assert maps((0.0, 1.0, "sigma_hat"), {"eta": 0.0}) == []
    assert [name for name, _ in maps((0.0, 1.0), {"eta": 0.0})] == ["heat-map"]
