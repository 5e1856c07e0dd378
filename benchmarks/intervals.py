"""Whether errors of metrics, intervals of ablations and the marks of tables hold what they promise, in simulations.

    python -m benchmarks.intervals [--parts metrics single means equality effects marks infinity] [--repeats 2000]
                                   [--features 20] [--samples 200 500 1000]
    python -m benchmarks.intervals --parts real --run DIR [--samples 200 500 1000]

`metrics`, `single` and `equality` are of metrics: features are drawn, scored as a run scores them, and the number's
mean over the repeats is what intervals have to cover. `means` has plain means in place of metrics. `real`
draws from the features of a run's cells, with replacement, against 10,000 features of its reference.

In `effects` and `marks`, samples are influences of FID: each of its setting's noise, which all trainings share, and of
its own. A skewed world has exponential trainings and samples in place of normal ones. No part trains or samples a
network.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from taugrid import parquet
from taugrid.eval.metrics.frechet import Frechet, fid_infinity, frechet_distance
from taugrid.eval.metrics.kernel import Term, cubic
from taugrid.eval.metrics.reference_statistics import ReferenceStatistics
from taugrid.eval.metrics.score import MetricInputs, MetricResult
from taugrid.eval.metrics.statistics import (
    Array,
    Features,
    Moments,
    carrying,
    standard_error,
    symmetric_root,
    too_few_carry,
)
from taugrid.eval.tables.seeds import (
    LEVEL,
    critical_range,
    holm,
    level_against_best,
    mean_over_seeds,
    shared_error,
)
from taugrid.registry.metrics import MetricSettings

PARTS = ("metrics", "single", "means", "equality", "effects", "marks", "infinity")
REAL = "real"
"""The part that needs a run."""
COMPARISONS = 9
N = 100
"""Samples of a cell."""
AT_ONCE = 100
"""Repeats in memory at a time."""

Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]
KINDS: dict[str, Draw] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "skewed": lambda random, shape: random.standard_exponential(shape) - 1,
}


def skewed_against_a_constant(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Skewed settings, the first of which, the base, never varies: nothing makes their differences symmetric."""
    values = KINDS["skewed"](random, shape)
    values[:, :1] = 0
    return values


class World(NamedTuple):
    """Where differences between trainings come from, in units of a cell's error of sampling."""

    between: float
    """The standard deviation between trainings."""
    shared: float
    """The share of a sample's influence (of its variance) that it has in every training."""


WORLDS = (World(0, 0.9), World(0.5, 0.9), World(1, 0.9), World(1, 0.5), World(3, 0.9), World(1, 0))


class Effects(NamedTuple):
    """Differences of settings from a base, whose truth is 0."""

    differences: Array
    """(repeats, comparisons, trainings)."""
    shared: Array
    """(repeats, comparisons): the error of the noise that trainings share, as estimated from influences."""


def effects(random: np.random.Generator, world: World, draw: Draw, trainings: int, repeats: int) -> Effects:
    """`COMPARISONS` settings and their base."""
    settings = COMPARISONS + 1
    common = draw(random, (repeats, settings, 1, N))
    own = draw(random, (repeats, settings, trainings, N))
    influences = np.sqrt(world.shared) * common + np.sqrt(1 - world.shared) * own
    influences = influences[:, 1:] - influences[:, :1]
    trained = world.between / np.sqrt(N) * draw(random, (repeats, settings, trainings))
    of_each = influences.std(axis=-1, ddof=1) / np.sqrt(N)
    of_mean = influences.mean(axis=2).std(axis=-1, ddof=1) / np.sqrt(N)
    return Effects(influences.mean(axis=-1) + trained[:, 1:] - trained[:, :1], shared_error(of_mean, of_each))


