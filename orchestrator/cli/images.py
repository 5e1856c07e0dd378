"""What commands do with images from elsewhere (score, compare), and the texts that they print."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taugrid.errors import Exit, UserError
from taugrid.eval.gate.rule import MARGIN_FLOOR, POWER
from taugrid.eval.gate.verdict import Verdict, exit_of
from taugrid.eval.tables.long_form import shown_columns
from taugrid.eval.tables.table import shown_number
from taugrid.orchestrator.baseline.compared import GateSettings
from taugrid.orchestrator.baseline.comparison import compare_snapshots
from taugrid.orchestrator.baseline.files import snapshot_of
from taugrid.orchestrator.baseline.images import request_of, snapshot_of_images
from taugrid.orchestrator.baseline.snapshot import ImagesRequest
from taugrid.orchestrator.baseline.text import comparison_text, least_margin, scored_as
from taugrid.orchestrator.cli.options import RunOptions, print_value
from taugrid.orchestrator.external import of_all, score_images
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.view.images import compare_images
from taugrid.protocol import extractor_in_words
from taugrid.registry.metrics import MetricColumn
from taugrid.words import counted, in_columns, listed, short_path

Document = Mapping[str, Any]

SHOWN_NAMES = 3
"""The worst pairs that the text names."""


def score(given: dict[str, Any], requested: RunOptions) -> None:
    """Print the scores of sets of images; `given` are the options of `evaluate` for them."""
    samples, reference = given.pop("samples"), given.pop("reference")
    if len(set(samples)) < len(samples):
        raise UserError("--samples: a place is given twice; give each once")
    section = {key: list(value) if key == "metrics" else value for key, value in given.items()}
    changes, trusts = requested.assignments, requested.trust_code
    with Progress() as progress:
        scores = score_images(samples, reference, section, changes, progress, trust_code=trusts)
    document = scores[0] if len(scores) == 1 else {"samples": scores}
    print_value(document, requested.as_json, lambda _: _scores_text(scores))


def compare(a: str, b: str, scoring: dict[str, Any], judging: Mapping[str, Any], as_json: bool) -> None:
    """Print the comparison of two sets of images, and exit with its code."""
    if "reference" not in scoring:
        raise UserError(
            "--reference is missing; give what A and B are scored against: images, a data set with its split "
            "(fashion-mnist/train), or a run directory, whose reference and extractor are then used"
        )
    target = scoring.pop("target", None)
    with Progress() as progress:
        compared = compare_images(a, b, ImagesRequest(**scoring), progress, target, **judging)
    print_value(compared, as_json, _compared_text)
    if (code := exit_of(compared["result"], (), compared["not_judged"])) is not Exit.DONE:
        sys.exit(code)


def compare_with_baseline(
    images: str, baseline: str, judging: Mapping[str, Any], trust_code: bool, as_json: bool
) -> None:
    """Print the comparison of images with those of a baseline file, scored as these were, and exit with its code."""
    before = snapshot_of(baseline)
    request = request_of(before, trust_code)
    with Progress() as progress:
        new = snapshot_of_images(images, request, progress)
    gate = GateSettings(metrics=request.metrics or None, **judging)
    comparison = compare_snapshots(new, before, gate)
    (cell,), (old,) = new.cells, before.cells
    pairs = [f"{counted(cell.num_samples, 'pair')} by name"] if cell.names and cell.seed_set == old.seed_set else []
    about = [*pairs, *scored_as(request, cell.protocol)]
    print_value(comparison.as_dict(), as_json, lambda _: "\n".join([comparison_text(comparison), "", *about]))
    if comparison.exit is not Exit.DONE:
        sys.exit(comparison.exit)


def _scores_text(documents: Sequence[Document]) -> str:
    """Scores of sets of images (`eval.standalone.score_sets`) against one reference: a column for each, or lines."""
    first, places = documents[0], [_place(scores["samples"]) for scores in documents]
    short = [short_path(place) for place in places]
    named = dict(zip(short if len(set(short)) == len(short) else places, documents, strict=True))
    names = [name for scores in documents for name in scores["metrics"]]
    columns = shown_columns(names, first["protocol"].get("metrics", ()))
    rows, lines, meanings = [], [], []
    for column in columns:
        values = [scores["metrics"] for scores in documents]
        numbers = [shown_number(each.get(column.name), each.get(column.error or "")) for each in values]
        rows.append([column.heading, *numbers])
        about = f"± is {column.error_means}" if "±" in "".join(numbers) else ""
        lines.append(f"{column.heading}: {numbers[0]}" + (f"   ({about})" if about else ""))
        meanings += [f"{column.title}: {about}"] if about else []
    if len(documents) > 1:
        lines = [*in_columns([["", *named], *rows]), *meanings]
    lines += [_side("samples", scores["samples"]) for scores in documents]
    lines += [_side("reference", first["reference"]), _extractor(first["protocol"]["extractor"])]
    return "\n".join([*lines, *of_all(named, "notes"), *(f"warning: {line}" for line in of_all(named, "warnings"))])


def _place(about: Document) -> str:
    return str(about["dataset"] or about["path"])


def _side(called: str, about: Document) -> str:
    count = "moments" if about["num_images"] is None else counted(about["num_images"], "image")
    return f"{called}: {_place(about)} ({count}, SHA-256 {about['sha256'][:10]})"


def _extractor(recorded: Document) -> str:
    return f"extractor: {extractor_in_words(recorded)}, weights {recorded['weights_sha256'][:10]}"


def _compared_text(compared: Document) -> str:
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
