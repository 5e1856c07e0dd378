"""Identities of evaluations, and what becomes of scores when images go."""

import json
import shutil
from dataclasses import replace

import pytest
from snapshots import raises, recorded

from taugrid.config import Config, validate
from taugrid.errors import UserError
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.plan.scoring import scoring_of
from taugrid.orchestrator.report.collect import exact_fid
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.orchestrator.work.scorer import SAME_SETUP_TOLERANCE, TOLERANCE, setup_of, tolerance
from taugrid.protocol import Protocol, ReferenceIdentity, comparability_key, disagreements, on_devices, short_name
from taugrid.registry.metrics import COLUMNS, MetricSettings
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
    return scoring_of(config, found), found.cells[0]


def score_id(values, **evaluate):
    scoring, cell = evaluated(values, **evaluate)
    return scoring.id(cell)


def test_ids_of_evaluations_never_change():
    """People have scores under these names. If this fails, an edit has orphaned every score there is."""
    assert score_id(DIGITS) == "ee6c443440"
    assert score_id(ORACLE, metrics=["fid", "prc", "fid_infinity"]) == "af50dffe99"


def test_another_reference_or_metric_is_another_evaluation():
    test_split = {"name": "gaussian", "shape": [1, 4, 4], "split": "test"}
    ids = [score_id(ORACLE, **changes) for changes in ({}, {"metrics": ["fid"]}, {"reference": test_split})]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("evaluate", [{"metrics": ["isc"]}, {"reference": {"name": "digits"}}])
def test_what_no_samples_can_give_and_a_reference_of_another_shape_are_refused_before_any_work(evaluate):
    with raises(UserError):
        evaluated(ORACLE, **evaluate)


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
    gone = (rundir.score(cell, "large"), rundir.influence(cell, "large"))
    assert not any(path.exists() for path in (*gone, rundir.feature_part("pixels", cell, cell.shards[1])))
    assert rundir.feature_part("pixels", cell, cell.shards[0]).exists() == keep_features


def test_the_fields_of_a_protocol_keep_their_order_and_values():
    """Tables and scores hold hashes of this JSON. If this fails, rows of old and new runs can't be told to be alike."""
    scoring, cell = evaluated(ORACLE, metrics=["fid", "kid", "prc"])
    spelled = scoring.protocol(cell).as_dict()
    assert set(spelled.pop("versions")) == {"torch", "torch-fidelity", "numpy", "scipy"}
    sha256 = spelled["reference"].pop("sha256")
    recorded(json.dumps(spelled))
    assert spelled["extractor"]["weights_sha256"].startswith("e3b0c44298fc1c149afbf4c8")
    assert sha256 == scoring.reference.sha256


REFERENCE = {"dataset": "x", "split": "all", "num_images": 9, "preprocessing": "8 bits, 1x4x4", "sha256": "ab"}
EXTRACTOR = {"name": "pixels", "weights_sha256": "e3", "feature_layer": "pixels", "logits_layer": None}


def recorded_now(torch="2.13.0+cpu", metrics=("fid",), settings=None, **more):
    """A protocol as it is recorded where torch has this version."""
    versions = {"torch": torch, "torch-fidelity": "0.4.0", "numpy": "2.4.6", "scipy": "1.17.1"}
    return Protocol(
        ReferenceIdentity(**REFERENCE), num_samples=100, weights="ema", tau=(500, 1000), clip="none",
        precision="float32, no TF32", rounding="8 bits, to nearest", extractor=EXTRACTOR,
        metrics=MetricSettings(metrics=metrics, **settings or {}), versions=versions, **more,
    ).as_dict()  # fmt: skip


def test_the_hashes_of_a_protocol_are_pinned():
    """Tables of people's runs hold these."""
    assert (short_name(recorded_now()), comparability_key(recorded_now())) == ("c436a60f", "6e868625")


