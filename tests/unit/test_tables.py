import io
import json
import math
import random
import re
from itertools import product
from types import MappingProxyType

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from snapshots import recorded

from taugrid.eval.pages.answer import measured
from taugrid.eval.tables.alike import Marks
from taugrid.eval.tables.arrangement import pivot_tables
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.long_form import COLUMNS, joined_rows, long_form
from taugrid.eval.tables.quality import CONSOLE_WIDTH, QualityTable
from taugrid.eval.tables.table import write_number
from taugrid.grids import USUAL, short_names
from taugrid.orchestrator.cli.text import print_result
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import SessionResult
from taugrid.protocol import comparability_key
from taugrid.registry.metrics import COLUMNS as COLUMN


def cell(steps, eta, fid=None, fid_se=None, **others):
    """A row of the contract with plausible settings; `eta` may be "sigma_hat"."""
    sigma_hat = eta == "sigma_hat"
    row = dict.fromkeys(COLUMNS)
    row |= {"cell": f"{steps:04d}-{eta}-{sorted(others.items())}", "model": "a1b2c3d4e5", "sampler": "ddim"}
    row |= {"steps": steps, "eta": 1.0 if sigma_hat else eta, "sigma": "sigma_hat" if sigma_hat else "eta"}
    row |= {"spacing": "linear", "clip": "none", "num_samples": 5000, "network_evaluations": 5000 * steps}
    return row | {"fid": fid, "fid_se": fid_se, "seconds": 1.5, "protocol": f"p{steps}"} | others


def paper_grid(**others):
    """Four etas without clipping and sigma_hat with it, at S = 10 and 1000, as in the paper's table 1."""
    scores = {0.0: (13.36, 4.04), 0.2: (14.04, 4.09), 0.5: (16.66, 4.29), 1.0: (41.07, 4.73)}
    rows = [
        cell(s, eta, fid, 0.1, **others)
        for eta, pair in scores.items()
        for s, fid in zip((10, 1000), pair, strict=True)
    ]
    clipped = {"clip": "x0_and_eps", **others}
    return [*rows, cell(10, "sigma_hat", 367.43, 1.26, **clipped), cell(1000, "sigma_hat", 3.17, 0.012, **clipped)]


def table(
    rows, protocols=MappingProxyType({}), indistinguishable=frozenset(), joined=frozenset(), layout=USUAL, notes=()
):
    """The quality table of `rows`, with marks that are given."""
    evidence = Evidence({}, {}, dict(protocols))
    marks = {"fid": Marks(frozenset(indistinguishable))}
    return QualityTable(rows, evidence, notes, joined, layout, recorded=marks)


def markdown(rows, *given, **more):
    return table(rows, *given, **more).markdown


def latex(rows, *given, **more):
    return table(rows, *given, **more).latex()


def write(rows, folder, *given, **more):
    table(rows, *given, **more).write(folder)