def report_effects(repeats: int) -> None:
    """The coverage of intervals and Holm's family-wise errors, with the shared noise and without it."""
    print(f"{COMPARISONS} comparisons with one base, {repeats} repeats; in brackets, without the shared noise")
    for kind, draw in (KINDS | {"skewed against a constant": skewed_against_a_constant}).items():
        for trainings in (3, 5, 10):
            for world in WORLDS:
                random = np.random.default_rng((23, trainings))
                covered, false = [], []
                for _ in range(0, repeats, AT_ONCE):
                    drawn = effects(random, world, draw, trainings, AT_ONCE)
                    for shared in (drawn.shared, np.zeros_like(drawn.shared)):
                        found = mean_over_seeds(drawn.differences, shared)
                        covered.append(np.abs(found.mean) <= found.half_width)
                        false.append((holm(found.p) < LEVEL).any(axis=-1))
                coverage = [100 * np.mean(covered[i::2]) for i in (0, 1)]
                errors = [100 * np.mean(false[i::2]) for i in (0, 1)]
                print(
                    f"{kind}, {trainings} trainings, sd between them {world.between:g}, shared {world.shared:.0%}: "
                    f"coverage {coverage[0]:.1f} % ({coverage[1]:.1f}), any false alarm {errors[0]:.1f} % "
                    f"({errors[1]:.1f})",
                    flush=True,
                )


def report_marks(repeats: int) -> None:
    """How often some of k equal cells has no mark: with one training each, and over trainings."""
    print(
        f"columns of k equal cells, {repeats} repeats: share with a cell without a mark; in brackets, at 5 % for each"
    )
    for k in (4, 20):
        for kind, draw in KINDS.items():
            print(f"k = {k}, {kind}, one training: {_one_training(k, draw, repeats)}", flush=True)
            for trainings in (3, 5, 10):
                for spread in (1, 10):
                    said = _over_trainings(k, trainings, spread, draw, repeats)
                    print(f"k = {k}, {kind}, {trainings} trainings, spreads 1 to {spread}: {said}", flush=True)


def _one_training(k: int, draw: Draw, repeats: int) -> str:
    random, samples, missed = np.random.default_rng((24, k)), 4 * N, []
    scales = np.linspace(1, 2, k)[:, None]
    for _ in range(repeats):
        influences = scales * (draw(random, (1, samples)) + draw(random, (k, samples)))
        values = influences.mean(axis=1)
        covariance = np.cov(influences) / samples
        best = values.argmin()
        variances = np.diag(covariance) + covariance[best, best] - 2 * covariance[best]
        z = np.delete(values - values[best], best) / np.sqrt(np.delete(variances, best))
        missed.append((z.max() >= critical_range(covariance), z.max() >= critical_range(np.eye(2))))
    return "{:.1f} % ({:.1f})".format(*(100 * np.mean(missed, axis=0)))


def _over_trainings(k: int, trainings: int, spread: float, draw: Draw, repeats: int) -> str:
    random = np.random.default_rng((25, k, trainings))
    values = np.geomspace(1, spread, k)[:, None] * draw(random, (repeats, k, trainings))
    best = values.mean(axis=-1).argmin(axis=-1)
    p = mean_over_seeds(values - np.take_along_axis(values, best[:, None, None], axis=1)).p
    least = np.nanmin(p, axis=-1)
    return "{:.1f} % ({:.1f})".format(
        *(100 * np.mean(least < limit) for limit in (level_against_best(k, trainings), LEVEL))
    )


def report_infinity(repeats: int) -> None:
    """The scatter of fid_infinity between sets of samples, beside that of FID."""
    for d in (16, 64):
        scales = np.geomspace(2, 0.5, d)
        n = 10**9
        reference = Moments(n, np.zeros(d), np.diag(scales**2) * (n - 1))
        root = symmetric_root(reference.covariance)
        for per_dimension in (4, 10, 20, 50):
            for stretch in (1.0, 1.05, 1.3):
                random = np.random.default_rng((26, d))
                plain, extrapolated = [], []
                for seed in range(min(repeats, 200)):
                    features = stretch * random.standard_normal((per_dimension * d, d)) * scales
                    plain.append(frechet_distance(Moments.of(features), reference, root))
                    extrapolated.append(fid_infinity(features, reference, root, seed=seed))
                ratio = np.std(extrapolated) / np.std(plain)
                true = np.square((stretch - 1) * scales).sum()
                said = (np.mean(extrapolated), ratio, np.mean(np.array(extrapolated) < 0))
                print(
                    f"{d} features, N = {per_dimension * d}, FID {np.mean(plain):.3f}, true {true:.3f}: "
                    "fid_infinity {:.3f}, scatters {:.2f} times as much, {:.0%} negative".format(*said),
                    flush=True,
                )


