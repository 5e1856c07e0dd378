import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from snapshots import raises, recorded

from taugrid import parquet
from taugrid.config import Data
from taugrid.eval import standalone
from taugrid.eval.features import load as extractors
from taugrid.eval.features.resolve import resolve
from taugrid.eval.metrics import kernel, statistics
from taugrid.eval.metrics.frechet import NO_ERROR_AT_INFINITY, Frechet
from taugrid.eval.metrics.projections import monge_distance
from taugrid.eval.metrics.reference_statistics import ReferenceStatistics
from taugrid.eval.metrics.score import feasible, score
from taugrid.eval.metrics.statistics import Moments
from taugrid.eval.reference import Reference, open_reference
from taugrid.eval.sources import open_images
from taugrid.images import encode_png
from taugrid.registry.extractors import DIGITS_CONVNET, EXTRACTORS, PIXELS, ExtractorSpec
from taugrid.registry.metrics import METRICS, MetricSettings
from taugrid.workers.data.load import load_images

pytestmark = pytest.mark.usefixtures("one_thread")

VERSIONS = {"taugrid": "0"}
OF_IMAGES = tuple(name for name, metric in METRICS.items() if not metric.sample_columns)
ALL = MetricSettings(metrics=OF_IMAGES, kid_subsets=10, kid_subset_size=100)
SAMPLES = 700


@pytest.fixture(scope="module")
def digits():
    return load_images(Data())


