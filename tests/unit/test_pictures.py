import numpy as np
import pytest
from pictures import noise
from PIL import Image, ImageDraw
from snapshots import raises

from taugrid.eval.figures import pictures


def digits(count=8, shape=(8, 8), seed=0):
    return noise(count, *shape, seed=seed)


def enlarged(pixels, factor=6):
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def find(picture, tile):
    """Corners (x, y) at which `tile` stands in `picture`, pixel for pixel."""
    height, width = tile.shape[:2]
    first = picture == tile[0, 0]
    candidates = np.argwhere(first if picture.ndim == 2 else first.all(axis=2))
    return [(int(x), int(y)) for y, x in candidates if np.array_equal(picture[y : y + height, x : x + width], tile)]


@pytest.fixture
def drawn(tmp_path):
    """Draws with a function of the module, and reads back the PNG: (H, W) if it is grey, else (H, W, 3)."""

    def draw(function, *arguments):
        path = tmp_path / "figures" / "picture.png"
        function(*arguments, path)
        assert [file.name for file in path.parent.iterdir()] == ["picture.png"]
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.mode in {"L", "RGB"}
            return np.asarray(image)

    return draw


def tiled(picture, rows, factor=6):
    """The corner from which the images in `rows` stand, each once, in order and 2 pixels apart."""
    corners = [[find(picture, enlarged(pixels, factor)) for pixels in row] for row in rows]
    ((x0, y0),) = corners[0][0]
    pitch = factor * len(rows[0][0]) + 2
    assert corners == [[[(x0 + j * pitch, y0 + i * pitch)] for j in range(len(row))] for i, row in enumerate(rows)]
    return x0, y0


def inked(region):
    """What is not white in `region`, without the white around it."""
    places = np.argwhere(region < 255)
    assert len(places), "nothing is written here"
    (top, left), (bottom, right) = places.min(axis=0), places.max(axis=0) + 1
    return region[top:bottom, left:right]


def written(text, anchor):
    canvas = Image.new("L", (600, 60), "white")
    ImageDraw.Draw(canvas).text((300, 30), text, fill="black", font=pictures.label_font(), anchor=anchor)
    return inked(np.asarray(canvas))


def assert_labelled(picture, corner, side, labels, titles, over_labels=""):
    """Beside each row and above each column of tiles stands its text and nothing else, pixel for pixel."""
    x0, y0 = corner
    for i, label in enumerate(labels):
        beside = picture[y0 + i * (side + 2) :][:side, :x0]
        assert np.array_equal(inked(beside), written(label, "rm")), label
    for j, title in enumerate(titles):
        above = picture[:y0, x0 + j * (side + 2) :][:, :side]
        assert np.array_equal(inked(above), written(title, "ms")), title
    if over_labels:
        assert np.array_equal(inked(picture[:y0, :x0]), written(over_labels, "rs"))
    else:
        assert (picture[:y0, :x0] == 255).all()