def table_rows(text):
    """The cells of every table line in Markdown, without the rulers."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[text.strip() for text in line] for line in lines if not line[0].strip().startswith(":-")]


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_long_form_does_not_depend_on_the_order_in_which_cells_come(shuffler: random.Random):
    rows = [row for schedule in ("linear", "cosine") for row in paper_grid(**{"diffusion.schedule": schedule})]
    shuffled = shuffler.sample(rows, len(rows))
    pd.testing.assert_frame_equal(long_form(shuffled), long_form(rows))


def test_the_long_form_has_the_columns_and_types_of_the_contract():
    frame = long_form(paper_grid(**{"train.steps": 400, "weights": "ema"}))
    assert list(frame.columns) == [*COLUMNS, "train.steps", "weights"]
    assert frame["steps"].tolist() == [10, 1000] * 5
    assert frame["sigma"].tolist() == ["eta"] * 8 + ["sigma_hat"] * 2
    integers = ["steps", "num_samples", "network_evaluations", "train.steps"]
    assert {str(frame[column].dtype) for column in integers} == {"int64"}
    assert {str(frame[column].dtype) for column in ("eta", "fid", "kid_mean", "recall", "seconds")} == {"float64"}


def test_csv_comes_back_through_pandas_with_its_types_and_exact_values(tmp_path):
    rows = paper_grid(**{"train.steps": 400, "diffusion.schedule": "linear"})
    rows[0] |= {"fid": 0.1 + 0.2, "kid_mean": 1e-7 / 3}
    write(rows, tmp_path, {})
    back = pd.read_csv(tmp_path / "quality.csv", float_precision="round_trip")
    pd.testing.assert_frame_equal(back, long_form(rows), check_exact=True, check_dtype=True)
    assert set(back["clip"]) == {"none", "x0_and_eps"}  # a reader that takes "none" for a missing value loses it


def test_json_is_strict_and_holds_rows_protocols_and_notes(tmp_path):
    rows = [cell(10, 0.0, 14.2, float("nan")), cell(20, 0.0, None, None)]
    protocols = {"p10": {"tau": (100, 1000), "loss": {"num_samples": 1797}, "threshold": math.inf}}
    write(rows, tmp_path, protocols, notes=["one cell is missing"])

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    document = json.loads((tmp_path / "quality.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert [row["fid"] for row in document["rows"]] == [14.2, None]
    assert [row["fid_se"] for row in document["rows"]] == [None, None]
    assert [row["steps"] for row in document["rows"]] == [10, 20]
    assert isinstance(document["rows"][0]["steps"], int)
    assert document["protocols"]["p10"] == {"tau": [100, 1000], "loss": {"num_samples": 1797}, "threshold": None}
    recorded("\n".join(document["notes"]))


def test_axis_values_that_are_lists_or_missing_survive(tmp_path):
    axis = "model.unet.block_out_channels"
    rows = [
        cell(10, 0.0, 2.0, model="m1", **{axis: [32, 64], "train.steps": 100}),
        cell(10, 0.0, 1.0, model="m2", **{axis: [64, 64], "train.steps": None}),
    ]
    write(rows, tmp_path, {})
    assert (tmp_path / "quality.csv").read_text().splitlines()[1].endswith(',p10,"[32, 64]",100')
    assert (tmp_path / "quality.csv").read_text().splitlines()[2].endswith(',p10,"[64, 64]",')
    assert [pivot.settings for pivot in pivot_tables(long_form(rows))] == [
        {axis: "[32, 64]", "train.steps": "100"},
        {axis: "[64, 64]", "train.steps": "not set"},
    ]


def test_rows_stand_in_the_order_of_eta_whatever_steps_or_settings_they_have():
    rows = [cell(20, 1.0, 4.0), cell(10, "sigma_hat", 9.0), cell(10, 0.0, 5.0, spacing="quadratic")]
    (pivot,) = pivot_tables(long_form(rows))
    assert [eta for (eta,) in pivot.labels] == ["0.0", "1.0", "σ̂"]
    recorded("\n".join(pivot.notes))
    assert [part in pivot.notes[0] for part in (" quadratic (0.0)", " linear (1.0, σ̂)")] == [True, True]


def test_a_clip_that_is_crossed_with_eta_splits():
    rows = [cell(10, eta, 5.0, clip=clip) for eta in (0.0, 1.0) for clip in ("none", "x0")]
    pivots = pivot_tables(long_form([*rows, cell(10, "sigma_hat", 9.0, clip="x0")]))
    assert [pivot.heading for pivot in pivots] == ["clip = none", "clip = x0"]
    assert [[eta for (eta,) in pivot.labels] for pivot in pivots] == [["0.0", "1.0"], ["0.0", "1.0", "σ̂"]]


def test_a_clip_that_goes_with_the_row_within_each_model_is_noted_for_each():
    linear = [cell(10, eta, 5.0, model="m1", clip="none", **{"model.checkpoint": "a"}) for eta in (0.0, 1.0)]
    cosine = [cell(10, eta, 5.0, model="m2", clip="x0", **{"model.checkpoint": "b"}) for eta in (0.0, 1.0)]
    pivots = pivot_tables(long_form([*linear, *cosine]))
    assert [(pivot.heading, pivot.notes) for pivot in pivots] == [
        ("model.checkpoint = a", ("clip: none",)),
        ("model.checkpoint = b", ("clip: x0",)),
    ]


def test_each_schedule_and_spacing_has_its_own_pivot_and_models_are_named_by_their_axes():
    schedules, spacings = {"cosine": "m1", "linear": "m2"}, ("linear", "quadratic")
    rows = [
        cell(10, 0.0, 5.0, model=model, spacing=spacing, **{"diffusion.schedule": schedule})
        for schedule, model in schedules.items()
        for spacing in spacings
    ]
    assert [pivot.settings for pivot in pivot_tables(long_form(rows[::-1]))] == [
        {"diffusion.schedule": schedule, "spacing": spacing} for schedule in schedules for spacing in spacings
    ]


def test_checkpoints_keep_the_order_and_the_data_the_full_names_that_they_are_given_with(tmp_path):
    """Sorted by path, step-10000 would come before step-5000; numbers and other names stay sorted."""
    given, names = ["/runs/a/step-5000", "/runs/a/step-10000", "/runs/a/best"], ["step-5000", "step-10000", "best"]
    rows = [
        cell(10, eta, 5.0, model=path, **{"model.checkpoint": path, "weights": weights})
        for path, weights, eta in product(given, ("raw", "ema"), (1.0, 0.0))
    ]
    for order in (1, -1):
        write(rows[::order], tmp_path, {})
        frame = pd.read_csv(tmp_path / "quality.csv")
        assert frame["model.checkpoint"].unique().tolist() == given[::order]
    pivots = pivot_tables(long_form(rows))
    headings = [f"model.checkpoint = {name}, weights = {weights}" for name, weights in product(names, ("ema", "raw"))]
    assert [pivot.heading for pivot in pivots] == headings
    assert [[eta for (eta,) in pivot.labels] for pivot in pivots] == [["0.0", "1.0"]] * 6
    shown = table_rows(markdown(rows))
    assert shown[0] == ["checkpoint", "weights", "η \\ S", "10"]
    assert [tuple(row[:3]) for row in shown[1:]] == [*product(names, ("raw", "ema"), ("0.0", "1.0"))]


def test_checkpoints_of_one_name_and_one_that_is_not_set_stay_apart():
    given = [None, "/runs/a/unet", "/runs/b/unet"]
    rows = [cell(10, 0.0, 5.0, model=str(path), **{"model.checkpoint": path}) for path in given]
    recorded("\n".join([pivot.heading for pivot in pivot_tables(long_form(rows))]))


def test_names_are_as_short_as_they_can_be():
    for paths, short in {
        "a/b/c a/b/d": "c d",
        "/x/run-1/unet /x/run-2/unet": "run-1/unet run-2/unet",
        "/a/m /b/m /b/n": "a/m b/m b/n",
        "m /m": "m /m",
    }.items():
        assert short_names(paths.split()) == short.split()
    assert short_names([]) == []


def test_models_that_no_axis_tells_apart_are_named_by_their_ids():
    rows = [cell(10, 0.0, 5.0, model="m1"), cell(10, 0.0, 6.0, model="m2")]
    assert [pivot.settings for pivot in pivot_tables(long_form(rows))] == [{"model": "m1"}, {"model": "m2"}]


def test_different_numbers_of_samples_never_share_a_table():
    # FID falls with N, so the better of two cells may only be the larger one.
    rows = [cell(10, 0.0, 5.0, num_samples=1000), cell(10, 1.0, 4.0, num_samples=5000)]
    frame = long_form(rows)
    assert [pivot.heading for pivot in pivot_tables(frame)] == ["num_samples = 1000", "num_samples = 5000"]
    assert "**" not in markdown(rows)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (14.2149, 0.3249, "14.21 ± 0.32"),
        (4.16, 0.0123, "4.160 ± 0.012"),
        (4.16, 0.0996, "4.16 ± 0.10"),  # two digits of 0.0996 are 0.10, not 0.100
        (367.43, 1.26, "367.4 ± 1.3"),
        (367.43, 12.6, "367 ± 13"),
        (1367.43, 126.7, "1367 ± 127"),
        (4.16, None, "4.16"),
        (0.004123, None, "0.00412"),
        (-2e-13, None, "0.00"),
        (9.5, 0.0, "9.50"),
        (None, 0.1, "–"),
    ],
)
def test_how_a_number_is_written(value, error, text):
    written = markdown([cell(10, 0.0, value, error)])
    assert table_rows(written) == [["η \\ S", "10"], ["0.0", text]]


def test_a_large_kid_is_not_scaled():
    """Of features that are no Inception's, KID may be in the tens: 45.5, not 45526 thousandths."""
    written = markdown([cell(10, 0.0, kid=45.526, kid_se=7.98)])
    recorded(written, "better")
    assert table_rows(written)[-1] == ["0.0", "45.5 ± 8.0"]