@pytest.mark.parametrize("torch", ["2.13.0", "2.13.0+cu128"])
def test_a_protocol_does_not_depend_on_what_torch_was_built_for(torch):
    now = recorded_now(torch)
    assert now["versions"] == {"torch": "2.13.0", "torch-fidelity": "0.4.0", "numpy": "2.4.6", "scipy": "1.17.1"}
    assert now["scoring"] == 1
    assert now == recorded_now()
    assert disagreements({"now": recorded_now("2.14.0+cpu"), "then": now}) == {
        "versions.torch": {"2.14.0": ["now"], "2.13.0": ["then"]}
    }


def test_other_mathematics_devices_samplers_and_conditions_are_other_protocols():
    now = recorded_now()
    others = [
        now | {"scoring": 2},
        on_devices(now, {"sampled": {"cuda"}, "scored": {"cpu"}}),
        on_devices(now, {"sampled": {"cuda"}, "scored": {"cuda"}}),
        recorded_now(sampler={"name": "heun"}),
        recorded_now(conditions={"labels": "balanced", "classes": 10}),
    ]
    assert len({short_name(protocol) for protocol in [now, *others]}) == 6
    assert comparability_key(others[3]) == comparability_key(now), "samplers are compared on purpose"
    assert len({comparability_key(protocol) for protocol in [now, *others]}) == 5
    assert disagreements({"a": now, "b": others[0]}) == {"scoring": {"1": ["a"], "2": ["b"]}}
    kinds = [on_devices(now, {"sampled": {kind}}) for kind in ("cuda", "rocm", "mps")]
    assert len({comparability_key(protocol) for protocol in [now, *kinds]}) == 4
    assert on_devices(now, {"sampled": {"cpu"}, "scored": {"cpu"}}) == now


def test_settings_of_a_metric_must_agree_for_that_metric_alone():
    """Equal FIDs stay comparable if other metrics are computed too, or in another way."""
    alone, both = recorded_now(), recorded_now(metrics=("fid", "kid", "prc"))
    fewer = recorded_now(metrics=("fid", "kid", "prc"), settings={"kid_subsets": 50})
    assert len({short_name(protocol) for protocol in (alone, both, fewer)}) == 3
    assert disagreements({"a": alone, "b": both, "c": fewer}) == {}
    for column in ("fid", "precision", "kid", "kid_se", "kid_reference_se"):
        assert disagreements({"b": both, "c": fewer}, (column,)) == {}
        assert comparability_key(both, (column,)) == comparability_key(fewer, (column,))
    for column in ("kid_mean", "kid_std"):
        assert disagreements({"b": both, "c": fewer}, (column,)) == {"kid_subsets": {"100": ["b"], "50": ["c"]}}
        assert comparability_key(both, (column,)) != comparability_key(fewer, (column,))
    shuffled = recorded_now(metrics=("fid", "kid", "prc"), settings={"seed": 1})
    apart = {name for name in COLUMNS if disagreements({"b": both, "c": shuffled}, (name,))}
    assert apart == {"isc_mean", "kid", "kid_mean", "fid_infinity", "mind"}, "what is drawn at random"


def test_rows_may_differ_in_guidance_and_decoder_and_must_agree_on_labels_classes_and_rounding():
    """Fields of the same names elsewhere must agree."""
    conditions = {"labels": "balanced", "classes": 10}
    guided = recorded_now(conditions=conditions | {"guidance": {"scale": 2.0, "times": [1, 2]}})
    unguided = recorded_now(conditions=conditions)
    assert comparability_key(guided) == comparability_key(unguided) != comparability_key(recorded_now())
    assert short_name(guided) != short_name(unguided)
    assert disagreements({"a": guided | {"decoder": {"vae": "1"}}, "b": unguided | {"decoder": {"vae": "2"}}}) == {}
    others = recorded_now(conditions={"labels": {"column": "y", "sha256": "0" * 64}, "classes": 10})
    found = disagreements({"a": unguided, "b": others})
    assert found["conditions.labels"] == {"balanced": ["a"], "not set": ["b"]}
    assert found["conditions.labels.sha256"] == {"not set": ["a"], "0" * 10: ["b"]}
    of_others = recorded_now(conditions=conditions | {"classes": 100})
    assert disagreements({"a": unguided, "b": of_others}) == {"conditions.classes": {"10": ["a"], "100": ["b"]}}
    assert list(disagreements({"a": unguided, "b": unguided | {"rounding": "truncated"}})) == ["rounding"]
    nested = unguided | {"extractor": {**unguided["extractor"], "conditions.guidance": 1, "decoder": 2}}
    assert len(disagreements({"a": unguided, "b": nested})) == 2


