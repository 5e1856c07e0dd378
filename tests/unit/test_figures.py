import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image
from snapshots import recorded
from test_tables import cell

from taugrid.eval.figures.drawing import MAX_SIDE, MIN_SPAN, save
from taugrid.eval.figures.lines import quality_figure, reconstruction_figure
from taugrid.eval.tables.long_form import long_form
from taugrid.eval.tables.reconstruction import reconstruction_frame

STEPS = (10, 20, 50, 100, 1000)
ETAS = (0.0, 0.2, 0.5, 1.0, "sigma_hat")


def fid(steps, eta):
    return 3 + (40 if eta == "sigma_hat" else 5 + 10 * eta) * 10 / steps


def grid(etas=ETAS, steps=STEPS, score=fid, error=0.05, **others):
    rows = []
    for eta in etas:
        for s in steps:
            value, clip = score(s, eta), "x0_and_eps" if eta == "sigma_hat" else "none"
            se = None if value is None else error * value
            rows.append(cell(s, eta, value, se, **({"clip": clip, "model": "m", "num_samples": 1000} | others)))
    return rows


def draw(rows):
    figure = quality_figure(long_form(rows))
    figure.draw_without_rendering()
    return figure


def bars(panel):
    return {
        container.get_label(): container for container in panel.containers if isinstance(container, ErrorbarContainer)
    }


def tick_labels(axis):
    return [label.get_text() for label in axis.get_ticklabels() if label.get_text()]


def test_a_line_with_error_bars_for_each_eta_at_the_right_values():
    figure = draw(grid())
    (panel,) = figure.axes
    names = ["η = 0.0", "η = 0.2", "η = 0.5", "η = 1.0", "σ̂"]
    assert list(bars(panel)) == names
    for eta, name in zip(ETAS, names, strict=True):
        line, _, (stems,) = bars(panel)[name].lines
        expected = np.array([fid(s, eta) for s in STEPS])
        np.testing.assert_allclose(line.get_ydata(orig=False), expected)
        np.testing.assert_allclose(line.get_xdata(orig=False), STEPS, rtol=0.08)  # spread, so that bars stay visible
        ends = np.array([segment[:, 1] for segment in stems.get_segments()])
        np.testing.assert_allclose(ends, np.stack([0.95 * expected, 1.05 * expected], axis=1))
    looks = {(line.get_color(), line.get_marker()) for line in (c.lines[0] for c in bars(panel).values())}
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 5


def test_axes_are_logarithmic_with_every_step_written_and_round_numbers_for_fid():
    (panel,) = draw(grid()).axes
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    assert tick_labels(panel.xaxis) == ["10", "20", "50", "100", "1000"]
    assert set(tick_labels(panel.yaxis)) >= {"5", "10", "20"}
    recorded(panel.get_ylabel())


def test_crowded_steps_have_ticks_at_round_numbers():
    (panel,) = draw(grid(steps=range(5, 55, 5))).axes
    assert {"5", "10", "20", "50"} <= set(tick_labels(panel.xaxis))


def test_the_legend_lists_etas_in_order_once_and_covers_no_panel():
    figure = draw([*grid(model="m1", **{"diffusion.schedule": "linear"}),
                   *grid(model="m2", etas=(0.1,), **{"diffusion.schedule": "cosine"})])  # fmt: skip
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [*(f"η = {eta}" for eta in (0.0, 0.1, 0.2, 0.5, 1.0)), "σ̂"]
    box = legend.get_window_extent()
    assert not any(box.overlaps(panel.get_window_extent()) for panel in figure.axes)


def test_a_panel_for_each_combination_with_one_look_per_eta_and_a_common_scale():
    schedules = ("cosine", "linear", "sigmoid", "jsd")
    factors = dict(zip(schedules, (1, 2, 4, 8), strict=True))
    rows = [row | {"model": s, "diffusion.schedule": s} for s in schedules for row in grid()]
    figure = draw([row | {"fid": factors[row["model"]] * row["fid"]} for row in rows])
    assert len(figure.axes) == 4
    titles = [panel.get_title().splitlines()[0] for panel in figure.axes]
    assert titles == [f"schedule={s}" for s in sorted(schedules)]
    assert "x0_and_eps (σ̂)" in figure.axes[0].get_title()
    assert len({bars(panel)["η = 0.5"].lines[0].get_color() for panel in figure.axes}) == 1
    assert len({panel.get_ylim() for panel in figure.axes}) == 1