SHAPES: dict[str, Draw] = KINDS | {"heavy-tailed": lambda random, shape: random.standard_t(5, shape) * np.sqrt(0.6)}
"""Of features; variance 1."""
NEAR, FAR = (1.05, 0.1), (1.3, 0.5)
"""A model's features: the data's, scaled and shifted by so much."""
EQUAL = (1.0, 0.0)
METRICS_WITH_ERRORS = ("fid", "isc", "kid", "prc", "cmmd", "mind")
REFERENCES = 1000
PROJECTIONS = 20
"""Directions of MIND here: as many as there are features, to save time."""


class Data(NamedTuple):
    """A fixed reference, and what features and logits are made of."""

    draw: Draw
    scales: Features
    """(d,): standard deviations fall as 1 / sqrt(i), and their mean square is 1."""
    to_logits: Features
    """(d, classes)."""
    reference: ReferenceStatistics

    @classmethod
    def of(cls, kind: str, dimensions: int) -> "Data":
        random = np.random.default_rng((27, dimensions))
        scales = np.arange(1, dimensions + 1) ** -0.5
        scales = (scales * np.sqrt(dimensions / np.square(scales).sum())).astype(np.float32)
        to_logits = random.standard_normal((dimensions, 10 if dimensions < 100 else 1008)) * 2 / np.sqrt(dimensions)
        unknown = ReferenceStatistics(Moments(0, np.zeros(0), np.zeros((0, 0))), np.zeros((0, 0)), None)
        data = cls(SHAPES[kind], scales, to_logits.astype(np.float32), unknown)
        return data.with_reference(data.draw(random, (REFERENCES, dimensions)))

    def with_reference(self, noise: Array) -> "Data":
        """The same with a reference made from `noise` (m, d)."""
        features = noise.astype(np.float32) * self.scales
        moments = Moments.of(features)
        root = symmetric_root(moments.covariance) if len(self.scales) < 100 else np.zeros((0, 0))  # FID alone needs it
        return self._replace(reference=ReferenceStatistics(moments, root, len(noise), lambda: features))

    def score(self, noise: Array, model: tuple[float, float], metrics: Sequence[str]) -> MetricResult:
        """The scores of a model's samples, made from `noise` (n, d), with all influences, whatever they rest on."""
        features = (model[0] * noise + model[1]).astype(np.float32) * self.scales
        logits, n = features @ self.to_logits, len(noise)
        settings = MetricSettings(tuple(metrics), kid_subsets=1, kid_subset_size=2, mind_projections=PROJECTIONS)
        inputs = MetricInputs(n, lambda: iter((features,)), features, lambda: iter((logits,)), self.reference, settings)
        scores = [resolve_name(metric.compute)(inputs) for metric in settings.chosen]
        values = {name: value for score in scores for name, value in score.values.items()}
        influences = {name: phi for score in scores for name, phi in score.influences.items()}
        of_reference = {name: phi for score in scores for name, phi in score.reference_influences.items()}
        typical = {name: phi for score in scores for name, phi in score.typical_influences.items()}
        return MetricResult(values, influences, (), of_reference, typical)


class Interval(NamedTuple):
    value: float
    error: float
    given: bool
    """Whether it rests on enough samples, see `too_few_carry`."""