def test_the_kinds_of_device_are_those_of_a_cells_shards_features_and_score():
    def worker(name, device, **accelerator):
        about = {"node": "n", "device": device, "versions": {}, "threads": 1, "accelerator": accelerator}
        return {"event": "worker", "worker": name, **about}

    def shard(cell, worker):
        about = {"cell": cell, "path": "part-000000.parquet", "committed": True, "own": True, "copied": 0}
        return {
            "event": "shard",
            "worker": worker,
            "device": "",
            **about,
            "images": 1,
            "evaluations": 4,
            "seconds": 1.0,
        }

    def done(task, worker):
        event = task.partition("/")[0].replace("reference", "extract")
        return {"event": event, "task": task, "worker": worker, "device": ""}

    began = [
        {"event": "session", "stages": []}, worker("cpu", "cpu x86_64 AVX512"),
        worker("gpu", "NVIDIA H100 80GB HBM3", kind="cuda"), worker("amd", "AMD", kind="rocm", hip="7.0.51831"),
    ]  # fmt: skip
    made = [shard("a", "cpu"), shard("b", "gpu"), done("score/a", "cpu"), done("extract/b/0", "gpu")]
    history = RunHistory.of([*began, *made])
    assert history.device_kinds("a") == {"sampled": {"cpu"}, "scored": {"cpu"}}
    assert history.device_kinds("b") == {"sampled": {"cuda"}, "scored": {"cuda"}}
    history = RunHistory.of([*began, shard("a", "cpu"), done("reference/0", "gpu"), done("score/a", "cpu")])
    assert history.device_kinds("a")["scored"] == {"cpu", "cuda"}
    history = RunHistory.of([*began, shard("a", "amd")])
    assert history.device_kinds("a")["sampled"] == {"rocm"}, "torch calls it cuda"


def test_long_lists_are_cut_and_stay_apart():
    """A sampler may call the network at a thousand times, and two lists may differ in the middle alone."""
    times = [float(t) for t in range(999, 0, -10)]
    other = [*times[:50], 1.5, *times[51:]]
    both = {"a": {"sampler": {"times": times}}, "b": {"sampler": {"times": other}}}
    found = disagreements(both, may_differ=frozenset())
    shown = list(found["sampler.times"])
    assert len(shown) == 2
    assert all(text.startswith("[999.0, 989.0, 979.0 ... ") and len(text) < 60 for text in shown)


def test_other_code_of_an_extractor_is_another_evaluation_and_raw_weights_another_protocol():
    scoring, cell = evaluated(DIGITS)
    ids = {
        replace(scoring, extractor=replace(scoring.extractor, source_sha256=code)).id(cell) for code in (None, "a", "b")
    }
    assert len(ids) == 3
    _, raw = evaluated(DIGITS | {"sample": {"seed": 0, "weights": "raw"}})
    assert scoring.protocol(raw).as_dict()["weights"] == "raw"


def test_a_closed_form_is_known_of_rounding_to_nearest_alone():
    known = {}
    for rounding in ("round", "truncate"):
        config, found = planned(ORACLE | {"sample": ORACLE["sample"] | {"rounding": rounding}})
        known[rounding] = exact_fid(found.cells[0], "pixels", config.data) is not None
    assert known == {"round": True, "truncate": False}


def test_scores_of_other_versions_agree_to_a_wider_tolerance():
    one, other = (setup_of(["cpu, threads: 1"], {"torch": version}) for version in ("2.9", "2.10"))
    assert (tolerance(one, one), tolerance(one, other)) == (SAME_SETUP_TOLERANCE, TOLERANCE)
    unknown = setup_of(["cpu, threads: unknown"], {"torch": "2.9"})
    assert tolerance(unknown, unknown) == TOLERANCE