def test_cells_without_a_positive_fid_are_left_out_of_their_line():
    missing = {(20, 0.0): None, (50, 0.0): -1e-9, (100, 0.2): float("nan")}
    (panel,) = draw(grid(score=lambda s, eta: missing.get((s, eta), fid(s, eta)))).axes
    lines = {name: container.lines[0].get_xdata(orig=False) for name, container in bars(panel).items()}
    np.testing.assert_allclose(lines["η = 0.0"], [10, 100, 1000], rtol=0.08)
    np.testing.assert_allclose(lines["η = 0.2"], [10, 20, 50, 1000], rtol=0.08)


def test_a_cell_without_a_standard_error_is_drawn_with_no_bar():
    rows = [row | ({"fid_se": None} if row["steps"] < 50 else {}) for row in grid(etas=(0.0,))]
    line, _, (stems,) = bars(draw(rows).axes[0])["η = 0.0"].lines
    assert len(line.get_ydata(orig=False)) == len(STEPS)
    assert [bool(np.ptp(segment[:, 1])) for segment in stems.get_segments()] == [False, False, True, True, True]


def test_where_no_cell_has_a_standard_error_the_legend_has_no_bars_either():
    figure = draw([row | {"fid_se": None} for row in grid(etas=(0.0, 1.0))])
    assert [container.lines[1:] for container in bars(figure.axes[0]).values()] == [((), ())] * 2
    assert not figure.legends[0].findobj(LineCollection)
    assert draw(grid(etas=(0.0, 1.0))).legends[0].findobj(LineCollection)


def test_nearly_equal_values_do_not_look_far_apart():
    values = {10: 78.524, 20: 78.536}
    (panel,) = draw(grid(etas=(0.0,), steps=(10, 20), score=lambda s, _: values[s], error=1e-5)).axes
    low, high = panel.get_ylim()
    assert high / low == pytest.approx(MIN_SPAN)
    assert low < 78.524 < 78.536 < high
    assert math.sqrt(low * high) == pytest.approx(78.53, abs=0.01)
    assert len(tick_labels(panel.yaxis)) >= 4


@pytest.mark.parametrize(
    "rows",
    [grid(steps=(50,)), grid(etas=(0.0,)), grid(etas=("sigma_hat",), steps=(50,)), grid(error=1.5)],
    ids=["one S", "one eta", "one cell", "wide bars"],
)
def test_small_grids_and_wide_bars_show_all_their_points(rows):
    (panel,) = draw(rows).axes
    low, high = panel.get_ylim()
    left, right = panel.get_xlim()
    assert sum(len(container.lines[0].get_xdata(orig=False)) for container in bars(panel).values()) == len(rows)
    assert all(low < row["fid"] < high for row in rows)
    assert all(left < row["steps"] < right for row in rows)
    assert low > 1e-3  # a bar that reaches below zero must not stretch the axis


@pytest.mark.parametrize("score", ["fid", "error"])
def test_a_figure_without_any_score_says_so(score):
    nothing = grid(score=lambda s, eta: None) if score == "fid" else reconstructions(mse=None)
    texts = []
    for rows in ([], nothing):
        (panel,) = (draw if score == "fid" else draw_errors)(rows).axes
        assert not bars(panel)
        texts += [text.get_text() for text in panel.texts]
    recorded("\n".join(texts))


def test_a_dollar_sign_in_a_setting_is_shown_as_it_is():
    # As mathematics, "$_$" does not parse, and drawing would fail.
    rows = [row for m in ("a$_$", "c") for row in grid(model=m, **{"model.checkpoint": m})]
    assert draw(rows).axes[0].get_title().startswith("checkpoint=a$_$")


def test_files_are_written_whole_and_equal_for_equal_input(tmp_path):
    rows = [*reconstructions(), *reconstructions(2.0, spacing="quadratic")]
    for folder, errors in (("first", rows), ("second", rows[::-1])):
        save(quality_figure(long_form(grid())), tmp_path / folder / "quality")
        save(reconstruction_figure(reconstruction_frame(errors)), tmp_path / folder / "reconstruction-error")
    first, second = (sorted((tmp_path / folder).iterdir()) for folder in ("first", "second"))
    names = [f"{name}.{kind}" for name in ("quality", "reconstruction-error") for kind in ("png", "svg")]
    assert [path.name for path in first] == names
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert b"<dc:date>" not in first[1].read_bytes()
    with Image.open(first[0]) as image:
        assert min(image.size) > 500


