"""A baseline of images from elsewhere: `baseline accept DIR --reference R`, and `compare DIR FILE` by its terms."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from nights import compared, taugrid
from PIL import Image
from planted_faults import scaled_kid
from sklearn.datasets import load_digits
from snapshots import raises, recorded

import taugrid as taugrid_api
from taugrid.config import Data
from taugrid.errors import UserError
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


def only_cell(images, baseline, code=0):
    (cell,) = compared(images, baseline, code=code)["cells"]
    return cell


def test_images_without_one_digit_are_red_by_cmmd_and_others_are_not(place):
    same = compared(place / "base", place / "base.json")
    assert (same["result"], same["cells"][0]["metrics"]["cmmd"]["difference"]) == ("identical", 0)
    checks = {name: check["result"] for name, check in same["checks"].items()}
    assert checks == {"sampler": "not applicable", "scorer": "clean"}
    assert not compared(place / "healthy", place / "base.json")["marks"]
    cell = only_cell(place / "healthy", place / "base.json")
    assert (cell["label"], cell["by"]) == ("images", "cmmd")
    cell = only_cell(place / "without", place / "base.json", code=3)
    assert (cell["result"], cell["by"], cell["note"]) == ("worse", "cmmd", "")
    text, _ = taugrid("compare", place / "without", place / "base.json", code=3)
    recorded(text, "baseline")
    assert f"{COLUMNS['cmmd'].title} " in text
    assert "detects" not in text, "the errors of broken images are not the gate's"
    line, _ = taugrid("compare", place / "healthy", place / "base.json", code=None)
    assert re.search(r"of [\d.,]+ % of CMMD", line), "as a plain number"
    *_, pairs, reference, extractor = text.splitlines()
    assert pairs.startswith(f"{N} pairs ")
    assert (reference.split()[1], extractor) == ("digits/train", "extractor: digits-convnet")
    shown, _ = taugrid("baseline", "show", place / "base.json")
    assert f"images: {place / 'base'}" in shown.splitlines()
    assert {reference, extractor} < set(shown.splitlines())


def test_images_with_other_names_are_unpaired_and_have_larger_errors(place, tmp_path):
    (tmp_path / "renamed").mkdir()
    for path in (place / "healthy").iterdir():
        shutil.copy(path, tmp_path / "renamed" / f"x{path.name}")
    errors = [
        only_cell(images, place / "base.json", code=None)["metrics"]["cmmd"]["se"]
        for images in (tmp_path / "renamed", place / "healthy")
    ]
    assert errors[0] > 1.2 * errors[1]
    recorded(taugrid("compare", tmp_path / "renamed", place / "base.json", code=None)[0], "unpaired")


def test_a_changed_scorer_is_red(place, monkeypatch):
    scaled_kid(monkeypatch)
    assert compared(place / "healthy", place / "base.json", code=3)["result"] == "changed scorer"


@pytest.fixture(scope="module")
def history(place):
    history = place / "history"
    taugrid("nightly", "--samples", place / "base", "--history", history, "--id", "1", *SCORED)
    for name in ("base.json", "base.parquet"):
        shutil.copy(place / name, history / name.replace("base", "baseline"))
    for night, images, code in (("2", "healthy", 0), ("3", "without", 3)):
        taugrid("nightly", "--samples", place / images, "--history", history, "--id", night, code=code)
    return history


def of_night(history, night):
    folder = history / "nights" / night
    return json.loads((folder / "verdict.json").read_text()), (folder / "summary.md").read_text()


def test_a_night_of_images_has_the_verdict_of_compare(place, history):
    for night, images in (("2", "healthy"), ("3", "without")):
        verdict, _ = of_night(history, night)
        assert verdict["comparison"]["cells"] == [only_cell(place / images, place / "base.json", code=None)]
    assert verdict["model"] == []
    assert verdict["images"]["path"] == str(place / "without")


def test_a_night_says_what_has_no_meaning_for_images(place, history):
    _, summary = of_night(history, "3")
    recorded(summary, "not applicable")
    recorded(summary, "Rule:")
    assert f"- tonight: `{place / 'without'}` (" in summary
    recorded(summary, "Next:")
    assert "report.html" not in summary
    undecided, page = of_night(history, "2")
    assert "usual seed" not in page, "there are no seeds"
    assert (undecided["result"], undecided["next"]) == ("undecided", ""), "CMMD's margin shrinks with its error"


def test_the_history_shows_nights_of_images(place, history):
    lines = taugrid("status", history)[0].splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert "CMMD over" in (history / "index.html").read_text()
    opened = taugrid_api.open(str(history))
    assert list(opened.table["by"].dropna()) == ["cmmd", "cmmd"]
    assert opened.table["steps"].isna().all()
    with raises(UserError):
        opened.open("3")


def test_a_complete_night_of_images_is_left_as_it_is(place, history):
    before = of_night(history, "2")
    asked = ("nightly", "--history", history, "--id", "2", "--samples")
    recorded(taugrid(*asked, place / "healthy")[1], "complete")
    recorded(taugrid(*asked, place / "base", code=2)[1], "complete")
    assert of_night(history, "2") == before


def test_what_a_night_of_images_can_not_do_is_one_line(place, history, tmp_path):
    for words in (
        ("--grow-to", 900),
        ("--set", "sample.seed=1"),
        ("night.yaml",),
        ("--reference", "digits/test"),
        ("--baseline", "none.json"),
        ("--history", tmp_path / "new"),
    ):
        where = () if "--history" in words else ("--history", history)
        said = taugrid("nightly", "--samples", place / "healthy", "--id", "x", *where, *words, code=2)[1]
        recorded(said.splitlines()[-1])  # the lines before depend on what the user's cache holds
    said = taugrid("nightly", "night.yaml", "--history", history, "--metrics", "kid", code=2)[1]
    recorded(said, "meaning")
    assert "give CONFIG" in taugrid("nightly", "--history", history, code=2)[1]


def test_the_commands_of_the_page_are_nights(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/nightly.md").read_text()
    lines = re.findall(r"^ {4}taugrid (nightly --samples [^#\n]+|baseline accept tonight [^#\n]+)", page, re.MULTILINE)
    assert len(lines) == 3
    for number, line in enumerate(lines):
        shutil.copytree(place / ("without" if number == 2 else "base"), "tonight", dirs_exist_ok=True)
        name = ("--id", number) if line.startswith("nightly") else ()
        taugrid(*shlex.split(line), *name, code=3 if number == 2 else 0)
    assert of_night(Path("history"), "2")[0]["comparison"]["cells"][0]["by"] == "kid"


def test_what_can_not_be_done_is_one_line(place, tmp_path):
    accept = ("baseline", "accept", "--to", tmp_path / "new.json", "--reason", "r", place / "base")
    for words in (accept, (*accept, "--force", *SCORED)):
        recorded(taugrid(*words, code=2)[1])
    recorded(taugrid("compare", place / "base", place / "base.json", "--reference", "digits/train", code=2)[1])