def test_bold_is_explained_where_something_is_bold(tmp_path):
    for rows, explained in ((paper_grid(), True), ([cell(10, 0.0, 4.0), cell(20, 0.0, 3.0)], False)):
        write(rows, tmp_path, {})
        assert ("bold" in (tmp_path / "quality.md").read_text().splitlines()[0]) is explained
        assert ("*" in printed(rows)) is explained


def test_fid_that_nobody_asked_for_has_no_table_but_a_grid_without_scores_shows_dashes():
    assert "## FID" not in markdown([cell(10, 0.0, isc_mean=9.0)])
    assert table_rows(markdown([cell(10, 0.0)])) == [["η \\ S", "10"], ["0.0", "–"]]
    assert table_rows(markdown([])) == []


def test_latex_is_balanced_escaped_and_rectangular():
    rows = paper_grid(**{"data.root": "runs/100%_{x}~&$^\\"})
    tex = latex([*rows, cell(10, 0.0, 14.0, model="other", num_samples=9, **{"data.root": "b"})])
    assert tex.isascii()
    assert [tex.count(rf"\{word}{{{what}}}") for word in ("begin", "end") for what in ("table", "tabular")] == [2] * 4
    assert r"runs/100\%\_\{x\}\textasciitilde{}\&\$\textasciicircum{}\textbackslash{}" in tex
    assert r"x0\_and\_eps ($\hat{\sigma}$)" in tex
    assert r"\begin{tabular}{llrr}" in tex
    unescaped = re.sub(r"\\[\\{}$]", "", tex)
    assert unescaped.count("{") == unescaped.count("}")
    assert unescaped.count("$") % 2 == 0


