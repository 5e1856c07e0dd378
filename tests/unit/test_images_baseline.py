"""A baseline of images from elsewhere: `baseline accept DIR --reference R`, and `compare DIR FILE` by its terms."""

import json
import shutil

import numpy as np
import pytest
from nights import taugrid
from PIL import Image
from sklearn.datasets import load_digits

from taugrid.config import Data
from taugrid.eval.metrics import kernel
from taugrid.registry.metrics import COLUMNS
from taugrid.workers.data.load import load_images

N = 600
"""Too few for FID's standard error on 64 features."""

SCORED = ("--reference", "digits/train", "--extractor", "digits-convnet", "--metrics", "cmmd")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of digits with the same names: the baseline's, some other digits, and those without any 2; the file."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    images = load_images(Data(name="digits", split="train"))[:, 0]
    labels = load_digits().target[: len(images)]
    base = random.integers(len(images), size=N)
    healthy, without = base.copy(), base.copy()
    healthy[::30] = random.integers(len(images), size=N // 30)
    without[labels[base] == 2] = random.choice(np.flatnonzero(labels != 2), (labels[base] == 2).sum())
    for name, chosen in (("base", base), ("healthy", healthy), ("without", without)):
        (folder / name).mkdir()
        for number, index in enumerate(chosen):
            Image.fromarray(images[index]).save(folder / name / f"{number:03d}.png")
    taugrid("baseline", "accept", folder / "base", "--to", folder / "base.json", "--reason", "the first", *SCORED)
    return folder


def compared(images, baseline, code=0):
    found = json.loads(taugrid("compare", images, baseline, "--json", code=code)[0])
    (cell,) = found["cells"]
    return found, cell


def test_the_same_images_are_identical(place):
    found, cell = compared(place / "base", place / "base.json")
    assert (found["result"], cell["metrics"]["cmmd"]["difference"]) == ("identical", 0)
    checks = {name: check["result"] for name, check in found["checks"].items()}
    assert checks == {"sampler": "not applicable", "scorer": "clean"}


def test_images_without_one_digit_are_red_by_cmmd_and_others_are_not(place):
    healthy, cell = compared(place / "healthy", place / "base.json")
    assert not healthy["marks"]
    assert (cell["label"], cell["by"]) == ("images", "cmmd")
    _, cell = compared(place / "without", place / "base.json", code=3)
    assert (cell["result"], cell["by"], cell["note"]) == ("worse", "cmmd", "")
    text, _ = taugrid("compare", place / "without", place / "base.json", code=3)
    assert text.startswith("❌ worse; 1 of 1 baseline cell compared; detects regressions of ")
    assert f"{COLUMNS['cmmd'].title} " in text


def test_images_with_other_names_are_unpaired_and_have_larger_errors(place, tmp_path):
    (tmp_path / "renamed").mkdir()
    for path in (place / "healthy").iterdir():
        shutil.copy(path, tmp_path / "renamed" / f"x{path.name}")
    errors = [
        compared(images, place / "base.json", code=None)[1]["metrics"]["cmmd"]["se"]
        for images in (tmp_path / "renamed", place / "healthy")
    ]
    assert errors[0] > 1.2 * errors[1]
    assert "unpaired: the images' names are not the baseline's" in taugrid(
        "compare", tmp_path / "renamed", place / "base.json", code=None
    )[0]  # fmt: skip


def test_a_changed_scorer_is_red(place, monkeypatch):
    whole = kernel._together
    monkeypatch.setattr(kernel, "_together", lambda *terms: (found := whole(*terms))._replace(value=1.01 * found.value))
    found, _ = compared(place / "healthy", place / "base.json", code=3)
    assert found["result"] == "changed scorer"


def test_accepting_worse_images_says_so(place, tmp_path):
    for name in ("base.json", "base.parquet"):
        shutil.copy(place / name, tmp_path)
    words = ("--to", tmp_path / "base.json", "--reason", "meant", *SCORED)
    assert "accepted although worse" in taugrid("baseline", "accept", place / "without", *words)[0]
    assert compared(place / "without", tmp_path / "base.json")[0]["result"] == "identical"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("baseline", "accept", "{base}", "--to", "{new}", "--reason", "r"), "give --reference R if DIR holds images"),
        (("baseline", "accept", "{base}", "{base}", "--to", "{new}", "--reason", "r", *SCORED), "images are one DIR"),
        (("compare", "{base}", "{file}", "--reference", "digits/train"), "says how its images are scored"),
    ],
)
def test_what_can_not_be_done_is_one_line(place, tmp_path, words, told):
    names = {"base": place / "base", "file": place / "base.json", "new": tmp_path / "new.json"}
    given = [word.format(**names) for word in words]
    assert told in taugrid(*given, code=2)[1]
