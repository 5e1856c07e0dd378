import subprocess
import sys

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from PIL import Image

from eval import figures, tables

STEPS = (10, 20, 50, 100, 1000)
ETAS = (0.0, 0.2, 0.5, 1.0, "sigma_hat")


def fid(steps, eta):
    return 3 + (40 if eta == "sigma_hat" else 5 + 10 * eta) * 10 / steps


def grid(etas=ETAS, steps=STEPS, score=fid, error=0.05, **others):
    rows = []
    for eta in etas:
        for s in steps:
            sigma_hat = eta == "sigma_hat"
            row = dict.fromkeys(tables.COLUMNS)
            row |= {"cell": f"{s}-{eta}", "model": "m", "sampler": "ddim", "steps": s, "spacing": "linear"}
            row |= {"eta": 1.0 if sigma_hat else eta, "sigma": "sigma_hat" if sigma_hat else "eta"}
            row |= {"clip": "x0_and_eps" if sigma_hat else "none", "num_samples": 1000, "network_evaluations": 1000 * s}
            value = score(s, eta)
            rows.append(row | {"fid": value, "fid_se": None if value is None else error * value} | others)
    return rows


def draw(rows):
    """The figure, drawn, so that ticks and limits are what a person sees."""
    figure = figures.quality_figure(tables.frame(rows))
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
    names = [r"$\eta$ = 0.0", r"$\eta$ = 0.2", r"$\eta$ = 0.5", r"$\eta$ = 1.0", r"$\hat{\sigma}$"]
    assert list(bars(panel)) == names
    for eta, name in zip(ETAS, names, strict=True):
        line, _, (stems,) = bars(panel)[name].lines
        expected = np.array([fid(s, eta) for s in STEPS])
        np.testing.assert_allclose(line.get_ydata(orig=False), expected)
        np.testing.assert_allclose(
            line.get_xdata(orig=False), STEPS, rtol=0.08
        )  # spread a little, so that bars stay visible
        ends = np.array([segment[:, 1] for segment in stems.get_segments()])
        np.testing.assert_allclose(ends, np.stack([0.95 * expected, 1.05 * expected], axis=1))
    looks = {(line.get_color(), line.get_marker()) for line in (c.lines[0] for c in bars(panel).values())}
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 5


def test_axes_are_logarithmic_with_every_step_written_and_round_numbers_for_fid():
    (panel,) = draw(grid()).axes
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    assert tick_labels(panel.xaxis) == ["10", "20", "50", "100", "1000"]
    assert set(tick_labels(panel.yaxis)) >= {"5", "10", "20"}
    assert panel.get_ylabel() == "FID (lower is better)"


def test_crowded_steps_keep_their_ticks_but_not_all_numbers():
    steps = range(5, 55, 5)
    (panel,) = draw(grid(steps=steps)).axes
    assert panel.get_xticks().tolist() == list(steps)
    assert tick_labels(panel.xaxis) == ["5", "10", "15", "20", "30", "40", "50"]


def test_a_narrow_range_of_fid_still_has_numbers():
    (panel,) = draw(grid(score=lambda s, eta: 4.1 + 1 / s, error=0.001)).axes
    assert len(tick_labels(panel.yaxis)) >= 4


def test_the_legend_lists_etas_in_order_once_and_covers_no_panel():
    figure = draw([*grid(model="m1", **{"diffusion.schedule": "linear"}),
                   *grid(model="m2", etas=(0.1,), **{"diffusion.schedule": "cosine"})])  # fmt: skip
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [*(rf"$\eta$ = {eta}" for eta in (0.0, 0.1, 0.2, 0.5, 1.0)), r"$\hat{\sigma}$"]
    box = legend.get_window_extent()
    assert not any(box.overlaps(panel.get_window_extent()) for panel in figure.axes)


def test_a_panel_for_each_combination_with_one_look_per_eta_and_a_common_scale():
    schedules = ("cosine", "linear", "sigmoid", "jsd")
    factors = dict(zip(schedules, (1, 2, 4, 8), strict=True))
    rows = [row | {"model": s, "diffusion.schedule": s} for s in schedules for row in grid()]
    figure = draw([row | {"fid": factors[row["model"]] * row["fid"]} for row in rows])
    assert len(figure.axes) == 4
    titles = [panel.get_title().splitlines()[0] for panel in figure.axes]
    assert titles == [f"diffusion.schedule = {s}" for s in sorted(schedules)]
    assert "x0_and_eps (σ̂)" in figure.axes[0].get_title()
    assert len({bars(panel)[r"$\eta$ = 0.5"].lines[0].get_color() for panel in figure.axes}) == 1
    assert len({panel.get_ylim() for panel in figure.axes}) == 1