def test_samples_stand_in_labelled_rows_of_eta_and_columns_of_steps_enlarged_without_blur(drawn):
    etas, steps = ("0.0", "0.2", "1.0", "sigma_hat"), (10, 50, 1000)
    cells = {(eta, s): digits(seed=10 * i + s) for i, eta in enumerate(etas) for s in steps}
    picture = drawn(pictures.samples, dict(reversed(cells.items())))
    assert picture.ndim == 2
    corners = {}
    for key, images in cells.items():
        places = [find(picture, enlarged(pixels)) for pixels in images]
        assert [len(place) for place in places] == [1] * 8
        (x0, y0) = places[0][0]
        assert [(x - x0, y - y0) for ((x, y),) in places] == [(50 * (i % 4), 50 * (i // 4)) for i in range(8)]
        corners[key] = (x0, y0)
    xs, ys = [corners["0.0", s][0] for s in steps], [corners[eta, 10][1] for eta in etas]
    assert corners == {
        (eta, s): (x, y) for eta, y in zip(etas, ys, strict=True) for s, x in zip(steps, xs, strict=True)
    }
    assert (xs, ys) == (sorted(xs), sorted(ys))
    for x, title in zip(xs, ("S = 10", "S = 50", "S = 1000"), strict=True):
        assert np.array_equal(inked(picture[: ys[0], x : x + 198]), written(title, "ms"))
    for y, label in zip(ys, ("η = 0.0", "η = 0.2", "η = 1.0", "σ̂"), strict=True):
        assert np.array_equal(inked(picture[y : y + 98, : xs[0]]), written(label, "rm"))


def test_labels_of_columns_do_not_run_into_each_other_where_cells_are_narrow(drawn):
    picture = drawn(pictures.samples, {("0.0", s): digits(1) for s in (1000, 2000, 5000)})
    columns = np.flatnonzero((picture[: pictures.MARGIN + pictures.FONT_SIZE] < 128).any(axis=0))
    assert np.count_nonzero(np.diff(columns) >= pictures.BLOCK_GAP) == 2


def test_missing_cells_stay_blank_and_colour_is_kept(drawn):
    colour = digits(4, (32, 32, 3), seed=1)
    picture = drawn(pictures.samples, {("0.0", 10): colour, ("1.0", 20): digits(4, (32, 32, 3), seed=2)})
    ((x, y),) = find(picture, enlarged(colour[0], 2))
    block = 2 * 64 + 2
    assert (picture[y : y + block, x + block + 4 :] == 255).all()  # eta 0.0, S = 20
    assert not (picture[y : y + block, x : x + block] == 255).all()


def test_large_images_are_reduced_and_a_column_of_grey_channels_is_grey(drawn):
    picture = drawn(pictures.samples, {("0.0", 10): digits(1, (256, 128, 1))})
    assert picture.ndim == 2
    assert picture.shape[0] < 200


def test_consistency_has_a_row_for_each_s_ascending_and_a_column_for_each_sample(drawn):
    images = {s: digits(11, seed=s) for s in (1000, 10, 50)}
    picture = drawn(pictures.consistency, images)
    corner = tiled(picture, [images[10], images[50], images[1000]])
    labels = ["S = 10", "S = 50", "S = 1000"]
    assert_labelled(picture, corner, 48, labels, [str(i) for i in range(11)], over_labels="sample")
    right, bottom = corner[0] + 11 * 50 - 2, corner[1] + 3 * 50 - 2
    assert picture.shape == (bottom + pictures.MARGIN, right + pictures.MARGIN)


def test_reconstructions_stand_below_their_originals(drawn):
    originals, rebuilt = digits(3, seed=1), {s: digits(3, seed=s) for s in (100, 20)}
    picture = drawn(pictures.reconstructions, originals, rebuilt)
    corner = tiled(picture, [originals, rebuilt[20], rebuilt[100]])
    assert_labelled(picture, corner, 48, ["original", "S = 20", "S = 100"], ["0", "1", "2"], over_labels="image")


def test_interpolations_have_a_row_for_each_pair_and_a_column_for_each_fraction(drawn):
    rows = digits(3 * 11).reshape(3, 11, 8, 8)
    picture = drawn(pictures.interpolations, rows)
    fractions = ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"]
    assert_labelled(picture, tiled(picture, rows), 48, ["0 → 1", "2 → 3", "4 → 5"], fractions)


def test_the_grid_of_two_pairs_leads_from_one_pair_to_the_other_downwards(drawn):
    images = digits(5 * 5, (32, 32, 3)).reshape(5, 5, 32, 32, 3)
    picture = drawn(pictures.interpolation_grid, images)
    corner = tiled(picture, images, factor=2)
    fractions = ["0", "0.25", "0.5", "0.75", "1"]
    assert_labelled(picture[..., 0], corner, 64, ["0 → 1", "0.25", "0.5", "0.75", "2 → 3"], fractions)


PAIR = {10: digits(4), 20: digits(4, seed=1)}


@pytest.mark.parametrize(("function", "arguments"), [
    (pictures.samples, [{("0.0", steps): images for steps, images in PAIR.items()}]), (pictures.consistency, [PAIR]),
    (pictures.reconstructions, [digits(4), PAIR]), (pictures.interpolations, [digits(6).reshape(2, 3, 8, 8)]),
    (pictures.interpolation_grid, [digits(9).reshape(3, 3, 8, 8)]),
], ids=lambda value: getattr(value, "__name__", ""))  # fmt: skip
def test_equal_images_give_equal_bytes(function, arguments, tmp_path):
    for name in ("first", "second"):
        function(*arguments, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize(("function", "arguments"), [
    (pictures.samples, [{}]), (pictures.samples, [{("0.0", 10): digits(8), ("0.0", 20): digits(4)}]),
    (pictures.samples, [{("0.0", 10): digits(0)}]),
    (pictures.samples, [{("0.0", 10): digits(8), ("0.0", 20): digits(8, (4, 4))}]), (pictures.consistency, [{}]),
    (pictures.consistency, [{10: digits(0)}]), (pictures.consistency, [{10: digits(4), 20: digits(3)}]),
    (pictures.consistency, [{10: digits(4), 20: digits(4, (8, 6))}]),
    (pictures.reconstructions, [digits(4), {10: digits(5)}]),
    (pictures.interpolations, [digits(0).reshape(0, 3, 8, 8)]),
    (pictures.interpolations, [digits(2).reshape(2, 1, 8, 8)]),
    (pictures.interpolation_grid, [digits(6).reshape(2, 3, 8, 8)]),
    (pictures.interpolation_grid, [digits(1).reshape(1, 1, 8, 8)]),
])  # fmt: skip
def test_images_that_make_no_table_are_refused(function, arguments, tmp_path):
    with raises(ValueError):
        function(*arguments, tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())