@pytest.mark.long
def test_figures_leave_matplotlibs_settings_alone_and_need_neither_pyplot_nor_torch(tmp_path):
    program = (
        "import sys, pathlib, matplotlib\n"
        "matplotlib.rcParams['font.size'] = 33\n"
        "from taugrid.eval.figures import drawing, lines as s, pictures\n"
        "from taugrid.eval.tables.long_form import long_form as rows\n"
        "from taugrid.eval.tables.reconstruction import reconstruction_frame as errors\n"
        "drawing.save(s.quality_figure(rows([])), pathlib.Path(sys.argv[1]) / 'quality')\n"
        "drawing.save(s.reconstruction_figure(errors([])), pathlib.Path(sys.argv[1]) / 'error')\n"
        "assert matplotlib.rcParams['font.size'] == 33\n"
        "assert not {'torch', 'ray', 'matplotlib.pyplot'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


ERRORS = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 1000: 0.0001}


def reconstructions(factor=1.0, **others):
    """Rows as of table 2 of the paper, times `factor`, with a standard error of 5 percent."""
    row = {"model": "m", "weights": "ema", "spacing": "linear", "num_images": 1000, "mse_8bit": 1.0, "seconds": 1.0}
    return [
        row | {"steps": s, "network_evaluations": 2 * s, "mse": factor * e, "mse_se": 0.05 * factor * e} | others
        for s, e in ERRORS.items()
    ]


def draw_errors(rows):
    figure = reconstruction_figure(reconstruction_frame(rows))
    figure.draw_without_rendering()
    return figure


def test_reconstruction_errors_of_one_setting_are_a_line_with_bars_in_thousandths():
    figure = draw_errors(reconstructions())
    (panel,) = figure.axes
    (line, _, (stems,)) = bars(panel)["Error"].lines
    assert line.get_xdata(orig=False).tolist() == [10, 20, 50, 100, 1000]
    np.testing.assert_allclose(line.get_ydata(orig=False), [14, 6.5, 2.3, 0.9, 0.1])
    ends = np.array([segment[:, 1] for segment in stems.get_segments()])
    np.testing.assert_allclose(ends, np.outer([14, 6.5, 2.3, 0.9, 0.1], [0.95, 1.05]))
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    assert panel.get_ylabel() == "Reconstruction error × 1000 (lower is\nbetter)"
    recorded(panel.get_title())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Error"]


def test_each_setting_of_a_reconstruction_has_its_line_and_the_legend_leaves_room_for_the_panel():
    long = "runs/a$_$/a-checkpoint-with-a-long-name"  # as mathematics, "$_$" does not parse
    rows = [
        row
        for model, factor in ((long, 1.0), ("b", 3.0))
        for row in reconstructions(factor, model=model, **{"model.checkpoint": model})
    ]
    figure = draw_errors(rows)
    (panel,) = figure.axes
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[0] == "model.checkpoint = b"
    assert names[1].replace("\n", "").replace(" ", "") == f"model.checkpoint={long}".replace("$", r"\$")
    for name, factor in zip(names, (3.0, 1.0), strict=True):
        line = bars(panel)[name].lines[0]
        np.testing.assert_allclose(line.get_ydata(orig=False), 1000 * factor * np.array(list(ERRORS.values())))
    assert not legend.get_window_extent().overlaps(panel.get_window_extent())
    assert legend.get_window_extent().width <= figure.bbox.width
    alone = draw_errors(reconstructions()).axes[0].get_window_extent()
    assert panel.get_window_extent().width > 0.9 * alone.width
    assert panel.get_window_extent().height > 0.8 * alone.height


def test_a_figure_of_a_huge_grid_is_saved_at_fewer_pixels_per_inch(tmp_path):
    """400 inches, as 2,000 lines of a legend take; matplotlib refuses 2^16 pixels, at the end of a run of days."""
    save(Figure(figsize=(2, 400)), tmp_path / "high")
    save(Figure(figsize=(2, 100)), tmp_path / "usual")
    with Image.open(tmp_path / "high.png") as high, Image.open(tmp_path / "usual.png") as usual:
        assert (high.size, usual.size) == ((163, MAX_SIDE), (400, 20_000))
    assert 'height="28800pt"' in (tmp_path / "high.svg").read_text()