def test_cells_without_a_positive_fid_are_left_out_of_their_line():
    missing = {(20, 0.0): None, (50, 0.0): -1e-9, (100, 0.2): float("nan")}
    (panel,) = draw(grid(score=lambda s, eta: missing.get((s, eta), fid(s, eta)))).axes
    lines = {name: container.lines[0].get_xdata(orig=False) for name, container in bars(panel).items()}
    np.testing.assert_allclose(lines[r"$\eta$ = 0.0"], [10, 100, 1000], rtol=0.08)
    np.testing.assert_allclose(lines[r"$\eta$ = 0.2"], [10, 20, 50, 1000], rtol=0.08)


def test_a_cell_without_a_standard_error_is_drawn_with_no_bar():
    rows = [row | {"fid_se": None} for row in grid(etas=(0.0,))]
    (panel,) = draw(rows).axes
    line, _, (stems,) = bars(panel)[r"$\eta$ = 0.0"].lines
    np.testing.assert_allclose(line.get_ydata(orig=False), [fid(s, 0.0) for s in STEPS])
    assert all(np.ptp(segment[:, 1]) == 0 for segment in stems.get_segments())


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(grid(steps=(50,)), id="one S"),
        pytest.param(grid(etas=(0.0,)), id="one eta"),
        pytest.param(grid(etas=("sigma_hat",), steps=(50,)), id="one cell"),
        pytest.param(grid(error=1.5), id="bars below zero"),
    ],
)
def test_small_grids_and_wide_bars_show_all_their_points(rows):
    (panel,) = draw(rows).axes
    low, high = panel.get_ylim()
    left, right = panel.get_xlim()
    assert sum(len(container.lines[0].get_xdata(orig=False)) for container in bars(panel).values()) == len(rows)
    assert all(low < row["fid"] < high for row in rows)
    assert all(left < row["steps"] < right for row in rows)
    assert low > 1e-3  # a bar that reaches below zero must not stretch the axis


@pytest.mark.parametrize("rows", [[], grid(score=lambda s, eta: None)], ids=["no cells", "no scores"])
def test_a_figure_without_any_fid_says_so(rows):
    (panel,) = draw(rows).axes
    assert not bars(panel)
    assert [text.get_text() for text in panel.texts] == ["no cell has an FID"]


def test_a_dollar_sign_in_a_setting_is_shown_as_it_is():
    # As mathematics, "$_$" does not parse, and drawing would fail.
    rows = [row for m in ("a$_$", "c") for row in grid(model=m, **{"model.checkpoint": m})]
    assert draw(rows).axes[0].get_title().startswith("model.checkpoint = a$_$")


