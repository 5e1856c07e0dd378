"""The protocol of a score: everything that two scores must share to be comparable, and the rules for comparing them."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import asdict, dataclass, fields
from typing import Any

from taugrid.hashing import identity
from taugrid.registry.metrics import MetricSettings, settings_of

ProtocolFields = Mapping[str, Any]  # a protocol as read back from a score file

SOFTWARE = ("torch", "torch-fidelity", "numpy", "scipy")  # the distributions whose versions are part of a protocol

SCORING = 1  # raised when the mathematics of a score changes. It stands in a protocol in place of taugrid's own version


@dataclass(frozen=True)
class ReferenceIdentity:
    """Which reference a score was computed against. A field is None where it is unknown."""

    dataset: str | None
    split: str | None
    num_images: int | None  # None if only a mean and a covariance are known
    preprocessing: str | None  # the steps by which its images reach the extractor
    sha256: str  # hash of its images, or of its file of mean and covariance


@dataclass(frozen=True)
class Protocol:
    """The definition of a score. Fields that describe sampling are None for external images."""

    reference: ReferenceIdentity
    num_samples: int
    weights: str | None  # `ema` or `raw`
    tau: tuple[float, ...] | None  # of ddim; None for other samplers, whose block has their times
    clip: str | None
    precision: str | None  # the precision in which the network computed
    rounding: str | None
    extractor: Mapping[str, str | None]  # its name, hashes of weights and source, layers, and precision if not float32
    metrics: MetricSettings
    versions: Mapping[str, str]
    compile: str | None = None  # the setting with which the network was compiled; None: it was not
    sampler: Mapping[str, Any] | None = None  # name and options of the sampler; None: it is ddim
    conditions: Mapping[str, Any] | None = None  # labels and guidance; None: the samples are unconditional
    decoder: Mapping[str, Any] | None = None  # the VAE that decoded latents; None: the network samples pixels

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data with the metric settings at the top level. Tables name a protocol by a hash of this."""
        versions = dict(self.versions)
        if "torch" in versions:  # +cpu or +cu128 names a build, and not what a score ran on
            versions["torch"] = versions["torch"].partition("+")[0]
        return {
            "reference": asdict(self.reference),
            "num_samples": self.num_samples,
            "weights": self.weights,
            "tau": None if self.tau is None else list(self.tau),
            "clip": self.clip,
            "precision": self.precision,
            "rounding": self.rounding,
            **{name: value for name in OPTIONAL if (value := getattr(self, name)) is not None},
            "extractor": dict(self.extractor),
            **self.metrics.as_dict(),
            "scoring": SCORING,
            "versions": versions,
        }


OPTIONAL = ("compile", "sampler", "conditions", "decoder")  # fields that a protocol has only if they are set


def on_devices(protocol: ProtocolFields, kinds: Mapping[str, Collection[str]] | None) -> ProtocolFields:
    """A recorded protocol with the kinds of device that sampled and scored, such as {"sampled": ["cuda"]}. CPU alone is
    left out."""
    others = {what: sorted(set(found)) for what, found in (kinds or {}).items() if set(found) - {"cpu"}}
    return {**protocol, "devices": others} if others else protocol


COMPARED = frozenset({"tau", "clip", "weights", "precision", "compile", "sampler", "decoder", "conditions.guidance"})
"""Fields that a grid varies on purpose, from cell to cell: comparisons are about them. All others must agree, because
each of them changes a score by itself. So must a field that is unknown here. Names of nested fields have dots: labels
and classes must agree, guidance need not."""

OF_METRICS = frozenset(field.name for field in fields(MetricSettings))
"""Fields that change the scores of some metrics alone. Which metrics were computed changes none, and a metric's
settings must agree where its own scores are compared (`settings_of`)."""

MAX_LIST_LENGTH = 60  # characters of a list that a message shows whole: a tau may have a thousand times

LABELS = frozenset({"reference.dataset", "reference.split"})  # names may differ; their `sha256` must agree


def extractor_in_words(extractor: Mapping[str, Any]) -> str:
    """The name of a protocol's extractor, with its precision unless that is float32."""
    return f"{extractor['name']} in {extractor['precision']}" if "precision" in extractor else str(extractor["name"])


def short_name(protocol: ProtocolFields) -> str:
    """8 hex digits by which tables name a protocol, from all of its fields."""
    return identity(protocol)[:8]


def comparability_key(protocol: ProtocolFields, columns: Collection[str] = ()) -> str:
    """A short hash of all fields that must agree: two scores are comparable if theirs are equal. `columns` are those of
    quality.csv that are compared; without them, it is of the fields that all metrics share."""
    return identity(dict(_must_agree(protocol, columns)))[:8]


def agreed_fields(protocol: ProtocolFields) -> dict[str, str]:
    """The fields that must agree for every metric, by their dotted names, with values for people."""
    return {name: shown(value) for name, value in _must_agree(protocol)}


def metric_settings(protocol: ProtocolFields) -> dict[str, str]:
    """The settings of its metrics, with values for people."""
    names = sorted(OF_METRICS - {"metrics"})
    return {name: shown(json.dumps(protocol[name])) for name in names if name in protocol}


def disagreements(
    protocols: Mapping[str, ProtocolFields], columns: Collection[str] = (), may_differ: Set[str] = COMPARED
) -> dict[str, dict[str, list[str]]]:
    """Field -> value -> the names in `protocols` that have it, for each field that must agree but does not. `columns`
    are as in `comparability_key`. Nested fields are joined by dots ("versions.torch"). Values are formatted for people;
    hashes are cut to ten digits."""
    flat = {name: dict(_must_agree(protocol, columns, may_differ)) for name, protocol in protocols.items()}
    fields = sorted({field for values in flat.values() for field in values})
    differing: dict[str, dict[str, list[str]]] = {}
    for field in fields:
        if len({values.get(field) for values in flat.values()}) > 1:
            by_value: dict[str, list[str]] = defaultdict(list)
            for name, values in flat.items():
                by_value[shown(values.get(field))].append(name)
            differing[field] = dict(by_value)
    return differing


def _must_agree(
    protocol: ProtocolFields, columns: Collection[str] = (), may_differ: Set[str] = COMPARED
) -> Iterator[tuple[str, str]]:
    """Dotted names, and values as JSON."""
    left_out = may_differ | LABELS | OF_METRICS.difference(settings_of(columns))
    return ((name, json.dumps(value, sort_keys=True)) for name, value in dotted(protocol, "", left_out))


def dotted(fields: Mapping[str, Any], path: str = "", without: Set[str] = frozenset()) -> Iterator[tuple[str, Any]]:
    """Nested fields by their dotted names, such as ("versions.torch", "2.9.1"); none of `without`, nor within them."""
    for key, value in fields.items():
        if (name := f"{path}{key}") in without:
            continue
        if isinstance(value, Mapping):
            yield from dotted(value, f"{name}.", without)
        else:
            yield name, value


def shown(text: str | None) -> str:
    """A JSON value, or none, for messages: long lists are cut, with a hash."""
    if text is not None and text.startswith("[") and len(text) > MAX_LIST_LENGTH:
        return f"{text[:20]} ... {text[-20:]} ({identity({'list': text})[:6]})"
    return "not set" if text is None else shortened(text.strip('"'))


def shortened(text: str) -> str:
    """The first ten digits of a hash; any other text unchanged."""
    return text[:10] if len(text) >= 32 and set(text) <= set("0123456789abcdef") else text
