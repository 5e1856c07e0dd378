"""Marks, differences, effects and figures of metrics other than FID, by their own standard errors."""

import json
import math
from dataclasses import asdict, replace

import pandas as pd
import pytest
from matplotlib.colors import Normalize
from snapshots import raises, recorded
from test_differences import cell, evidence, spread
from test_one_table import SCHEDULE, TRAINING
from test_report_page import Parsed, findings
from test_tables import table_rows

from taugrid.eval.figures.ablation import heat_maps
from taugrid.eval.figures.lines import quality_figure
from taugrid.eval.metrics.floor import Floor
from taugrid.eval.pages.answer import answer, measured
from taugrid.eval.pages.report import differences as page_differences
from taugrid.eval.pages.report import report_html
from taugrid.eval.tables.checkpoints import best_checkpoints
from taugrid.eval.tables.differences import (
    DIFFERENCE_COLUMNS,
    difference_line,
    differences,
    differences_of,
    pair,
    write_differences,
)
from taugrid.eval.tables.effects import Effects, effects_markdown
from taugrid.eval.tables.long_form import CHECKPOINT, FID, in_grid_order
from taugrid.eval.tables.quality import QualityTable
from taugrid.grids import USUAL
from taugrid.registry.metrics import METRICS

COLUMNS = {column.name: column for metric in METRICS.values() for column in metric.columns}
KID, IS = COLUMNS["kid"], COLUMNS["isc_mean"]


def scored(name, eta=0.0, fid=10.0, kid=0.01, **others):
    return cell(name, 10, eta, fid, fid_se=None, kid=kid, kid_se=0.001, kid_mean=kid, kid_std=0.002, **others)


def known(rows, kid, **of_others):
    return evidence(rows, {}, others={"kid": kid, **of_others})


@pytest.fixture
def small_n():
    """FID's best is a; by KID, b can't be told apart from it, c can, and d is better."""
    rows = [scored("a", 0.0, 10.0, 0.010), scored("b", 0.2, 11.0, 0.0101)]
    rows += [scored("c", 0.5, 12.0, 0.020), scored("d", 1.0, 13.0, 0.001)]
    phi = {row["cell"]: spread(0.0001 * (1 + place)) for place, row in enumerate(rows)}
    return QualityTable(rows, known(rows, phi))


def test_the_marks_of_a_table_are_of_its_own_metric(small_n):
    assert [section.metric for section in small_n.sections][:2] == [KID, FID], "what has errors comes first"
    assert (small_n.section(FID).alike, small_n.section(FID).legend) == (set(), [])
    assert small_n.section(KID).alike == set(), "all are worse than d"
    near = [row | {"kid": 0.0011 if row["cell"] == "c" else row["kid"]} for row in small_n.rows]
    table = replace(small_n, rows=near)
    assert (table.section(FID).alike, table.section(KID).alike) == (set(), {"c"})
    recorded(table.section(KID).legend[0], "difference")


def test_fid_with_an_error_is_tested_by_its_own_and_kid_by_kids(small_n):
    rows = [row | {"fid_se": 1.0} for row in small_n.rows]
    of_fid = {row["cell"]: spread(0.1 * (1 + place)) for place, row in enumerate(rows)}
    table = QualityTable(rows, evidence(rows, of_fid, others=small_n.evidence.others))
    assert (table.judged_by, table.section(FID).alike, table.section(KID).alike) == (FID, set(), set())
    near = [row | {"kid": 0.0102 if row["cell"] == "d" else row["kid"]} for row in rows]
    table = QualityTable(near, evidence(near, of_fid, others=small_n.evidence.others))
    assert table.section(KID).alike == {"b", "d"}, "0.7 errors from a"
    recorded(table.section(KID).legend[0], "difference")


def test_the_file_keeps_marks_by_other_metrics_apart_from_those_of_fid(small_n, tmp_path):
    near = [row | {"kid": 0.0011 if row["cell"] == "c" else row["kid"]} for row in small_n.rows]
    table = replace(small_n, rows=near)
    table.write(tmp_path)
    document = json.loads((tmp_path / "quality.json").read_text())
    assert document["indistinguishable"] == []
    assert document["indistinguishable_in"] == {"kid": ["c"]}
    again = QualityTable.read(document)
    assert again.markdown == table.markdown
    assert again.markdown.count(" ≈") == 1
    [first, *_] = answer(measured(again, again.judged_by), 4)
    recorded(first, "apart")
    assert again.about == table.about
    recorded(small_n.about, "standard")