def test_the_first_line_says_how_all_cells_clip_since_a_loaded_pipeline_may_do_so_unasked(tmp_path):
    def first_line(*clips):
        write([cell(10, 0.0), cell(20, 0.0)], tmp_path, {"p10": {"clip": clips[0]}, "p20": {"clip": clips[1]}})
        return (tmp_path / "quality.md").read_text(encoding="utf-8").splitlines()[0]

    assert "; clip: x0 to +-2." in first_line("x0 to +-2", "x0 to +-2")
    for clips in (("none", "none"), (None, None), ("x0", "none")):
        assert "clip" not in first_line(*clips)


def printed(rows, *given, width=CONSOLE_WIDTH, **marks):
    pipe = io.StringIO()
    Console(file=pipe, width=width).print(table(rows, *given, **marks).console)
    return pipe.getvalue()


def test_in_a_narrow_terminal_every_number_of_the_table_is_whole():
    for width in (60, 40, 24):
        text = printed(paper_grid(), width=width)
        assert max(map(cell_len, text.splitlines())) <= width
        assert "…" not in text
        assert {"10", "1000", "13.36", "367.4", "4.73", "3.170"} <= set(text.split()), width


def test_a_zero_has_no_sign_and_a_number_six_decimals_at_most():
    assert write_number(-0.001, 0.5) == ("0.00", "± 0.50")
    assert write_number(-0.3, 12.0) == ("0", "± 12")
    assert write_number(-1e-9, math.nan) == ("0.00", "")
    assert write_number(-0.006, 0.5) == ("-0.01", "± 0.50")
    assert write_number(0.5, 2.6e-6) == ("0.500000", "± 0.000003")