def test_files_are_written_whole_and_equal_for_equal_input(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        figures.quality(tables.frame(grid()), tmp_path / name / "quality")
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["quality.png", "quality.svg"]
    for kind in ("png", "svg"):
        first, second = ((tmp_path / name / f"quality.{kind}").read_bytes() for name in ("first", "second"))
        assert first == second
    assert b"<dc:date>" not in (tmp_path / "first" / "quality.svg").read_bytes()
    with Image.open(tmp_path / "first" / "quality.png") as image:
        assert min(image.size) > 500


def test_figures_leave_matplotlibs_settings_alone_and_need_neither_pyplot_nor_torch(tmp_path):
    program = (
        "import sys, pathlib, matplotlib\n"
        "matplotlib.rcParams['font.size'] = 33\n"
        "from eval import figures, tables\n"
        "figures.quality(tables.frame([]), pathlib.Path(sys.argv[1]) / 'quality')\n"
        "assert matplotlib.rcParams['font.size'] == 33\n"
        "assert not {'torch', 'ray', 'matplotlib.pyplot'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def digits(count=8, shape=(8, 8), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def find(picture, tile):
    """Corners (x, y) at which `tile` stands in `picture`, pixel for pixel."""
    height, width = tile.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(picture, (height, width, *picture.shape[2:]))
    candidates = np.argwhere(
        (windows[..., 0, 0] == tile[0, 0]) if picture.ndim == 2 else windows[:, :, 0, 0, 0, 0] >= 0
    )
    return [(int(c[1]), int(c[0])) for c in candidates if (picture[c[0] :, c[1] :][:height, :width] == tile).all()]


def test_samples_stand_in_rows_of_eta_and_columns_of_steps_enlarged_without_blur(tmp_path):
    etas, steps = ("0.0", "0.2", "1.0", "sigma_hat"), (10, 50, 1000)
    cells = {(eta, s): digits(seed=10 * i + s) for i, eta in enumerate(etas) for s in steps}
    backwards = dict(reversed(cells.items()))
    figures.samples(backwards, tmp_path / "samples.png")
    assert [path.name for path in tmp_path.iterdir()] == ["samples.png"]
    with Image.open(tmp_path / "samples.png") as image:
        assert image.mode == "L"
        picture = np.asarray(image)
    corners = {}
    for key, images in cells.items():
        places = [find(picture, pixels.repeat(6, axis=0).repeat(6, axis=1)) for pixels in images]
        assert [len(place) for place in places] == [1] * 8
        (x0, y0) = places[0][0]
        assert [(x - x0, y - y0) for ((x, y),) in places] == [(50 * (i % 4), 50 * (i // 4)) for i in range(8)]
        corners[key] = (x0, y0)
    for i, eta in enumerate(etas):
        for j, s in enumerate(steps):
            assert corners[eta, s] == (corners["0.0", steps[j]][0], corners[etas[i], 10][1])
    assert [corners["0.0", s][0] for s in steps] == sorted(corners["0.0", s][0] for s in steps)
    assert [corners[eta, 10][1] for eta in etas] == sorted(corners[eta, 10][1] for eta in etas)


def test_labels_stand_beside_rows_and_above_columns():
    picture = np.asarray(figures.samples_image({("0.0", 10): digits(seed=1), ("sigma_hat", 10): digits(seed=2)}))
    (x, y), = find(picture, digits(seed=1)[0].repeat(6, axis=0).repeat(6, axis=1))  # fmt: skip
    assert (picture[: y - 2, x:] < 128).any()
    assert (picture[y : y + 98, : x - 2] < 128).any()
    assert (picture[y + 112 :, : x - 2] < 128).any()


def test_labels_of_columns_do_not_run_into_each_other_where_cells_are_narrow():
    picture = np.asarray(figures.samples_image({("0.0", s): digits(1) for s in (1000, 2000, 5000)}))
    inked = np.flatnonzero((picture[: figures.MARGIN + figures.FONT_SIZE] < 128).any(axis=0))
    assert np.count_nonzero(np.diff(inked) >= figures.BLOCK_GAP) == 2


def test_missing_cells_stay_blank_and_colour_is_kept():
    colour = digits(4, (32, 32, 3), seed=1)
    image = figures.samples_image({("0.0", 10): colour, ("1.0", 20): digits(4, (32, 32, 3), seed=2)})
    assert image.mode == "RGB"
    picture = np.asarray(image)
    block = 2 * 64 + 2
    tile = colour[0].repeat(2, axis=0).repeat(2, axis=1)
    y, x = next((y, x) for y in range(60) for x in range(150) if (picture[y : y + 64, x : x + 64] == tile).all())
    assert (picture[y : y + block, x + block + 4 :] == 255).all()  # eta 0.0, S = 20
    assert not (picture[y : y + block, x : x + block] == 255).all()


def test_large_images_are_reduced_and_a_column_of_grey_channels_is_grey():
    image = figures.samples_image({("0.0", 10): digits(1, (256, 128, 1))})
    assert image.mode == "L"
    assert image.height < 200


@pytest.mark.parametrize(
    "images",
    [
        {},
        {("0.0", 10): digits(8), ("0.0", 20): digits(4)},
        {("0.0", 10): digits(0)},
        {("0.0", 10): digits(8), ("0.0", 20): digits(8, (4, 4))},
        {("ddim", 10): digits(8)},
    ],
    ids=["none", "other n", "n = 0", "other size", "no eta"],
)
def test_images_that_make_no_grid_are_refused(images):
    with pytest.raises(ValueError):
        figures.samples_image(images)


def test_the_picture_of_a_full_grid_is_a_small_file(tmp_path):
    cells = {(str(eta), s): digits(seed=i * 10 + j) for i, eta in enumerate(ETAS) for j, s in enumerate(STEPS)}
    figures.samples(cells, tmp_path / "samples.png")
    assert (tmp_path / "samples.png").stat().st_size < 2_000_000