def test_kid_is_that_of_all_pairs_and_that_of_subsets_is_in_the_files_or_asked_for(small_n, tmp_path):
    small_n.write(tmp_path)
    assert (tmp_path / "quality.md").read_text().count("\n## KID") == 1
    assert {"kid_mean", "kid_std"} < {*pd.read_csv(tmp_path / "quality.csv").columns}
    [protocol] = small_n.protocols.values()
    asked = replace(small_n.evidence, protocols=dict.fromkeys(small_n.protocols, protocol | {"metrics": ["kid_mean"]}))
    assert [metric.name for metric in replace(small_n, evidence=asked).metrics] == ["kid", "fid", "kid_mean"]
    alone = [{**row, "kid": None, "kid_se": None} for row in small_n.rows]
    assert [metric.name for metric in replace(small_n, rows=alone).metrics] == ["fid", "kid_mean"]


def test_higher_is_better_where_it_is():
    rows = [cell(name, 10, eta, 5.0, isc_mean=isc, isc_std=9.0, isc_se=0.1)
            for name, eta, isc in (("low", 0.0, 2.0), ("near", 0.5, 2.99), ("high", 1.0, 3.0))]  # fmt: skip
    phi = {"low": spread(0.02), "near": spread(0.03), "high": spread(0.01)}
    table = QualityTable(rows, evidence(rows, {}, others={"isc_mean": phi}))
    section = table.section(IS)
    assert section.alike == {"near"}, "0.5 errors below the best"
    assert "**3.0 ± 9.0**" in table.markdown
    assert table_rows(table.markdown)[-3][-1] == "2.0 ± 9.0", "± stays the standard deviation over splits"
    assert "not tested" not in section.legend[0], "± is not the error of the test"
    checkpoints = [row | {CHECKPOINT: row["cell"], "eta": 0.0} for row in rows]
    [best] = best_checkpoints(QualityTable(checkpoints, table.evidence), IS)
    assert (best.checkpoint, best.alike) == ("high", ("near",))


def test_differences_have_columns_of_other_metrics_behind_those_of_fid(small_n, tmp_path):
    found = differences(small_n.rows, small_n.evidence)
    write_differences(found, tmp_path)
    frame = pd.read_csv(tmp_path / "differences.csv")
    parts = [f"kid_{part}" for part in ("a", "b", "difference", "se", "z")]
    assert list(frame.columns) == [*DIFFERENCE_COLUMNS, *parts]
    first = frame.iloc[0]
    assert "neither the" in (tmp_path / "differences.md").read_text(encoding="utf-8")
    assert [first["kid_a"], first["kid_b"]] == [0.010, 0.0101]
    assert [first["kid_difference"], first["kid_se"], first["kid_z"]] == pytest.approx([0.0001, 0.0001, 1.0])
    assert frame["se"].isna().all()
    text = (tmp_path / "differences.md").read_text(encoding="utf-8")
    of_fid, of_kid = text.split(f"# Differences of {KID.title}\n")
    assert "η = 0.0 → 0.2 at S = 10 | +1.00 |" in of_fid
    assert "η = 0.0 → 0.2 at S = 10 | +0.00010 ± 0.00010 | +1.0 | ≈ |" in of_kid
    assert of_kid.count("no standard") == of_kid.split("## Notes")[1].count("no standard") > 0


def test_a_run_without_fid_compares_by_what_it_has(small_n, tmp_path):
    rows = [row | {"fid": None} for row in small_n.rows]
    found = differences(rows, small_n.evidence)
    assert len(found) == 3
    assert found[0]["difference"] is None
    write_differences(found, tmp_path)
    text = (tmp_path / "differences.md").read_text(encoding="utf-8")
    recorded(text, "Differences")
    assert "the bias" not in text, "it has none"
    assert QualityTable(rows, small_n.evidence).judged_by == KID
    bare = [row | {"kid_se": None} for row in rows]
    with raises(ValueError):
        pair(bare[0], bare[1], small_n.evidence)
    assert differences([bare[0] | {"fid": 4.0}, rows[1]], small_n.evidence) == [], "nothing that both have"
    row = pair(*small_n.rows[:2], known(rows, {"a": spread(0.1)}))
    assert (row["kid_se"], row["kid_z"]) == (None, None), "influences are lost"
    [of_kid] = differences_of([row], KID)
    assert difference_line(of_kid) == "η = 0.0 → 0.2 at S = 10: +0.000100"