def test_square_brackets_in_a_name_are_no_markup_of_the_console():
    names = ["runs/[best]", "runs/[red]y"]
    rows = [cell(10, 0.0, 5.0 + i, model=name, **{"model.checkpoint": name}) for i, name in enumerate(names)]
    text = printed(rows)
    assert "[best]" in text
    assert "[red]y" in text


ASKED = {"isc_mean": 8.25, "isc_std": 0.11, "kid": 0.0123, "kid_se": 0.0004, "precision": 0.71, "recall": 0.62}
SPELLED = {
    "reference": {"dataset": "digits", "split": "train", "num_images": 1437, "sha256": "16b824c6b1" + 54 * "0"},
    "extractor": {"name": "digits-convnet", "weights_sha256": "0" * 64},
}


def outcome_on_stdout(rows, capsys, tmp_path):
    spelled = {row["protocol"]: SPELLED for row in rows}
    print_result(RunDir(tmp_path), SessionResult({}, rows, table(rows, spelled)))
    return capsys.readouterr().out


def test_the_terminal_shows_every_metric_that_was_asked_for_and_what_they_are_of(tmp_path, capsys):
    said = outcome_on_stdout([cell(10, eta, 13.36, 0.1, **ASKED) for eta in (0.0, 1.0)], capsys, tmp_path)
    words = said.split()
    assert [words.count(number) for number in ("13.36", "8.25", "0.01230", "0.710", "0.620")] == [2] * 5
    recorded(said, "standard")
    recorded(said.splitlines()[-1])


def test_without_fid_the_first_metric_is_the_table(tmp_path, capsys):
    said = outcome_on_stdout([cell(10, 0.0, precision=0.71, recall=0.62)], capsys, tmp_path)
    assert "FID" not in said
    recorded(said, "Precision")


def test_many_tables_are_left_to_the_files(tmp_path, capsys):
    said = outcome_on_stdout([cell(10, eta / 100, 13.36, 0.1, **ASKED) for eta in range(40)], capsys, tmp_path)
    assert said.split().count("13.36") == 40
    assert "8.25" not in said
    recorded(said, "Inception")


@pytest.mark.parametrize("count", [4, 5, 6, 8, 9, 20])
def test_however_many_steps_the_console_shows_every_number_and_mark_in_80_columns(count):
    steps = [10 * 2**i for i in range(count)]
    rows = [cell(s, eta, 100.0 + s, 0.1234) for s in steps for eta in (0.0, "sigma_hat")]
    for marked in (set(), {row["cell"] for row in rows if row["eta"] == 1.0}):
        text = printed(rows, indistinguishable=marked)
        assert max(map(cell_len, text.splitlines())) <= CONSOLE_WIDTH
        assert "…" not in text
        words = text.split()
        assert [words.count(f"{100.0 + s:.2f}") for s in steps] == [2] * count
        assert len(re.findall(r"\b0\.12\b", text)) == 2 * count
        assert len(re.findall(r" 0\.12 \*?≈", text)) == len(marked)  # none is folded below its value


def test_the_terminal_says_once_why_there_is_no_standard_error(tmp_path, capsys):
    rows = [cell(s, 0.0, 5.0, 0.1 if s == 50 else None) for s in (10, 20, 50)] + [cell(100, 0.0)]
    spelled = {row["protocol"]: {"seed": 1} for row in rows}
    few = "100 samples for 64 varying features [2 for each]"
    for scored in (rows, rows[:2]):
        evidence = Evidence({}, {row["cell"]: 0 for row in rows}, spelled, {row["cell"]: few for row in rows})
        print_result(RunDir(tmp_path), SessionResult({}, scored, QualityTable(scored, evidence)))
        printed_to = capsys.readouterr()
        recorded(printed_to.err)
        assert "varying features" not in printed_to.out
    print_result(RunDir(tmp_path), SessionResult({}, rows[2:3], QualityTable(rows[2:3], evidence)))
    assert capsys.readouterr().err == ""