def intervals(data: Data, n: int, metrics: Sequence[str], repeats: int) -> dict[str, dict[str, Array]]:
    """Near, far or their paired difference -> column -> (repeats, 3), each row an `Interval`.

    The two models share half of the numbers that their samples are made from.
    """
    found: dict[str, dict[str, list[Interval]]] = {"near": {}, "far": {}, "far - near": {}}
    for repeat in range(repeats):
        random = np.random.default_rng((28, n, repeat))
        noise, other = (data.draw(random, (n, len(data.scales))) for _ in range(2))
        near = data.score(noise, NEAR, metrics)
        far = data.score(np.where(random.integers(2, size=noise.shape), noise, other), FAR, metrics)
        for name in near.influences:
            given = [has_error(score, name) for score in (near, far)]
            for i, score in enumerate((near, far)):
                interval = Interval(score.values[name], standard_error(score.influences[name]), given[i])
                found[("near", "far")[i]].setdefault(name, []).append(interval)
            error = standard_error(near.influences[name] - far.influences[name])
            difference = Interval(far.values[name] - near.values[name], error, all(given))
            found["far - near"].setdefault(name, []).append(difference)
    return {said: {name: np.array(rows) for name, rows in columns.items()} for said, columns in found.items()}


def has_error(score: MetricResult, name: str) -> bool:
    """Whether a run would give an error. FID has its own rule and always has one here."""
    return name == "fid" or too_few_carry(score.influences[name], score.typical_influences.get(name)) is None


def coverage(found: Array) -> str:
    """The coverage of the mean where an error is given; in how many repeats one is; the coverage if it always were."""
    values, errors, given = found.T
    covered = np.abs(values - values.mean()) <= 1.96 * errors
    said = f"{100 * covered[given > 0].mean():.1f} ({given.mean():.0%})" if given.mean() >= 0.05 else "none"
    return f"{said} {100 * covered.mean():.1f}"


def report_metrics(repeats: int, features: Sequence[int], samples: Sequence[int]) -> None:
    """Coverage of metrics and of paired differences, for three shapes of features and two models."""
    print("coverage in % where an error is given (how often one is), and if it always were")
    for d, n, kind in product(features, samples, SHAPES):
        metrics = [name for name in METRICS_WITH_ERRORS if d < 100 or name != "fid"]
        for said, found in intervals(Data.of(kind, d), n, metrics, repeats).items():
            columns = ", ".join(f"{name} {coverage(values)}" for name, values in found.items())
            print(f"{d} features, N = {n}, {kind}, {said}, {repeats} repeats: {columns}", flush=True)


def report_real(repeats: int, run: Path, samples: Sequence[int]) -> None:
    """Coverage of KID where the features of a run's cell are the population: of every fifth cell of each extractor."""
    print("coverage of KID in % where an error is given (how often one is), and if it always were")
    for at in sorted((run / "features").glob("*/reference-*")):
        reference = _features_in(at)[:10_000]
        kernel = cubic(reference.shape[1])
        of_reference = Term.of(kernel, reference, reference).of_x
        for cell, n in product(sorted(set(at.parent.iterdir()) - {at})[::5], samples):
            population, random = _features_in(cell), np.random.default_rng((31, n))
            between = Term.of(kernel, population, reference)
            found, carries = [], []
            for _ in range(some := min(repeats, int(repeats * (1000 / n) ** 2))):
                drawn = random.integers(len(population), size=n)
                within = Term.of(kernel, population[drawn], population[drawn])
                influence = 2 * (within.of_x - between.of_x[drawn])
                given = too_few_carry(influence, of_reference) is None
                value = within.mean - 2 * between.of_x[drawn].mean()
                found.append(Interval(value, standard_error(influence), given))
                carries.append(carrying(influence))
            low, high = np.quantile(carries, (0.05, 0.95))
            said = f"{coverage(np.array(found))}, carried by {low:.0f} to {high:.0f} samples (90 % of repeats)"
            print(f"{cell.name}, N = {n}, {some} repeats: {said}", flush=True)


def _features_in(folder: Path) -> Features:
    return np.concatenate(
        [f for part in sorted(folder.glob("part-*")) for _, f in parquet.read_features(part, "features")]
    )