@pytest.fixture
def floors():
    """The reference has 700 images, so that N = 400 is halved for KID."""
    return {400: {"fid": Floor(3.14, 0.5, 400, 300, 5, 400), "kid": Floor(-0.0004, 0.0007, 350, 350, 5, 400)}}


def test_the_floor_is_below_each_table_and_comes_back_from_the_file(small_n, floors, tmp_path):
    replace(small_n, floors=floors).write(tmp_path)
    again = QualityTable.read(json.loads((tmp_path / "quality.json").read_text()))
    assert again.floors == floors
    text = (tmp_path / "quality.md").read_text(encoding="utf-8")
    assert again.markdown in text
    assert "FID 3.14 ± 0.50 of" in text
    recorded(text, "floor: FID")
    [of_kid] = [line for line in text.splitlines() if line.startswith(f"floor: {KID.title} -0.00040 ± 0.00070")]
    recorded(of_kid, "images")


def test_the_floor_is_a_dashed_line_or_said_to_be_below_a_logarithmic_axis(small_n, floors):
    def drawn(floors, metric=FID):
        [panel] = quality_figure(in_grid_order(small_n.rows), small_n.protocols, metric=metric, floors=floors).axes
        lines = [line for line in panel.lines if line.get_linestyle() == "--"]
        return [list(line.get_ydata()) for line in lines], [text.get_text() for text in panel.texts]

    lines, [text] = drawn(floors)
    assert lines == [[3.14, 3.14]]
    assert " 3.14 ± 0.50" in text
    recorded(text)
    lines, [text] = drawn(floors, KID)
    assert not lines
    assert "-0.00040 ± 0.00070" in text
    recorded(text)
    lines, [text] = drawn({400: {"fid": floors[400]["fid"]._replace(mean=2.0)}})
    assert not lines
    recorded(text, "below")
    assert drawn({500: floors[400]}) == ([], []), "of another N"


def opened(page, tag, what="text"):
    return [found[what] for found in page.all(tag) if "details" not in found["within"] and what in found]


def test_one_metric_decides_a_page_and_it_says_so_once(small_n, floors):
    same = {row["protocol"]: {"num_samples": 400} for row in small_n.rows}
    rows = [*small_n.rows, scored("e", 1.0, 9.0, 0.002) | {"steps": 20}]
    phi = small_n.evidence.others["kid"] | {"e": spread(0.0001)}
    quality = QualityTable(rows, replace(known(rows, phi), protocols=same), floors=floors)
    effects = Effects.of(quality)
    frame = differences(rows, quality.evidence)
    ablated = [{"metric": metric.name, **asdict(effect)} for metric, of in effects.by_metric.items() for effect in of]
    shown = findings(quality=quality, differences=frame, effects=ablated, losses={}, samples={})
    text = report_html(shown)
    page = Parsed(text)
    [hero] = page.all("p", **{"class": "hero"})
    assert KID.title in hero["text"]
    said = [line["text"] for line in page.all("p", **{"class": "answer"})]
    assert said
    assert all("FID" not in line and "no error" not in line for line in said)
    assert opened(page, "caption")[0] == KID.heading
    assert f"Differences of {KID.title}" in opened(page, "h2")
    assert [label.partition(" against")[0] for label in opened(page, "svg", "aria-label")] == [KID.title]
    assert page.all("body")[0]["text"].count(f"{KID.title} decides") == 1
    ids = [element["id"] for element in page.elements if "id" in element]
    assert len(set(ids)) == len(ids)
    assert "real: 3.14 ± 0.50" in text, "the chart of FID can be opened"
    by_fid = replace(quality, rows=[row | {"fid_se": 1.0} for row in quality.rows])
    page = Parsed(report_html(replace(shown, quality=by_fid)))
    assert "FID" in page.all("p", **{"class": "hero"})[0]["text"]
    assert opened(page, "caption")[0] == FID.heading
    assert "decides" not in page.all("body")[0]["text"]
    [about] = [found["about"] for found in page_differences(frame, KID)["metrics"][:1]]
    assert "the bias" not in about