def test_the_best_of_a_column_is_bold_in_the_terminal_and_has_a_star_without_colours():
    for no_color, best in ((False, r"\x1b\[1m *([^\x1b]+ ± [^\x1b]+)\x1b\[0m"), (True, r"(\S+ ± \S+) \*")):
        screen = io.StringIO()
        colours = {"force_terminal": True, "color_system": "standard", "no_color": no_color}
        Console(file=screen, width=CONSOLE_WIDTH, **colours).print(table(paper_grid()).console)
        assert re.findall(best, screen.getvalue()) == ["13.36 ± 0.10", "3.170 ± 0.012"]
        assert ("*" in screen.getvalue()) is no_color


def test_a_score_that_is_missing_bears_no_mark():
    rows = [cell(10, 0.0, 4.0), cell(10, 1.0, None, cell="none")]
    text = markdown(rows, indistinguishable={"none"}, joined={"none"})
    assert table_rows(text)[-1] == ["1.0", "–"]
    assert "≈" not in text
    assert "‡" not in text


def upgraded():
    """The paper's grid, its cells of S = 10 scored before an upgrade of torch and those of S = 1000 after it."""
    rows = paper_grid()
    spelled = {
        f"p{steps}": {"tau": [steps], "seed": 1, "versions": {"torch": torch}}
        for steps, torch in ((10, "2.9.1"), (1000, "2.10.0"))
    }
    return rows, spelled


def test_rows_of_other_versions_get_pivots_of_their_own_that_say_what_differs():
    rows, spelled = upgraded()
    pivots = pivot_tables(long_form(rows), protocols=spelled)
    by_steps = {pivot.columns[0]: pivot for pivot in pivots}
    assert {steps: pivot.settings for steps, pivot in by_steps.items()} == {
        10: {"protocol": comparability_key(spelled["p10"])}, 1000: {"protocol": comparability_key(spelled["p1000"])},
    }  # fmt: skip
    assert by_steps[10].notes[-1].endswith("torch 2.9.1")
    assert by_steps[1000].notes[-1].endswith("torch 2.10.0")
    for text in (markdown(rows, spelled), latex(rows, spelled)):
        assert text.count("versions.torch 2.9.1") == text.count("versions.torch 2.10.0") == 1
    assert printed(rows, spelled).count("better): protocol=") == 2


def test_tau_clip_and_weights_set_no_pivots_apart_and_neither_does_an_n_that_does_already():
    rows = [cell(10, 0.0, 5.0, protocol="a"), cell(20, 0.5, 4.0, protocol="b")]
    spelled = {"a": {"tau": [1], "clip": "none", "weights": "raw", "num_samples": 5000}}
    spelled["b"] = {"tau": [1, 2], "clip": "x0", "weights": "ema", "num_samples": 5000}
    assert [pivot.settings for pivot in pivot_tables(long_form(rows), protocols=spelled)] == [{}]
    rows.append(cell(10, 0.0, 5.0, num_samples=9, protocol="c"))
    spelled["c"] = spelled["a"] | {"num_samples": 9, "metrics": ["fid"]}
    pivots = pivot_tables(long_form(rows), protocols=spelled)
    assert [pivot.heading for pivot in pivots] == ["num_samples = 9", "num_samples = 5000"]
    assert [pivot.notes for pivot in pivots] == [(), ()]