@pytest.fixture(scope="module")
def cell(digits):
    noise = np.random.default_rng(0).normal(0, 60, (SAMPLES, *digits.shape[1:]))
    return np.clip(np.rint(digits[:SAMPLES] + noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def spec():
    return resolve(DIGITS_CONVNET, "digits", None, (1, 8, 8))


def as_folder(folder, batch):
    folder.mkdir()
    for i, image in enumerate(batch):
        (folder / f"{i:07d}.png").write_bytes(encode_png(image))
    return open_images(str(folder))


def as_npz(path, batch):
    np.savez(path, batch.transpose(0, 2, 3, 1))
    return open_images(str(path))


def as_shard(path, batch):
    settings = dict.fromkeys(("sigma", "spacing", "sampler", "clip", "cell", "model"), "") | {
        "seed": 0, "steps": 1, "eta": 0.0,
    }  # fmt: skip
    with parquet.PartWriter(path, parquet.sample_schema({})) as part:
        writer = parquet.SampleWriter(part, settings, 0)
        writer.append(batch)
        writer.finish()
        part.commit(replace=False)
    return open_images(str(path))


def as_reference(given):
    return given if isinstance(given, Reference) else Reference(given)


def evaluate(samples, reference, extractor, settings, **options):
    given = standalone.Options(**options)
    return standalone.score_sets([samples], as_reference(reference), extractor, settings, given)[0].document


@pytest.mark.long
def test_every_metric_of_images_is_given_with_its_progress(tmp_path, spec, cell, digits):
    samples, reference = as_folder(tmp_path / "cell", cell), as_shard(tmp_path / "digits.parquet", digits)
    seen = []
    result = evaluate(
        samples, reference, spec, ALL, versions=VERSIONS, cache=tmp_path / "cache",
        progress=lambda what, done, total: seen.append((what, done, total)),
    )  # fmt: skip
    columns = {name for metric in ALL.metrics for column in METRICS[metric].columns for name in column.names}
    assert set(result["metrics"]) == columns - {"recall_se", "fid_exact"}
    extract = extractors.load(spec, "cpu")
    features = [extract(torch.tensor(images)).features.numpy() for images in (cell, digits)]
    for name, kernel_of in (("kid", None), ("cmmd", kernel.UNIT_GAUSSIAN)):
        found = kernel.discrepancy(*features, {}, kernel_of)
        assert result["metrics"][name] == pytest.approx(found.value, rel=1e-6)
        error = statistics.standard_error(found.reference_influence)
        assert result["metrics"][f"{name}_reference_se"] == pytest.approx(error, rel=1e-6)
    mind = monge_distance(*features, ALL.mind_projections, ALL.seed)
    assert result["metrics"]["mind"] == pytest.approx(mind.value, rel=1e-6)
    assert result["notes"] == [NO_ERROR_AT_INFINITY]
    assert seen[-1] == ("samples", SAMPLES, SAMPLES)
    assert ("reference", len(digits), len(digits)) in seen
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.long
def test_the_same_images_give_the_same_numbers_however_they_are_kept(tmp_path, spec, cell, digits):
    references = [as_folder(tmp_path / "digits", digits), as_npz(tmp_path / "d.npz", digits)]
    samples = [as_npz(tmp_path / "a.npz", cell), as_shard(tmp_path / "a.parquet", cell)]
    one, other = (evaluate(s, r, spec, ALL, versions=VERSIONS) for s, r in zip(samples, references, strict=True))
    assert one["metrics"] == other["metrics"]
    assert one["protocol"] == other["protocol"]
    assert one["samples"]["sha256"] == other["samples"]["sha256"]
    small = evaluate(samples[0], references[1], spec, ALL, versions=VERSIONS, batch_size=64)["metrics"]
    assert small == pytest.approx(one["metrics"], rel=1e-5)  # the network's own rounding may depend on the batch


def test_a_cached_reference_gives_the_same_numbers_and_is_not_extracted_again(tmp_path, spec, cell, digits):
    samples, reference = as_npz(tmp_path / "a.npz", cell), as_npz(tmp_path / "d.npz", digits)
    for settings in (MetricSettings(metrics=("fid", "isc")), ALL):
        seen, results = ([], []), []
        for whats in seen:
            tell = lambda what, *_: whats.append(what)  # noqa: B023, E731, called before the loop goes on
            results.append(
                evaluate(samples, reference, spec, settings, versions=VERSIONS, cache=tmp_path / "cache", progress=tell)
            )
        assert results[0] == results[1]
        assert [{*whats} for whats in seen] == [{"samples", "reference"}, {"samples"}]
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".npz", ".parquet"]


def test_moments_alone_give_fid_and_say_why_not_the_rest(tmp_path, spec, cell, digits):
    reference = as_npz(tmp_path / "d.npz", digits)
    features = extractors.load(spec, "cpu")(torch.tensor(digits)).features.numpy().astype(np.float64)
    np.savez(tmp_path / "stats.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    samples = as_npz(tmp_path / "a.npz", cell)
    whole = evaluate(samples, reference, spec, ALL, versions=VERSIONS)
    result = evaluate(
        samples, open_reference(str(tmp_path / "stats.npz")), spec, ALL, versions=VERSIONS, cache=tmp_path / "cache"
    )
    given = {"fid", "fid_se", "isc_mean", "isc_std", "isc_se", "fid_infinity"}
    assert result["metrics"] == pytest.approx({k: whole["metrics"][k] for k in given}, rel=1e-9)
    recorded("\n".join(result["notes"]))
    assert result["reference"]["num_images"] is None
    assert result["protocol"]["reference"]["num_images"] is None
    assert result["protocol"]["metrics"] == ["fid", "fid_infinity", "isc"]
    assert any("published FIDs" in warning for warning in result["warnings"])


def test_the_protocol_has_the_fields_of_a_runs(tmp_path, spec, cell):
    from taugrid.config.load import load
    from taugrid.orchestrator.plan.grid import plan
    from taugrid.orchestrator.plan.scoring import scoring_of

    config = load("digits")
    planned = plan(config)
    theirs = scoring_of(config, planned).protocol(planned.cells[0]).as_dict()
    wanted = MetricSettings(tuple(theirs["metrics"]))
    samples, reference = as_npz(tmp_path / "a.npz", cell), as_npz(tmp_path / "d.npz", load_images(config.data))
    ours = evaluate(samples, reference, spec, wanted, versions=theirs["versions"])["protocol"]
    assert set(ours) == set(theirs)
    for field in ("extractor", "versions", "seed", "isc_splits", "kid_subsets"):
        assert ours[field] == theirs[field]
    unknown = {"dataset": None, "split": None}
    assert ours["reference"] == theirs["reference"] | unknown


def test_risks_are_said(tmp_path, spec, cell, digits):
    samples = as_npz(tmp_path / "a.npz", cell[:40])
    coloured = as_npz(tmp_path / "b.npz", np.repeat(digits[:40], 3, axis=1))

    def found(one, other):
        return " | ".join(standalone.warnings(one, as_reference(other), spec))

    recorded(found(samples, coloured))
    assert "same images" in found(samples, samples)
    assert "same images" not in found(samples, coloured)
    every = as_npz(tmp_path / "c.npz", digits)
    recorded(found(samples, every), "references")
    clean = as_npz(tmp_path / "d.npz", digits[::-1])
    assert standalone.warnings(every, as_reference(clean), spec) == []
    lossy = replace(samples, warnings=("JPEG",))
    assert "samples: JPEG" in found(lossy, every)
    assert "reference: JPEG" in found(every, lossy)


def test_what_cannot_be_given_is_said(tmp_path, spec, cell, digits):
    pixels = resolve(PIXELS, "digits", None, (1, 8, 8))
    samples, reference = as_npz(tmp_path / "a.npz", cell[:60]), as_npz(tmp_path / "d.npz", digits)
    result = evaluate(samples, reference, pixels, ALL, versions=VERSIONS)
    errors = ["no fid_se", "no kid_se", "no cmmd_se", "no mind_se"]
    notes = [note for note in result["notes"] if "kid_std" not in note]
    assert len(notes) == len(result["notes"]) - 1, "each KID subset holds all samples"
    beginnings = [note.split(":")[0] for note in notes]
    assert beginnings == ["no isc", "no fid_infinity", *errors]
    assert result["protocol"]["kid_subset_size"] == 60, "reduced, and recorded"
    of_kernels = {"kid_mean", "kid_std", "kid", "kid_reference_se", "cmmd", "cmmd_reference_se", "cmmd_biased"}
    others = {"precision", "precision_se", "recall", "mind", "mind_reference_se"}
    assert set(result["metrics"]) == {"fid"} | of_kernels | others
    with raises(ValueError):
        evaluate(samples, reference, pixels, MetricSettings(("isc",)), versions=VERSIONS)
    one = as_npz(tmp_path / "one.npz", cell[:1])
    with raises(ValueError):
        evaluate(one, reference, spec, MetricSettings(), versions=VERSIONS)
    with raises(ValueError):
        evaluate(samples, reference, pixels, MetricSettings(("ppl",)), versions=VERSIONS)
    coloured = as_npz(tmp_path / "b.npz", np.repeat(digits[:40], 3, axis=1))
    with raises(ValueError):
        evaluate(samples, coloured, pixels, MetricSettings(), versions=VERSIONS)
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    missing = replace(spec, weights_path=str(tmp_path / "none"))
    with raises(ValueError):
        evaluate(samples, open_reference(str(tmp_path / "stats.npz")), missing, MetricSettings(), versions=VERSIONS)
    with raises(ValueError):
        evaluate(samples, samples, spec, MetricSettings(), versions=VERSIONS, cache=tmp_path / "a.npz" / "cache")


@pytest.mark.parametrize(
    ("num_samples", "num_reference", "classes", "left"),
    [
        (2000, None, 10, ("fid", "isc", "fid_infinity")),
        (2000, 1, 10, ("isc", "fid_infinity")),
        (2000, 3, 10, ("fid", "isc", "kid", "kid_mean", "fid_infinity", "cmmd", "mind")),
        (3, 2000, None, ("fid", "kid", "kid_mean", "cmmd", "mind")),
        (4, 2000, None, ("fid", "kid", "kid_mean", "prc", "cmmd", "mind")),
        (1, 2000, 10, ()),
    ],
)
def test_what_is_feasible_follows_from_the_numbers_of_images(num_samples, num_reference, classes, left):
    spec = ExtractorSpec("own", None, "", "f", "logits" if classes else None, 64, classes)
    settings, reasons, _ = feasible(MetricSettings(tuple(METRICS)), spec, num_samples, num_reference)
    assert settings.metrics == left
    assert set(reasons) == set(METRICS) - set(left)


FEATURES = np.random.default_rng(1).normal(size=(9000, 6)).astype(np.float32)


@given(cuts=st.lists(st.integers(0, 9000), max_size=8))
def test_runs_depend_on_no_cut_of_the_stream(cuts):
    chunks = np.split(FEATURES, sorted(cuts))
    runs = list(statistics.runs(chunks, 9000))
    assert [len(run) for run in runs] == [4096, 4096, 808]
    assert np.array_equal(np.concatenate(runs), FEATURES)
    for count in (8999, 9001):
        with pytest.raises(ValueError, match=str(count)):
            list(statistics.runs(chunks, count))


def scored(features, reference_features, chunk, settings):
    moments = Moments.of(reference_features)
    reference = ReferenceStatistics(
        moments, statistics.symmetric_root(moments.covariance), len(reference_features), lambda: reference_features
    )

    def stream():
        return iter([features[i : i + chunk] for i in range(0, len(features), chunk)])

    return score(stream, stream, len(features), reference, settings)


@pytest.mark.parametrize("wanted", [("fid", "isc"), OF_IMAGES], ids=["streamed", "held"])
def test_streams_give_what_whole_arrays_give_bit_for_bit(wanted):
    """However the streams are cut; prc goes through a fifth of the samples, for its time grows with the square."""
    count = 9000 if "prc" not in wanted else 1800
    features, reference = FEATURES[:count], FEATURES[::-5] * 1.1 + 0.1
    settings = MetricSettings(wanted, kid_subsets=3)
    one, other, whole = (scored(features, reference, chunk, settings) for chunk in (97, 5000, count))
    assert one.values == other.values == whole.values
    assert one.influences.keys() == other.influences.keys() == whole.influences.keys() >= {"fid"}
    for name, influence in whole.influences.items():
        assert influence.shape == (count,)
        assert np.array_equal(one.influences[name], influence)
        assert np.array_equal(other.influences[name], influence)
    direct = Frechet.of(Moments.of(features), Moments.of(reference)).influence(features)
    assert whole.influences["fid"] == pytest.approx(direct, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("wanted", ["isc", "kid", "mind"])
def test_no_error_that_rests_on_few_samples(wanted):
    """Three of 600 samples are far from all others, in features and in logits: they alone would make the error."""
    column, settings = METRICS[wanted].columns[-1], MetricSettings((wanted,), kid_subset_size=100)
    features = np.concatenate([FEATURES[:597] * 0.01, np.eye(6, dtype=np.float32)[:3] * 40])
    assert column.sampling_error in scored(FEATURES[:600], FEATURES, 600, settings).values
    scores = scored(features, FEATURES, 600, settings)
    assert column.name in scores.values
    assert column.sampling_error not in scores.values
    assert scores.influences == {}
    [note] = scores.notes
    recorded(note, "samples")


def test_fid_and_isc_take_no_memory_that_grows_with_n():
    """What is allocated at once stays below two runs of float64, for 1 or 40 times as many features."""
    import tracemalloc

    chunk = np.random.default_rng(0).normal(size=(4096, 32)).astype(np.float32)
    moments = Moments.of(chunk)
    reference = ReferenceStatistics(moments, statistics.symmetric_root(moments.covariance), 4096)
    peaks = []
    for repeats in (2, 40):

        def stream(repeats=repeats):
            return (chunk for _ in range(repeats))

        tracemalloc.start()
        score(stream, stream, 4096 * repeats, reference, MetricSettings(("fid", "isc")))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    influence_and_splits = 38 * 4096 * 8 * 6
    assert peaks[1] - peaks[0] < influence_and_splits < 38 * chunk.nbytes / 2


@pytest.mark.long
def test_sets_are_scored_in_an_order_with_what_comparing_them_needs(tmp_path, spec, cell, digits):
    """Features that are kept are not extracted again, also of the same images elsewhere."""
    reference = as_npz(tmp_path / "d.npz", digits)
    order = np.random.default_rng(1).permutation(SAMPLES)
    sets = [as_folder(tmp_path / "a", cell), as_npz(tmp_path / "b.npz", cell[order])]
    seen = []

    def scored(*orders):
        options = standalone.Options(
            versions=VERSIONS, features=tmp_path / "features", progress=lambda what, *_: seen.append(what)
        )
        return standalone.score_sets(sets, Reference(reference), spec, ALL, options, orders)

    first = scored(None, np.argsort(order))
    assert first[0].document["metrics"] == first[1].document["metrics"]
    assert first[0].document == evaluate(sets[0], reference, spec, ALL, versions=VERSIONS)
    assert np.array_equal(first[0].digests, first[1].digests)
    for column in ("fid", "kid"):
        one, other = (scores.influences[column] for scores in first)
        assert statistics.standard_error(one) == pytest.approx(first[0].document["metrics"][f"{column}_se"])
        assert np.array_equal(one, other)
    assert {"reference", "samples 1", "samples 2"} == set(seen)
    seen.clear()
    assert scored()[1].influences["fid"] == pytest.approx(first[0].influences["fid"][order], rel=1e-6)
    assert set(seen) == {"reference"}


def test_features_by_other_code_of_a_shipped_extractor_are_not_mixed(tmp_path, monkeypatch, digits):
    """After an upgrade that prepares images differently; there are no other weights that could tell."""
    samples, reference = as_npz(tmp_path / "a.npz", digits[:200]), as_npz(tmp_path / "b.npz", digits[200:400])
    pixels = resolve(PIXELS, "digits", None, (1, 8, 8))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setitem(EXTRACTORS, PIXELS, replace(EXTRACTORS[PIXELS], extractor_class="shipped:Shipped"))

    def fid(scale, **kept):
        code = f"def forward(self, images):\n        return (images.flatten(1) * {scale},)"
        source = f"from taugrid.eval.features.networks import Pixels\n\n\nclass Shipped(Pixels):\n    {code}\n"
        (tmp_path / "shipped.py").write_text(source)
        sys.modules.pop("shipped", None)
        settings = MetricSettings(metrics=("fid",))
        return evaluate(samples, reference, pixels, settings, versions=VERSIONS, **kept)["metrics"]["fid"]

    kept = {"cache": tmp_path / "cache", "features": tmp_path / "features"}
    before, after = fid(0.01, **kept), fid(0.02, **kept)
    assert after == fid(0.02) != before
    assert fid(0.01, **kept) == before
