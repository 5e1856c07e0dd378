"""A run's table, `taugrid evaluate` on its exported images, and torch-fidelity itself: the same numbers.

On the way an evaluation is interrupted, and ends without extracting anything twice.
"""

import io
import json
import os
import shutil
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
import torch_fidelity
from command import TINY, Started, events, wait_until_gone, worker_pids, write_config
from PIL import Image
from shared import taugrid
from torch_fidelity import fidelity as torch_fidelity_command
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from taugrid import parquet
from taugrid.config import Data
from taugrid.eval.features.networks import DigitsConvnet
from taugrid.images import encode_png
from taugrid.registry.extractors import DIGITS_CONVNET, INCEPTION
from taugrid.workers.data.load import load_images

pytestmark = pytest.mark.usefixtures("sketched")

N = 12
"""Images that Inception sees on either side: a tenth of a second each, and every FID of fewer than 2048 is singular."""

SPLITS, SUBSETS, SUBSET_SIZE = (TINY["evaluate"][key] for key in ("isc_splits", "kid_subsets", "kid_subset_size"))


def settings(subset_size, metrics="fid,isc,kid,prc"):
    """Ours, as options of `taugrid evaluate`."""
    sizes = {"isc_splits": SPLITS, "kid_subsets": SUBSETS, "kid_subset_size": subset_size}
    return (
        "--metrics",
        metrics,
        *(f"--set=evaluate.{key}={value}" for key, value in sizes.items()),
        "--json",
    )


THEIR_SETTINGS = (
    "--isc-splits", SPLITS, "--kid-subsets", SUBSETS, "--kid-subset-size", N // 2,
    "--isc", "--fid", "--kid", "--prc", "--cpu", "--json", "--silent", "--save-cpu-ram",
)  # fmt: skip

THEIR_NAMES = {
    "fid": "frechet_inception_distance",
    "isc_mean": "inception_score_mean",
    "isc_std": "inception_score_std",
    "kid_mean": "kernel_inception_distance_mean",
    "kid_std": "kernel_inception_distance_std",
    "precision": "precision",
    "recall": "recall",
}


def assert_agree(ours, theirs):
    """What the two promise each other: torch-fidelity's KID is of float32, and a rounded distance moves a neighbour."""
    theirs = {name: theirs[key] for name, key in THEIR_NAMES.items() if key in theirs}
    if "fid" in theirs:
        assert ours["fid"] == pytest.approx(theirs["fid"], rel=1e-4)
        assert ours["fid"] > 1
    assert ours["isc_mean"] == pytest.approx(theirs["isc_mean"], rel=1e-6)
    assert ours["isc_std"] == pytest.approx(theirs["isc_std"], rel=1e-3)
    for name in ("kid_mean", "kid_std"):
        assert abs(ours[name] - theirs[name]) <= 1e-5 + 1e-3 * abs(theirs[name])
    for name in ("precision", "recall"):
        assert abs(ours[name] - theirs[name]) <= 1 / N
    assert 0 < ours["precision"] < 1, "some are in and some are out"
    assert 0 < ours["recall"] < 1


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """Two cells of a run as people take them elsewhere: samples and, as if it were real, what to compare them with."""
    folder = tmp_path_factory.mktemp("exported")
    taugrid("export", finished, "S0002-eta0-", "--to", folder / "samples")
    taugrid("export", finished, "S0002-sigma_hat-", "--to", folder / "reference")
    return folder


def row_of(root, name):
    [cell] = [path.name.rsplit("-", 1)[1] for path in root.glob(f"samples/{name}*")]
    table = pd.read_csv(root / "tables/quality.csv", dtype={"cell": str})  # pandas takes 29e0919434 for a number
    return table.set_index("cell").loc[cell]


@pytest.fixture(scope="module")
def first(exported, tmp_path_factory):
    """The first N images of both folders, for Inception."""
    folder = tmp_path_factory.mktemp("first")
    for name in ("samples", "reference"):
        (folder / name).mkdir()
        for path in sorted((exported / name).iterdir())[:N]:
            shutil.copy(path, folder / name)
    return folder


# digits-convnet, through torch-fidelity's Python function