@pytest.mark.parametrize(
    ("asked", "has_fid", "first"),
    [(("isc", "kid"), False, "isc_mean"), (("fid", "mind", "kid"), True, "mind"), ((), False, "isc_mean")],
)
def test_the_order_of_evaluate_metrics_decides_which_error_counts(small_n, tmp_path, asked, has_fid, first):
    more = {"isc_mean": 3.0, "isc_std": 1.0, "isc_se": 0.1, "mind": 0.5, "mind_se": 0.1}
    names = {column for name in asked for column in METRICS[name].columns}
    keep = {name for column in names for name in column.names} if asked else {"isc_mean", "isc_se", "kid", "kid_se"}
    rows = [row | more | ({} if has_fid else {"fid": None}) for row in small_n.rows]
    gone = {name for metric in METRICS.values() for column in metric.columns for name in column.names} - keep - {"fid"}
    rows = [row | dict.fromkeys(gone) for row in rows]
    table = QualityTable(rows, known(rows, {}), layout=USUAL._replace(metrics=asked))
    assert table.judged_by.name == first
    assert table.by_steps.judged_by.name == first
    assert f"{table.judged_by.title} decides" in table.about_judge
    table.write(tmp_path)
    assert QualityTable.read(json.loads((tmp_path / "quality.json").read_text()), table.layout).judged_by.name == first


def test_a_report_draws_the_metric_that_decides_in_every_figure_also_where_it_is_below_0(small_n):
    rows = [row | {"steps": steps, "cell": f"{row['cell']}{steps}", "eta": 0.0, "rate": rate, "kid": row["kid"] - shift}
            for row, rate in zip(small_n.rows[:2], (1.0, 2.0), strict=True)
            for steps, shift in ((10, 0.0), (20, 0.0105))]  # fmt: skip
    table = QualityTable(rows, known(rows, {row["cell"]: spread(0.0001) for row in rows}))
    [(_, heat)] = heat_maps(table, Effects.of(table, {"rate": 1.0}).by_metric[KID], KID)
    panel, bar = heat.axes
    assert (bar.get_ylabel(), type(panel.images[0].norm)) == (KID.heading, Normalize)
    for drawn, scale in ((small_n.rows, "log"), (rows, "linear")):
        [panel, *_] = quality_figure(in_grid_order(drawn), small_n.protocols, metric=KID).axes
        assert (panel.get_yscale(), panel.get_ylabel()) == (scale, KID.heading)


def trained(kid):
    """A row for each (schedule, seed of training), which share the noise of sampling."""
    return [scored(f"{s}-{seed}", kid=value, model=f"{s}-{seed}", **{SCHEDULE: s, TRAINING: seed})
            for (s, seed), value in kid.items()]  # fmt: skip


def test_effects_on_kid_have_errors_of_sampling_and_include_noise_that_trainings_share():
    rows = trained({("linear", 0): 0.010, ("linear", 1): 0.011, ("cosine", 0): 0.020, ("cosine", 1): 0.0212})
    phi = {row["cell"]: spread(0.002 if row[SCHEDULE] == "linear" else 0.005) for row in rows}
    found = Effects.of(QualityTable(rows, known(rows, phi)))
    [of_kid] = [effect for effect in found.by_metric[KID] if effect.scope == "all"]
    assert (of_kid.se_sampling, of_kid.se_shared) == pytest.approx((0.003, 0.003))
    [of_fid] = [effect for effect in found.by_metric[FID] if effect.scope == "all"]
    assert (of_fid.se_sampling, of_fid.se_shared) == (None, None)
    text = effects_markdown(found)
    assert "only FID" not in text
    recorded(text, "interval")
    one = rows[::2]
    found = Effects.of(QualityTable(one, known(one, phi)))
    [of_kid] = [effect for effect in found.by_metric[KID] if effect.scope == "all"]
    assert of_kid.over == "sampling"
    assert of_kid.p == pytest.approx(math.erfc(0.01 / 0.003 / math.sqrt(2)))
