"""A run's table, `taugrid evaluate` on its exported images, and torch-fidelity itself: the same numbers."""

import json

import pandas as pd
import pytest
import torch_fidelity
from command import TINY, write_folder
from shared import taugrid
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from taugrid.config import Data
from taugrid.eval.features.networks import DigitsConvnet
from taugrid.registry.extractors import DIGITS_CONVNET
from taugrid.workers.data.load import load_images

pytestmark = pytest.mark.usefixtures("sketched")

THEIR_NAMES = {
    "fid": "frechet_inception_distance",
    "isc_mean": "inception_score_mean",
    "isc_std": "inception_score_std",
    "kid_mean": "kernel_inception_distance_mean",
    "kid_std": "kernel_inception_distance_std",
    "precision": "precision",
    "recall": "recall",
}


def test_table_command_and_torch_fidelity_agree_on_digits(finished, tmp_path, monkeypatch):
    """The whole of the digits as the reference, as in the run."""
    digits, samples = write_folder(tmp_path / "digits", load_images(Data())), tmp_path / "samples"
    taugrid("export", finished, "S0002-eta0-", "--to", samples)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sizes = {key: TINY["evaluate"][key] for key in ("isc_splits", "kid_subsets", "kid_subset_size")}
    sets = [f"--set=evaluate.{key}={value}" for key, value in sizes.items()]
    asked = ("--samples", samples, "--reference", digits, "--extractor", DIGITS_CONVNET, "--metrics", "fid,isc,kid,prc")
    ours = json.loads(taugrid("evaluate", *asked, *sets, "--json").stdout)["metrics"]
    [cell] = [path.name.rsplit("-", 1)[1] for path in finished.glob("samples/S0002-eta0-*")]
    table = pd.read_csv(finished / "tables/quality.csv", dtype={"cell": str})  # pandas takes 29e0919434 for a number
    for name in ("fid", "isc_mean", "isc_std", "kid_mean", "kid_std"):
        assert ours[name] == pytest.approx(table.set_index("cell").loc[cell, name], rel=1e-6)
    if DIGITS_CONVNET not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(DIGITS_CONVNET, DigitsConvnet)
    found = torch_fidelity.calculate_metrics(
        input1=str(samples), input2=str(digits), feature_extractor=DIGITS_CONVNET, fid=True, isc=True, kid=True,
        prc=True, cuda=False, cache=False, save_cpu_ram=True, verbose=False, **sizes,
    )  # fmt: skip
    theirs = {name: found[key] for name, key in THEIR_NAMES.items()}
    assert ours["fid"] == pytest.approx(theirs["fid"], rel=1e-4)
    assert ours["fid"] > 1
    assert ours["isc_mean"] == pytest.approx(theirs["isc_mean"], rel=1e-6)
    assert ours["isc_std"] == pytest.approx(theirs["isc_std"], rel=1e-3)
    for name in ("kid_mean", "kid_std"):  # torch-fidelity's is of float32
        assert abs(ours[name] - theirs[name]) <= 1e-5 + 1e-3 * abs(theirs[name])
    for name in ("precision", "recall"):  # a rounded distance moves a neighbour
        assert abs(ours[name] - theirs[name]) <= 1 / 12
        assert 0 < ours[name] < 1, "some are in and some are out"
