"""Scores and comparisons of external images as text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taugrid.eval.gate.power import POWER
from taugrid.eval.gate.rule import MARGIN_FLOOR
from taugrid.eval.gate.verdict import Verdict
from taugrid.eval.tables.long_form import shown_columns
from taugrid.eval.tables.table import shown_number
from taugrid.orchestrator.baseline.text import least_margin
from taugrid.orchestrator.external import of_all
from taugrid.protocol import extractor_in_words
from taugrid.registry.metrics import MetricColumn
from taugrid.words import counted, in_columns, listed, short_path

Document = Mapping[str, Any]

SHOWN_NAMES = 3
"""The worst pairs that the text names."""


def scores_text(documents: Sequence[Document]) -> str:
    """Scores of sets of images (`eval.standalone.score_sets`) against one reference: a column for each, or lines."""
    first, places = documents[0], [_place(scores["samples"]) for scores in documents]
    short = [short_path(place) for place in places]
    named = dict(zip(short if len(set(short)) == len(short) else places, documents, strict=True))
    columns = shown_columns(
        [name for scores in documents for name in scores["metrics"]], first["protocol"].get("metrics", ())
    )
    if len(documents) > 1:
        rows = [[column.heading, *(_number(column, scores["metrics"]) for scores in documents)] for column in columns]
        lines = in_columns([["", *named], *rows])
        shown = [column for column, row in zip(columns, rows, strict=True) if "±" in "".join(row)]
        lines += [f"{column.title}: ± is {column.error_means}" for column in shown]
    else:
        lines = [_score(column, first["metrics"]) for column in columns]
    lines += [_side("samples", scores["samples"]) for scores in documents]
    lines += [_side("reference", first["reference"]), _extractor(first["protocol"]["extractor"])]
    return "\n".join([*lines, *of_all(named, "notes"), *(f"warning: {line}" for line in of_all(named, "warnings"))])


def _score(column: MetricColumn, values: Mapping[str, float]) -> str:
    shown = _number(column, values)
    return f"{column.heading}: {shown}" + (f"   (± is {column.error_means})" if "±" in shown else "")


def _number(column: MetricColumn, values: Mapping[str, float]) -> str:
    return shown_number(values.get(column.name), values.get(column.error or ""))


def _place(about: Document) -> str:
    return str(about["dataset"] or about["path"])


def _side(called: str, about: Document) -> str:
    count = "moments" if about["num_images"] is None else counted(about["num_images"], "image")
    return f"{called}: {_place(about)} ({count}, SHA-256 {about['sha256'][:10]})"


def _extractor(recorded: Document) -> str:
    return f"extractor: {extractor_in_words(recorded)}, weights {recorded['weights_sha256'][:10]}"


def comparison_text(compared: Document) -> str:
    """The comparison of two sets of images (`view.images.compare_images`); the first line says which is new."""
    metrics = compared["metrics"]
    rows = [(column.heading, *_change(column, metrics[column.name])) for column in shown_columns(metrics)]
    a, b = compared["a"], compared["b"]
    lines = [f"B (new) - A: {_place(b)} - {_place(a)}", f"{compared['result']}; {compared['pairing']}", ""]
    lines += in_columns(rows)
    if compared["critical"] is not None:
        alpha = f"alpha = {compared['alpha']:g} for all metrics together (T > {compared['critical']:.2f})"
        least = least_margin(shown_columns(metrics), compared["margin"], MARGIN_FLOOR)
        lines.append(f"rule: margin {100 * compared['margin']:g} % of A's value{least}; {alpha}")
    lines += [f"not judged: {reason}" for reason in compared["not_judged"]]
    if compared["result"] == Verdict.COLLAPSED:
        of_a, of_b = (f"{100 * share:.3g} %" for share in compared["distinct"])
        lines.append(f"distinct images: {of_a} of A's, {of_b} of B's")
    lines += ["", *([] if compared["pairs"] is None else [*_pairs(compared), ""])]
    lines += [_side("A", a), _side("B", b), _side("reference", compared["reference"])]
    lines.append(_extractor(compared["extractor"]))
    # A note may be about both sides or one: "no fid_se:" of "A: no fid_se: 100 samples".
    about = {note: note.removeprefix("A: ").removeprefix("B: ").partition(":")[0] for note in compared["notes"]}
    unsaid = (note for note in about if not any(f"{about[note]}:" in said for said in compared["not_judged"]))
    return "\n".join([*lines, *unsaid, *(f"warning: {text}" for text in compared["warnings"])])


def _change(column: MetricColumn, row: Document) -> tuple[str, str, str]:
    """A's number and B's, the difference, and the verdict."""
    values = [shown_number(row[side], row[f"{side}_se"]) for side in ("a", "b")]
    difference = shown_number(row["difference"], row["se"])
    verdict = "shown, not judged" if row["verdict"] == Verdict.NOT_JUDGED else str(row["verdict"])
    if row["verdict"] == Verdict.UNDECIDED:
        verdict += f": a regression of {row['detectable']:.3g} is detected with {100 * POWER:g} % probability"
    return " -> ".join(values), f"{'+' if row['difference'] > 0 else ''}{difference}", verdict


def _pairs(compared: Document) -> Iterator[str]:
    pairs = compared["pairs"]
    share, called = f"{100 * pairs['identical_share']:.3g} %", {"0": "least", "0.5": "median", "1": "most"}
    yield f"identical images: {pairs['identical']:,} of {counted(pairs['count'], 'pair')} ({share})"
    for name, unit, of in (("psnr", " dB", "of the pairs that differ"), ("ssim", "", "of all pairs")):
        if (found := pairs[name]) is not None:
            quantiles = ", ".join(
                f"{called.get(share) or f'{100 * float(share):g} %'} {value:.3g}"
                for share, value in found["quantiles"].items()
            )
            yield f"{name.upper()} {of}: {shown_number(found['mean'], found['se'])}{unit}; {quantiles}"
    if pairs["worst"]:
        names = listed([pair["name"] for pair in pairs["worst"]], SHOWN_NAMES)
        folder = compared["written"]
        written = f"{folder}/worst_pairs.png" if folder else "--to FOLDER writes them as a picture"
        yield f"worst pairs: {names} ({written})"
