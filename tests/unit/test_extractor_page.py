"""docs/custom-extractor.md: its class does what its commands ask of it, and gets what the page says."""

import json
import re
import shlex
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from nights import taugrid
from PIL import Image

from taugrid.config import Data
from taugrid.eval.features.load import describe, load
from taugrid.workers.data.load import load_images

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

PAGE = (Path(__file__).parents[2] / "docs/custom-extractor.md").read_text()
NAME = "my_extractor:Thumbnail"
RUN = """
name: thumbnails
model: {oracle: gaussian}
data: {name: gaussian, shape: [1, 8, 8], limit: 1000}
sample: {num_samples: 200, batch_size: 100}
grid: {steps: [2]}
evaluate: {metrics: [fid, isc]}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the page's class and what its commands need."""
    source = re.search(r"`my_extractor.py`:\n\n((?: {4}[^\n]*\n|\n)+)", PAGE)[1]
    (tmp_path / "my_extractor.py").write_text(textwrap.dedent(source))
    (tmp_path / "my.yaml").write_text(RUN)
    (tmp_path / "pngs").mkdir()
    for number, image in enumerate(load_images(Data(split="train"))[:170, 0]):
        Image.fromarray(image).save(tmp_path / f"pngs/{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_extractor", None)


def test_the_pages_commands_score_with_the_pages_class(folder, asked_here):
    run, evaluate = (shlex.split(line)[1:] for line in re.findall(r"^ {4}(taugrid [^\n]+)$", PAGE, re.MULTILINE))
    taugrid(*run)
    table = pd.read_csv(folder / "runs/thumbnails/tables/quality.csv")
    assert table.fid_se.notna().all(), "200 images for 16 features"
    assert table.isc_mean.isna().all(), "it has no logits"
    [protocol] = json.loads((folder / "runs/thumbnails/tables/quality.json").read_text())["protocols"].values()
    assert protocol["extractor"]["name"] == NAME
    scores = json.loads(taugrid(*evaluate, "--json")[0])
    assert np.isfinite(scores["metrics"]["fid"])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 10)])
def test_it_gets_what_the_page_says(folder, shape, monkeypatch):
    spec = describe(NAME, None, shape)
    assert (spec.feature_layer, spec.logits_layer, spec.dimensions) == ("thumbnail", None, 16)
    extract = load(spec, "cpu")
    given = []
    thumbnail = sys.modules["my_extractor"].Thumbnail
    forward = thumbnail.forward

    def looked_at(self, images):
        given.append((images, self.training, torch.is_inference_mode_enabled()))
        return forward(self, images)

    monkeypatch.setattr(thumbnail, "forward", looked_at)
    images = torch.randint(256, (5, *shape), dtype=torch.uint8)
    features = extract(images).features
    [(seen, training, inference)] = given
    assert (seen.dtype, tuple(seen.shape), training, inference) == (torch.uint8, (5, 3, *shape[1:]), False, True)
    assert torch.equal(seen, images.expand(-1, 3, -1, -1))
    assert (features.dtype, tuple(features.shape)) == (torch.float32, (5, 16))