def report_means(repeats: int) -> None:
    """Coverage of plain means whose samples are skewed or heavy-tailed: where `too_few_carry` draws its line."""
    draws: dict[str, tuple[Draw, float]] = {
        "normal": (KINDS["normal"], 0),
        "exponential": (KINDS["skewed"], 0),
        "square of normal": (lambda random, shape: random.standard_normal(shape) ** 2, 1),
        "square of exponential": (lambda random, shape: random.standard_exponential(shape) ** 2, 2),
        "lognormal": (lambda random, shape: np.exp(random.standard_normal(shape)), np.exp(0.5)),
        "square of t5": (lambda random, shape: random.standard_t(5, shape) ** 2, 5 / 3),
        "cube of t5": (lambda random, shape: random.standard_t(5, shape) ** 3, 0),
        "share of 2 %": (lambda random, shape: (random.random(shape) < 0.02).astype(float), 0.02),
        "share of 10 %": (lambda random, shape: (random.random(shape) < 0.1).astype(float), 0.1),
    }
    print(f"means, {repeats} repeats: with an error, coverage of these, errors that miss of all; without a limit")
    for name, (draw, mean) in draws.items():
        for n in (100, 200, 500, 1000, 5000):
            random = np.random.default_rng((29, n))
            rows = [draw(random, (n,)) for _ in range(repeats)]
            given = np.array([too_few_carry(row) is None for row in rows])
            missed = np.array([abs(row.mean() - mean) > 1.96 * standard_error(row) for row in rows])
            of_these = f"{100 - 100 * missed[given].mean():.1f} %" if given.mean() >= 0.05 else "-"
            print(
                f"{name}, N = {n}: {given.mean():.0%}, {of_these}, {np.mean(missed & given):.1%}; "
                f"{1 - missed.mean():.1%}",
                flush=True,
            )


def report_equality(repeats: int) -> None:
    """How often tests at 5 % find something where samples, references and another model are all alike."""
    print("alarms in % where nothing differs: a kernel's distance from 0, with both errors; two models, unpaired")
    for kind, n in product(SHAPES, (200, 1000)):
        data, alarms = Data.of(kind, 20), []
        some = min(repeats, int(repeats / (2 * n / 1000)))
        for repeat in range(some):
            random = np.random.default_rng((30, n, repeat))
            fresh = data.with_reference(data.draw(random, (REFERENCES, 20)))
            scores = [fresh.score(data.draw(random, (n, 20)), EQUAL, ("kid", "cmmd", "mind")) for _ in range(2)]
            alarms.append(_alarms(*scores))
        said = ", ".join(f"{name} {100 * np.mean([found[name] for found in alarms]):.1f}" for name in alarms[0])
        print(f"N = {n}, {kind}, {some} repeats: {said}", flush=True)


SPECTRA = (0, 0.5, 1, 1.5)
"""Standard deviations of features fall as i to minus this power."""
SINGLE = (EQUAL, (1.02, 0.02), NEAR, (1.1, 0.1), FAR)
"""Models whose FID is from 1 to several hundred times that of the data itself at this N."""

MILDLY_SKEWED: dict[str, Draw] = {"mildly skewed": lambda random, shape: (random.standard_gamma(4, shape) - 4) / 2}


