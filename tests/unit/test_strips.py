"""Pictures of a night's worst cells: the baseline's images above tonight's."""

import io

import numpy as np
import pytest
from pictures import noise
from PIL import Image

from taugrid.eval.figures.pictures import NOT_THERE, tiles_of
from taugrid.orchestrator.nightly.outcome import BeforeAndAfter, strips
from taugrid.storage import LOCAL, open_place


def images(seed, count=10, channels=1):
    return noise(count, channels, 8, 8, seed=seed)


def tiles(data):
    """Rows of tiles of a strip, (2, n, H, W) or (2, n, H, W, 3), reduced to the images' own size of 8x8."""
    with Image.open(io.BytesIO(data)) as picture:
        found = tiles_of(picture)
        assert (found.labels, found.corner) == (["baseline", "tonight"], "sample")
        assert found.titles == [str(index) for index in range(len(found.titles))]
        rows = [[np.asarray(tile)[3::6, 3::6] for tile in row] for row in found.rows(picture)]
    return np.array(rows)


@pytest.mark.parametrize(("channels", "count", "shown"), [(1, 9, 8), (3, 9, 8), (1, 3, 3)])
def test_a_strip_has_the_first_eight_images_that_both_sides_have_in_two_rows(tmp_path, channels, count, shown):
    before, after = images(1, 10, channels), images(2, count, channels)
    written = strips([BeforeAndAfter("S0010-eta0.2", before, after)], tmp_path, LOCAL)
    assert written == {"S0010-eta0.2": tmp_path / "S0010-eta0.2.png"}
    found = tiles(written["S0010-eta0.2"].read_bytes())
    expected = np.stack([before[:shown], after[:shown]]).transpose(0, 1, 3, 4, 2).squeeze()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("gone", [None, images(1, 0)], ids=["unknown", "empty"])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_side_is_said_in_its_row(tmp_path, missing, gone):
    sides = [images(1), images(2)]
    sides[missing] = gone
    (path,) = strips([BeforeAndAfter("a", *sides)], tmp_path, LOCAL).values()
    found = tiles(path.read_bytes())
    np.testing.assert_array_equal(found[1 - missing], sides[1 - missing][:8, 0])
    with Image.open(path) as picture:
        layout = tiles_of(picture)
        row = picture.crop((layout.xs[0], layout.ys[missing], picture.width, layout.ys[missing] + layout.height))
        black = np.argwhere(np.asarray(row) < 128)
    assert len(black) > 10 * len(NOT_THERE), "words are written there"
    assert black[:, 1].max() < row.width - 14, "and are not cut off"


def test_four_cells_have_strips_and_those_of_an_earlier_try_are_removed(tmp_path):
    earlier = strips([BeforeAndAfter("earlier", images(1), images(2))], tmp_path, LOCAL)
    pairs = [BeforeAndAfter(f"cell{i}", images(i), None if i == 1 else images(i + 1)) for i in range(6)]
    pairs.insert(0, BeforeAndAfter("without images", None, None))
    assert list(strips(pairs, tmp_path, LOCAL)) == [f"cell{i}" for i in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"cell{i}.png" for i in range(4)]
    assert list(earlier) == ["earlier"]
    assert strips([], tmp_path, LOCAL) == {}
    assert not list(tmp_path.iterdir())


def test_labels_become_names_of_files_that_stay_apart(tmp_path):
    labels = ("S0010-eta0 clip=none", "S0010-eta0 x=a/b", "S0010-eta0 x=a_b", "../" + "long" * 60)
    written = strips([BeforeAndAfter(label, images(1), images(2)) for label in labels], tmp_path, LOCAL)
    assert list(written) == list(labels)
    assert len({path.name for path in written.values()}) == 4
    assert all(path.parent == tmp_path and path.is_file() for path in written.values())
    assert written[labels[0]].name == "S0010-eta0-clip=none.png"


def test_strips_in_a_bucket(s3):
    folder, storage = open_place(f"s3://{s3.bucket()}/nights/1/strips", "--history")
    strips([BeforeAndAfter("earlier", images(1), images(2))], folder, storage)
    written = strips([BeforeAndAfter("a b", images(1), images(2))], folder, storage)
    assert storage.list(folder, "*") == [folder / "a-b.png"] == list(written.values())
    np.testing.assert_array_equal(tiles(storage.read(folder / "a-b.png"))[1], images(2)[:8, 0])