def test_settings_of_a_metric_set_its_own_table_apart_and_no_other():
    rows = [
        cell(10, 0.0, 5.0, kid=0.1, kid_mean=0.1, protocol="a"),
        cell(20, 0.0, 4.0, kid=0.2, kid_mean=0.2, protocol="b"),
    ]
    rows.append(cell(50, 0.0, 3.0, protocol="fid"))
    both = {"num_samples": 5000, "metrics": ["fid", "kid", "kid_mean"], "seed": 1, "kid_subset_size": 1000}
    spelled = {"a": both | {"kid_subsets": 100}, "b": both | {"kid_subsets": 50}}
    spelled["fid"] = {"num_samples": 5000, "metrics": ["fid"], "seed": 1}
    quality = table(rows, spelled)
    (fid,) = quality.section(COLUMN["fid"]).tables
    assert fid.columns == [10, 20, 50]
    (kid,) = quality.section(COLUMN["kid"]).tables
    assert kid.columns == [10, 20, 50], "it is of all pairs, whatever the subsets"
    of_subsets = quality.section(COLUMN["kid_mean"]).tables
    assert [[note for note in pivot.notes if "kid" in note] for pivot in of_subsets][:2] == [
        ["protocol: kid_subset_size 1000, kid_subsets 100"],
        ["protocol: kid_subset_size 1000, kid_subsets 50"],
    ]
    assert [pivot.columns for pivot in of_subsets][:2] == [[10], [20]]
    assert len(measured(quality)) == 3
    assert {place.comparability_key for place in measured(quality)} == {measured(quality)[0].comparability_key}
    assert len({place.comparability_key for place in measured(quality, COLUMN["kid_mean"])}) == 2
    spelled["b"] = spelled["a"]
    (kid_mean,) = table(rows, spelled).section(COLUMN["kid_mean"]).tables
    assert kid_mean.columns == [10, 20, 50], "a cell without KID has a place"


def test_an_override_joins_with_a_mark_at_every_metric_of_the_fewer():
    rows, spelled = upgraded()
    rows.append(cell(20, 0.0, 9.0, protocol="p10", isc_mean=8.0))
    rows[1]["isc_mean"] = 8.5
    joining = joined_rows(rows, spelled)
    text = markdown(rows, spelled, joined=joining.cells)
    assert table_rows(text)[:2] == [
        ["η \\ S", "10", "20", "1000"],
        ["0.0", "**13.36 ± 0.10**", "9.00", "4.04 ± 0.10 ‡"],
    ]
    assert "**3.170 ± 0.012** ‡" in text
    assert "| 0.0 | – | 8.00 | 8.50 ‡ |" in text
    assert "protocol =" not in text
    recorded(text, "protocol")
    both = markdown(rows, spelled, {rows[1]["cell"]}, joining.cells)
    assert "| 4.04 ± 0.10 ≈‡ |" in both
    assert r"\rlap{$^{\approx\ddagger}$}" in latex(rows, spelled, {rows[1]["cell"]}, joining.cells)


def test_rows_that_differ_where_they_must_agree_are_joined_with_fields_values_and_cells():
    rows = [cell(10 * i, 0.0, 5.0, cell=f"c{i}", protocol="new" if i == 3 else "old") for i in range(1, 7)]
    reference = {"split": "train", "sha256": "ab" * 32}
    spelled = {
        "old": {"reference": reference, "versions": {"torch": "2.9.1"}},
        "new": {"reference": reference | {"sha256": "cd" * 32}, "versions": {"torch": "2.10.0"}},
    }
    joining = joined_rows(rows, spelled)
    recorded("\n".join(joining.notes))
    assert joining.cells == {"c3"}


def test_rows_that_agree_where_they_must_or_have_another_n_are_joinable():
    rows = [cell(10, 0.0, 5.0, protocol="a"), cell(20, 0.0, 5.0, protocol="b")]
    rows.append(cell(10, 0.0, 5.0, num_samples=9, protocol="c"))
    spelled = {"a": {"tau": [1], "num_samples": 5000}, "b": {"tau": [2], "num_samples": 5000}}
    spelled["c"] = {"tau": [1], "num_samples": 9}
    assert joined_rows(rows, spelled) == ([], frozenset())
    with pytest.raises(KeyError):
        joined_rows(rows, {})
