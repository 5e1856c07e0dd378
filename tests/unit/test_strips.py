"""Pictures of a night's worst cells: the baseline's images above tonight's."""

import io

import numpy as np
import pytest
from pictures import noise
from PIL import Image
from test_pictures import enlarged, find

from taugrid.eval.figures.pictures import GAP, NOT_THERE
from taugrid.orchestrator.nightly.summary import strips
from taugrid.storage import LOCAL, open_place


def images(seed, count=10, channels=1):
    return noise(count, channels, 8, 8, seed=seed)


PITCH = 48 + GAP
"""Pixels between the corners of two images of 8x8."""


def corners(data, images):
    """Where images (n, C, 8, 8) stand in a strip: each once."""
    with Image.open(io.BytesIO(data)) as picture:
        pixels = np.asarray(picture)
    places = [find(pixels, enlarged(image.transpose(1, 2, 0).squeeze())) for image in images]
    assert [len(place) for place in places] == [1] * len(images)
    return [place for (place,) in places]


@pytest.mark.parametrize(("channels", "count", "shown"), [(1, 9, 8), (3, 9, 8), (1, 3, 3)])
def test_a_strip_has_the_first_eight_images_that_both_sides_have_in_two_rows(tmp_path, channels, count, shown):
    before, after = images(1, 10, channels), images(2, count, channels)
    written = strips({"S0010-eta0.2": (before, after)}, tmp_path, LOCAL)
    assert written == {"S0010-eta0.2": tmp_path / "S0010-eta0.2.png"}
    above, below = (corners(written["S0010-eta0.2"].read_bytes(), side[:shown]) for side in (before, after))
    x, y = above[0]
    assert above == [(x + PITCH * i, y) for i in range(shown)]
    assert below == [(x + PITCH * i, y + PITCH) for i in range(shown)]


@pytest.mark.parametrize("gone", [None, images(1, 0)], ids=["unknown", "empty"])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_side_is_said_in_its_row(tmp_path, missing, gone):
    sides = [images(1), images(2)]
    sides[missing] = gone
    (path,) = strips({"a": tuple(sides)}, tmp_path, LOCAL).values()
    x, y = corners(path.read_bytes(), sides[1 - missing][:8])[0]
    y += PITCH if missing else -PITCH
    with Image.open(path) as picture:
        row = picture.crop((x, y, picture.width, y + 48))
        black = np.argwhere(np.asarray(row) < 128)
    assert len(black) > 10 * len(NOT_THERE), "words are written there"
    assert black[:, 1].max() < row.width - 14, "and are not cut off"


def test_four_cells_have_strips_and_those_of_an_earlier_try_are_removed(tmp_path):
    earlier = strips({"earlier": (images(1), images(2))}, tmp_path, LOCAL)
    pairs = {"without images": (None, None)}
    pairs |= {f"cell{i}": (images(i), None if i == 1 else images(i + 1)) for i in range(6)}
    assert list(strips(pairs, tmp_path, LOCAL)) == [f"cell{i}" for i in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"cell{i}.png" for i in range(4)]
    assert list(earlier) == ["earlier"]
    assert strips({}, tmp_path, LOCAL) == {}
    assert not list(tmp_path.iterdir())


def test_labels_become_names_of_files_that_stay_apart(tmp_path):
    labels = ("S0010-eta0 clip=none", "S0010-eta0 x=a/b", "S0010-eta0 x=a_b", "../" + "long" * 60)
    written = strips({label: (images(1), images(2)) for label in labels}, tmp_path, LOCAL)
    assert list(written) == list(labels)
    assert len({path.name for path in written.values()}) == 4
    assert all(path.parent == tmp_path and path.is_file() for path in written.values())
    assert written[labels[0]].name == "S0010-eta0-clip=none.png"


def test_strips_in_a_bucket(s3):
    folder, storage = open_place(f"s3://{s3.bucket()}/nights/1/strips", "--history")
    strips({"earlier": (images(1), images(2))}, folder, storage)
    written = strips({"a b": (images(1), images(2))}, folder, storage)
    assert storage.list(folder, "*") == [folder / "a-b.png"] == list(written.values())
    assert len(corners(storage.read(folder / "a-b.png"), images(2)[:8])) == 8