@pytest.mark.long
def test_table_command_and_torch_fidelity_agree_on_digits(finished, exported, tmp_path, monkeypatch):
    """The whole of the digits as the reference, as in the run."""
    (tmp_path / "digits").mkdir()
    for i, image in enumerate(load_images(Data())):
        (tmp_path / "digits" / f"{i:04d}.png").write_bytes(encode_png(image))
    samples, reference = str(exported / "samples"), str(tmp_path / "digits")
    asked = ("--samples", samples, "--reference", reference, "--extractor", DIGITS_CONVNET, *settings(SUBSET_SIZE))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ours = json.loads(taugrid("evaluate", *asked).stdout)["metrics"]
    row = row_of(finished, "S0002-eta0-")
    for name in ("fid", "isc_mean", "isc_std", "kid_mean", "kid_std"):
        assert ours[name] == pytest.approx(row[name], rel=1e-6)
    if DIGITS_CONVNET not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(DIGITS_CONVNET, DigitsConvnet)
    theirs = torch_fidelity.calculate_metrics(
        input1=samples, input2=reference, feature_extractor=DIGITS_CONVNET, fid=True, isc=True, kid=True, prc=True,
        isc_splits=SPLITS, kid_subsets=SUBSETS, kid_subset_size=SUBSET_SIZE, cuda=False, cache=False,
        save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    assert_agree(ours, theirs)


# Inception, through the command `fidelity`


class Blank(torch_fidelity.FeatureExtractorInceptionV3):
    """torch-fidelity's Inception as its layers are born: it has no way to make one without a file of weights."""

    def load_state_dict(self, *_, **__):
        return None


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Inception weights of Kaiming-normal noise: torch's default gives the same features for all images."""
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank = Blank(INCEPTION, ["2048"], feature_extractor_weights_path=str(folder / "empty.pth"))
        for parameter in blank.parameters():
            if parameter.dim() == 4:
                torch.nn.init.kaiming_normal_(parameter)
    torch.save(blank.state_dict(), folder / "inception.pth")
    return folder / "inception.pth"


class Resumed(NamedTuple):
    """A run whose evaluation was interrupted, and then done with the same command."""

    root: Path
    present: dict[str, int]
    """Extract task -> when its file was written, of what was there between the two."""


def extracted(root):
    """Extract task -> when its file was written, of the files that are in place."""
    found = {}
    for path in root.glob("features/*/*/part-*.parquet"):
        folder, number = path.parent.name, int(path.stem.removeprefix("part-"))
        task = "reference" if folder.startswith("reference-") else f"extract/{folder.rsplit('-', 1)[1]}"
        found[f"{task}/{number}"] = path.stat().st_mtime_ns
    return found


@pytest.fixture(scope="module")
def resumed(finished, first, weights, tmp_path_factory, pytestconfig):
    """N images of the exported cell again, from the same weights, scored by Inception against the first reference.

    In the long form the driver is killed once some are extracted; in short what it leaves is left by a run that ends
    (`test_interruptions.py` kills one as it samples).
    """
    folder = tmp_path_factory.mktemp("resumed")
    root = folder / "run"
    path = write_config(
        folder,
        model={"checkpoint": str(next((finished / "models").iterdir()))},
        grid={"steps": [2], "eta": [0.0]},
        sample={"num_samples": N, "batch_size": 2, "shard_evaluations": 4},  # 2 images a shard
        evaluate=TINY["evaluate"]
        | {
            "kid_subset_size": N // 2,
            "extractor": INCEPTION,
            "weights": str(weights),
            "reference": str(first / "reference"),
            "metrics": ["fid", "isc", "kid", "prc"],
        },
    )
    if pytestconfig.getoption("--long"):
        with Started(folder / "log", "run", path, "--out", root, "--workers", 1) as run:
            run.wait_until(lambda: len(extracted(root)) >= 2)
            workers = worker_pids(run.process.pid)
            os.kill(run.process.pid, signal.SIGKILL)
            run.process.wait()
            wait_until_gone(workers)
    else:
        taugrid("run", path, "--out", root, "--workers", 1)
        [cell] = root.glob("features/*/S0002-*")
        for number in range(2, N // 2):
            (cell / f"part-{number:06d}.parquet").unlink()
        next(root.glob("features/*/reference-*/part-*")).unlink()
        (cell / ".part-000002.parquet.77.tmp").write_bytes(b"cut off")
        for name in ("scores", "tables", "figures"):
            shutil.rmtree(root / name)
    present = extracted(root)
    taugrid("run", path, "--out", root)
    return Resumed(root, present)


@pytest.mark.long
@pytest.mark.chaos
def test_an_interrupted_evaluation_extracts_nothing_twice(resumed):
    tasks = ["reference/0"] + [f"extract/{row_of(resumed.root, 'S0002-eta0-').name}/{i}" for i in range(N // 2)]
    assert 2 <= len(resumed.present) < len(tasks), "it ended in the middle"
    after = extracted(resumed.root)
    assert sorted(after) == sorted(tasks)
    assert {task: after[task] for task in resumed.present} == resumed.present, "what was there was left alone"
    did = [e["task"] for e in events(resumed.root) if e["event"] == "extract" and e["committed"]]
    assert sorted(did) == sorted(set(tasks) - set(resumed.present))
    assert not list(resumed.root.glob("**/.*.tmp"))


@pytest.mark.long
def test_features_of_the_seeded_network_vary(resumed):
    [cell] = resumed.root.glob("features/*/S0002-eta0-*")
    features = np.concatenate([v for p in sorted(cell.iterdir()) for _, v in parquet.read_features(p, "features")])
    assert features.shape == (N, 2048)
    assert features.std(axis=0).mean() > 0.01


def fidelity(samples, reference, weights, cache):
    """What torch-fidelity's own command says of two folders. In this process, which has imported what it does."""
    command = [
        "fidelity", "--input1", samples, "--input2", reference,
        "--feature-extractor", INCEPTION, "--feature-extractor-weights-path", weights, *THEIR_SETTINGS,
        "--cache-root", cache, "--input2-cache-name", "reference",
    ]  # fmt: skip
    printed = io.StringIO()
    with mock.patch.object(sys, "argv", list(map(str, command))), redirect_stdout(printed):
        torch_fidelity_command.main()
    return json.loads(printed.getvalue())


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.long
def test_table_command_and_fidelity_agree_on_grey_images(resumed, first, weights, cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    samples, reference = first / "samples", first / "reference"
    asked = ("--samples", samples, "--reference", reference, "--weights", weights, *settings(N // 2))
    ours = json.loads(taugrid("evaluate", *asked).stdout)
    theirs = fidelity(samples, reference, weights, cache)
    assert_agree(ours["metrics"], theirs)
    row = row_of(resumed.root, "S0002-eta0-")
    # Convolutions of other batches round differently.
    assert row["fid"] == pytest.approx(ours["metrics"]["fid"], rel=1e-5)
    assert_agree(row, theirs)


@pytest.mark.long
def test_command_and_torch_fidelity_agree_on_rgb_images(first, weights, cache, tmp_path, monkeypatch):
    """Every sample in a colour of its own, against the grey reference; both keep what they know of that.

    Without FID, whose square root of 2,048 x 2,048 takes seconds: it agrees where features do, as on grey images.
    """
    colours = np.random.default_rng(0)
    for path in (first / "samples").iterdir():
        grey = np.asarray(Image.open(path))[..., None]
        Image.fromarray(np.rint(grey * colours.uniform(0.7, 1, 3)).astype(np.uint8)).save(tmp_path / path.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    wanted = settings(N // 2, "isc,kid,prc")
    asked = ("--samples", tmp_path, "--reference", first / "reference", "--weights", weights, *wanted)
    ours = json.loads(taugrid("evaluate", *asked).stdout)
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path), input2=str(first / "reference"), feature_extractor=INCEPTION,
        feature_extractor_weights_path=str(weights), isc=True, kid=True, prc=True, isc_splits=SPLITS,
        kid_subsets=SUBSETS, kid_subset_size=N // 2, cuda=False, cache_root=str(cache), input2_cache_name="reference",
        save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    assert_agree(ours["metrics"], theirs)
    assert any("with colour" in warning for warning in ours["warnings"])
