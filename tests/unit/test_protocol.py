"""Identities of evaluations, and what becomes of scores when images go."""

import json
import shutil

import pytest

from taugrid.config import Config, validate
from taugrid.errors import UserError
from taugrid.orchestrator.plan.evaluation import evaluation
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.storage import read_sealed, write_sealed

ORACLE = {
    "name": "x",
    "data": {"name": "gaussian", "shape": [1, 4, 4]},
    "model": {"oracle": "gaussian"},
    "sample": {"seed": 0, "num_samples": 100, "batch_size": 10, "steps": 5, "shard_evaluations": 250},
}
UNET = {
    "block_out_channels": [8, 8], "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
    "norm_num_groups": 4,
}  # fmt: skip
DIGITS = {"name": "x", "model": {"unet": UNET}, "train": {"seed": 0}, "sample": {"seed": 0}}


def planned(values):
    config = validate(Config, values, "test")
    return config, plan(config)


def evaluated(values, **evaluate):
    config, found = planned(values | {"evaluate": evaluate})
    return evaluation(config, found), found.cells[0]


def test_ids_of_evaluations_never_change():
    """People have scores under these names. If this fails, an edit has orphaned every score there is."""
    scoring, cell = evaluated(DIGITS)
    assert scoring.id(cell) == "ee6c443440"
    scoring, cell = evaluated(ORACLE, metrics=["fid", "prc", "fid_infinity"])
    assert scoring.id(cell) == "af50dffe99"


def test_another_reference_or_metric_is_another_evaluation():
    ids = set()
    for changes in ({}, {"metrics": ["fid"]}, {"reference": {"name": "gaussian", "shape": [1, 4, 4], "split": "test"}}):
        scoring, cell = evaluated(ORACLE, **changes)
        ids.add(scoring.id(cell))
    assert len(ids) == 3


def test_what_no_number_of_samples_can_give_is_refused_before_any_work():
    with pytest.raises(UserError, match=r"evaluate.metrics: .* \(isc: pixels has no layer of logits\)"):
        evaluated(ORACLE, metrics=["isc"])


def test_a_reference_of_another_shape_is_refused():
    with pytest.raises(UserError, match=r"the reference has images of \(1, 8, 8\)"):
        evaluated(ORACLE, reference={"name": "digits"})


@pytest.mark.parametrize("keep_features", [True, False])
def test_scores_go_with_a_shard_that_they_were_made_of(tmp_path, keep_features):
    """Also where features were removed to save space: the score is then all that is left of images that are gone."""
    _, found = planned(ORACLE)
    [cell] = found.cells
    rundir = RunDir(tmp_path)
    assert [shard.start for shard in cell.shards] == [0, 50]
    for n, name in ((50, "small"), (100, "large")):
        write_sealed(rundir.score(cell, name), {"protocol": {"num_samples": n}})
        rundir.influence(cell, name).touch()
    for shard in cell.shards:
        path = rundir.feature_part("pixels", cell, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if not keep_features:
        shutil.rmtree(rundir.features)
    rundir.forget_derived(cell, [cell.shards[1]])
    assert read_sealed(rundir.score(cell, "small")) is not None, "its 50 images are all there"
    assert not rundir.score(cell, "large").exists()
    assert not rundir.influence(cell, "large").exists()
    assert not rundir.feature_part("pixels", cell, cell.shards[1]).exists()
    assert rundir.feature_part("pixels", cell, cell.shards[0]).exists() == keep_features


def test_the_fields_of_a_protocol_keep_their_order_and_values():
    """Tables and scores hold hashes of this JSON. If this fails, rows of old and new runs can't be told to be alike."""
    scoring, cell = evaluated(ORACLE, metrics=["fid", "kid", "prc"])
    spelled = scoring.protocol(cell).as_dict()
    assert set(spelled.pop("versions")) == {"taugrid", "torch", "torch-fidelity", "numpy", "scipy"}
    sha256 = spelled["reference"].pop("sha256")
    assert json.dumps(spelled) == (
        '{"reference": {"dataset": "gaussian", "split": "all", "num_images": 10000, "preprocessing": "8 bits, 1x4x4"}, '
        '"num_samples": 100, "weights": "ema", "tau": [200, 400, 600, 800, 1000], "clip": "none", '
        '"precision": "float32, no TF32", "rounding": "8 bits, to nearest", "extractor": {"name": "pixels", '
        '"weights_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", '
        '"feature_layer": "pixels", "logits_layer": null}, "metrics": ["fid", "kid", "prc"], "seed": 2020, '
        '"kid_subsets": 100, "kid_subset_size": 100, "prc_neighborhood": 3}'
    )
    assert sha256 == scoring.reference.sha256