def report_single(repeats: int) -> None:
    """Coverage of a single FID by intervals on FID, its root and its logarithm, and of KID; the reference is exact."""
    print("16 features, coverage in %: FID ± 1.96 fid_se, and the same error taken to the root and to the logarithm")
    ranges = {"FID": [100.0, 0.0], "root": [100.0, 0.0], "log": [100.0, 0.0]}
    for kind, power, n in product(KINDS, SPECTRA, (640, 2500)):
        floor = np.nan
        for model in SINGLE:
            values, errors = single_fids(KINDS[kind], power, model, n, repeats)
            mean, percent = values.mean(), on_scales(values, errors)
            floor = mean if model == EQUAL else floor
            for name, share in percent.items():
                ranges[name] = [min(ranges[name][0], share), max(ranges[name][1], share)]
            said = ", ".join(f"{name} {share:.1f}" for name, share in percent.items())
            ratio, correlation = errors.mean() / values.std(), np.corrcoef(values, errors)[0, 1]
            print(
                f"{kind}, spectrum i^-{power}, N = {n}, {mean / floor:.2f} times the floor: {said}; error over the "
                f"true one {ratio:.2f}, correlates with FID by {correlation:.2f}",
                flush=True,
            )
    print("; ".join(f"{name} {low:.1f} to {high:.1f}" for name, (low, high) in ranges.items()))
    print(
        f"KID, {REFERENCES} fixed references: coverage where kid_se is given (how often it is), and if it always were"
    )
    for (kind, draw), n, model in product((KINDS | MILDLY_SKEWED).items(), (640, 2500), (EQUAL, NEAR, FAR)):
        data = Data.of("normal", 16)._replace(draw=draw)
        data, rows = data.with_reference(draw(np.random.default_rng(33), (REFERENCES, 16))), []
        for repeat in range(repeats // (4 if n < 1000 else 8)):
            score = data.score(draw(np.random.default_rng((33, n, repeat)), (n, 16)), model, ("kid",))
            error = standard_error(score.influences["kid"])
            rows.append(Interval(score.values["kid"], error, has_error(score, "kid")))
        print(f"{kind}, N = {n}, model {model}, {len(rows)} repeats: {coverage(np.array(rows))}", flush=True)


def on_scales(values: Array, errors: Array) -> dict[str, float]:
    """Coverage in % of the mean of positive `values` by intervals on them, on their roots and on their logarithms."""
    mean = values.mean()
    found = {
        "FID": np.abs(values - mean) <= 1.96 * errors,
        "root": np.abs(np.sqrt(values) - np.sqrt(mean)) <= 1.96 * errors / (2 * np.sqrt(values)),
        "log": np.abs(np.log(values / mean)) <= 1.96 * errors / values,
    }
    return {name: 100 * float(covered.mean()) for name, covered in found.items()}


def single_fids(draw: Draw, power: float, model: tuple[float, float], n: int, repeats: int) -> tuple[Array, Array]:
    """FID and its error for `repeats` sets of n samples of a model, against the data's exact moments."""
    random, scales = np.random.default_rng((32, n)), np.arange(1.0, 17) ** -power
    exact = 10**9
    reference = Moments(exact, np.zeros(16), np.diag(scales**2) * (exact - 1))
    found = []
    for _ in range(repeats):
        features = (model[0] * draw(random, (n, 16)) + model[1]) * scales
        frechet = Frechet.of(Moments.of(features), reference)
        found.append((frechet.distance, standard_error(frechet.influence(features))))
    values, errors = np.array(found).T
    return values, errors


def _alarms(one: MetricResult, other: MetricResult) -> dict[str, bool]:
    """Whether each test at 5 % finds something; without an error, it does not."""

    def beyond(value: float, *errors: float) -> bool:
        return abs(value) > 1.96 * float(np.linalg.norm(errors))

    found = {}
    for name in ("kid", "cmmd", "mind"):
        errors = [standard_error(score.influences[name]) for score in (one, other)]
        given = all(has_error(score, name) for score in (one, other))
        if name != "mind":
            of_reference = standard_error(one.reference_influences[name])
            found[name] = given and beyond(one.values[name], errors[0], of_reference)
        found[f"{name} of two"] = given and beyond(one.values[name] - other.values[name], *errors)
    return found


def main() -> None:
    """Print the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, REAL), default=PARTS)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--features", nargs="+", type=int, default=[20])
    parser.add_argument("--samples", nargs="+", type=int, default=[200, 500, 1000])
    parser.add_argument("--run", type=Path, help="of part `real`: a run directory with features")
    given = parser.parse_args()
    if REAL in given.parts and given.run is None:
        parser.error("the part `real` needs --run DIR, a run directory with features")
    reports = {
        "metrics": lambda repeats: report_metrics(repeats, given.features, given.samples),
        "single": report_single,
        "means": report_means,
        REAL: lambda repeats: report_real(repeats, given.run, given.samples),
        "equality": report_equality,
        "effects": report_effects,
        "marks": report_marks,
        "infinity": report_infinity,
    }
    with threadpool_limits(1):
        for part in given.parts:
            reports[part](given.repeats)


if __name__ == "__main__":
    main()
