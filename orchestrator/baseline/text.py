"""Comparisons with a baseline, and baseline files, as text; the headline of a night, too.

A comparison is plain data here (`BaselineComparison.as_dict`), as in a night's verdict.json.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from taugrid.eval.gate.power import POWER
from taugrid.eval.gate.verdict import Verdict
from taugrid.eval.tables.entries import shown_number
from taugrid.eval.tables.long_form import shown_columns
from taugrid.orchestrator.baseline.compared import sharpness_in_words
from taugrid.orchestrator.baseline.matching import labels_of
from taugrid.protocol import extractor_in_words
from taugrid.registry.metrics import COLUMNS, SAMPLED, MetricColumn
from taugrid.words import counted, in_columns, listed

CellDict = Mapping[str, Any]
"""A `CellComparison` as plain data."""

BAD, GOOD, NEUTRAL = "❌", "✅", "➖"

EXPLANATIONS = {
    Verdict.CHANGED_SAMPLER: "today's code makes other images with the baseline's network",
    Verdict.CHANGED_SCORER: "today's code gives the same images other scores",
    Verdict.CHANGED_PIXELS: "the same weights, software and device make other images",
    Verdict.COLLAPSED: "images that no longer vary, or can't be sampled or scored",
    Verdict.UNDECIDED: "N is too small to tell",
    Verdict.NOT_JUDGED: "some cells have no standard error in common",
    Verdict.IDENTICAL: "every image is the same",
}

MAX_LISTED = 6
"""The number of unmatched cells that are named."""

OTHER_COLUMNS = tuple(column for name, column in COLUMNS.items() if name != "fid")
"""Metrics other than FID. Those that judge no cell are shown beside the verdict."""

NOT_JUDGED = "shown, not judged"


def explained(verdict: Verdict) -> str:
    """The verdict with its explanation, such as "undecided: N is too small to tell"."""
    return f"{verdict}: {EXPLANATIONS[verdict]}" if verdict in EXPLANATIONS else verdict


def headline(comparison: Mapping[str, Any]) -> str:
    return f"{sign(comparison)} {'; '.join([explained(Verdict(comparison['result'])), *facts(comparison)])}"


def sign(comparison: Mapping[str, Any]) -> str:
    """Red for a regression. Green only if every cell was judged, and sampler and scorer are the baseline's."""
    result = Verdict(comparison["result"])
    if result.is_regression:
        return BAD
    checked = all(check["result"] in ("clean", "not applicable") for check in comparison["checks"].values())
    lacking = comparison["not_judged"] or comparison["missing"]
    return GOOD if result.rank >= Verdict.NOT_WORSE.rank and checked and not lacking else NEUTRAL


def facts(comparison: Mapping[str, Any]) -> list[str]:
    """The coverage, the sharpness, what was not judged and what was not checked, as phrases."""
    compared, total = comparison["compared"]
    facts = [f"{compared:,} of {counted(total, 'baseline cell')} compared"]
    sharpness = comparison["sharpnesses"]
    if sharpness and not Verdict(comparison["result"]).is_regression:  # that of a broken night is not the gate's
        facts.append(sharpness_in_words(sharpness))
    if reasons := comparison["not_judged"]:
        facts.append(f"not judged in full: {reasons[0]}")
    unknown = [name for name, check in comparison["checks"].items() if check["result"] == "unknown"]
    if unknown:
        facts.append(f"{' and '.join(unknown)} not checked")
    return facts


def counts(comparison: Mapping[str, Any]) -> str:
    """The number of cells of each verdict, such as "3 worse, 9 not worse"."""
    number_of = Counter(Verdict(cell["result"]) for cell in comparison["cells"])
    return ", ".join(f"{number_of[verdict]} {verdict}" for verdict in Verdict if number_of[verdict])


def check_lines(comparison: Mapping[str, Any], unsaid: Collection[str] = ("clean",)) -> list[str]:
    """A line for each canary whose result is not among `unsaid`."""
    return [
        f"{name} {'not checked' if check['result'] == 'unknown' else check['result']}: {check['reason']}"
        for name, check in comparison["checks"].items()
        if check["result"] not in unsaid
    ]


def tests(cell: CellDict) -> dict[str, Mapping[str, Any]]:
    """Column -> `MetricComparison` of each metric that a cell was judged by, that of its verdict first.

    Of a cell that was not judged, the first that is known.
    """
    judged = [(name, metric) for name, metric in cell["metrics"].items() if metric["verdict"] is not None]
    judged.sort(key=lambda item: (item[0] != cell["by"], Verdict(item[1]["verdict"]).rank))
    return dict(judged or list(cell["metrics"].items())[:1])


def judged_columns(cells: Iterable[CellDict]) -> list[MetricColumn]:
    """The metrics that `tests` has for some cell, in the order of the registry."""
    found = {name for cell in cells for name in tests(cell)}
    return [column for name, column in COLUMNS.items() if name in found]


def sides(metric: Mapping[str, Any], column: MetricColumn) -> tuple[str, str]:
    """The baseline's value and the new one whose difference was judged.

    They are those of a second look, which samples both networks once more, if there was one.
    """
    new, base = metric["judged"] or (metric["value"], metric["baseline"])
    return shown_number(_scaled(base, column)), shown_number(_scaled(new, column))


def change(metric: Mapping[str, Any], column: MetricColumn) -> str:
    """The judged difference with its sign and standard error; empty if there is none."""
    if metric["difference"] is None:
        return ""
    shown = shown_number(_scaled(metric["difference"], column), _scaled(metric["se"], column))
    return f"{'+' if metric['difference'] > 0 else ''}{shown}"


def _scaled(value: float | None, column: MetricColumn) -> float | None:
    return None if value is None else value * column.scale


def reason(cell: CellDict) -> str:
    """The reason for a cell's verdict, in one line: the metric of the verdict first."""
    said = []
    for name, metric in tests(cell).items():
        column = COLUMNS[name]
        base, new = sides(metric, column)
        said.append(f"{column.title} {base} -> {new}, change {change(metric, column) or 'unknown'}")
        if metric["t"] is not None:
            said.append(f"T = {metric['t']:+.1f}, margin {metric['margin'] * column.scale:.3g}")
    return "; ".join([*said, *remarks(cell)])


def remarks(cell: CellDict) -> list[str]:
    """Facts about a cell that its numbers do not show."""
    remarks = []
    if cell["seeds"] != "usual":
        seeds = "a fresh seed" if cell["seeds"] == "fresh" else "more samples and a fresh seed"
        usual = (f"{column.title} {base} -> {new}" for column, (base, new) in _usual(cell).items())
        remarks.append(f"numbers of {seeds}; with the usual one: {', '.join(usual)}")
    judged = tests(cell)
    if len({metric["verdict"] for metric in judged.values()}) > 1:
        remarks.append(", ".join(f"by {COLUMNS[name].title}: {metric['verdict']}" for name, metric in judged.items()))
    first = next(iter(judged.items()), None)
    if cell["result"] == Verdict.UNDECIDED and first is not None and first[1]["detectable"] is not None:
        column, detectable = COLUMNS[first[0]], first[1]["detectable"]
        of_it = "" if column.name == "fid" else f" of {column.title}"
        detected = f"a regression{of_it} of {detectable * column.scale:.3g} is detected"
        remarks.append(f"{detected} with {100 * POWER:g} % probability")
        if (n := decisive(cell)) is not None:
            how = f"`--grow-to {n}`" if cell["grows"] else f"N = {n:,}"
            remarks.append(f"{how} would decide, if the networks are equal")
    if cell["pixels"] and cell["pixels"]["differing"]:
        remarks.append(_pixels(cell["pixels"]))
    return [*remarks, cell["note"]] if cell["note"] else remarks


def decisive(cell: CellDict) -> int | None:
    """The N that would decide an undecided cell, if the networks are equal; None if it is unknown.

    A margin in standard errors shrinks with them, so for a metric that has one only growth, which keeps it, decides.
    """
    undecided = {name: metric for name, metric in tests(cell).items() if metric["verdict"] == Verdict.UNDECIDED}
    needed: list[Any] = [metric["decisive"] for metric in undecided.values()]
    if None in needed or (not cell["grows"] and any(COLUMNS[name].may_be_zero for name in undecided)):
        return None
    return max(needed, default=None)


def _usual(cell: CellDict) -> dict[MetricColumn, tuple[str, str]]:
    """Metric -> the baseline's value and the new one with the usual seeds."""
    return {COLUMNS[name]: sides({**metric, "judged": None}, COLUMNS[name]) for name, metric in tests(cell).items()}


def _pixels(pixels: Mapping[str, Any]) -> str:
    """The number of images that differ, and by how many grey levels."""
    differing = f"{pixels['differing']:,} of {counted(pixels['images'], 'image')} differ"
    if pixels["largest"] is None:
        return f"{differing} (by how many grey levels is unknown: the baseline's images are gone)"
    return f"{differing}, by up to {counted(pixels['largest'], 'grey level')} ({pixels['mean']:.2g} on average)"


def other_metrics(new: Mapping[str, float], old: Mapping[str, float]) -> dict[str, tuple[float | None, float | None]]:
    """Column of quality.csv -> the new value and the baseline's, of the metrics other than FID that either side has."""
    sides = {column.name: (new.get(column.name), old.get(column.name)) for column in OTHER_COLUMNS}
    return {name: values for name, values in sides.items() if any(value is not None for value in values)}


def columns_in(cells: Iterable[CellDict]) -> list[MetricColumn]:
    """The metrics that some cell has and none was judged by, in the order of the registry."""
    cells = list(cells)
    given = {name for cell in cells for name in cell["others"]}
    judged = judged_columns(cells)
    return [column for column in shown_columns(given) if column not in judged]


def other_change(cell: CellDict, column: MetricColumn, arrow: str = "->") -> str:
    """Such as "2.31 -> 2.35": the baseline's value of a metric other than FID, and the new one."""
    new, old = (shown_number(_scaled(value, column)) for value in cell["others"].get(column.name, (None, None)))
    return f"{old} {arrow} {new}"


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """The verdict and which side is new, a line for each cell, and the checks, rule, other metrics and warnings."""
    cells = comparison["cells"]
    first = f"{headline(comparison)}; {comparison['directory']} (new) - {comparison['baseline']}"
    lines = [first, f"{counts(comparison)}.", ""]
    lines += in_columns((cell["result"], cell["label"], reason(cell)) for cell in cells)
    lines += ["", *check_lines(comparison, ("clean", "not applicable"))]
    lines += [f"not judged: {reason}" for reason in comparison["not_judged"]]
    lines += [f"missing: {name}: {message}" for name, message in comparison["missing"].items()]
    if comparison["critical"] is not None:
        lines.append(f"rule: {comparison['rule']}; margin {margin(comparison)}")
    if columns := columns_in(cells):
        lines.append(f"other metrics, {NOT_JUDGED}:")
        changes = (", ".join(f"{column.title} {other_change(cell, column)}" for column in columns) for cell in cells)
        lines += in_columns((f"  {cell['label']}", change) for cell, change in zip(cells, changes, strict=True))
    lines += [f"{title}: {names}" for title, names in unmatched(comparison, MAX_LISTED).items()]
    lines += [f"differs: {difference}" for difference in comparison["marks"]]
    lines += [f"warning: {note}" for note in comparison["notes"]]
    return "\n".join(lines)


def margin(comparison: Mapping[str, Any]) -> str:
    """The margin, such as "2 % of the baseline's FID and KID, of KID at least 0.15 of its standard error"."""
    cells = comparison["cells"]
    least = least_margin(judged_columns(cells), comparison["margin"], comparison["gate"]["margin_floor"])
    return f"{100 * comparison['margin']:g} % of the baseline's {titles(cells)}{least}"


def least_margin(columns: Iterable[MetricColumn], share: float, floor: float) -> str:
    """The end of a sentence on margins of this share: those of `columns` that have a floor."""
    floored = [column.title for column in columns if column.may_be_zero and share and floor]
    return f", of {' and '.join(floored)} at least {floor:g} of its standard error" if floored else ""


def titles(cells: Iterable[CellDict]) -> str:
    """The metrics that cells are judged by, such as "FID and KID"."""
    return " and ".join(column.title for column in judged_columns(cells))


def unmatched(comparison: Mapping[str, Any], limit: int) -> dict[str, str]:
    """The labels of the cells that only one side has, at most `limit` of each, by a title for them."""
    sides = {"not in the baseline": comparison["only_new"], "only in the baseline": comparison["only_baseline"]}
    labels = comparison["unmatched"]
    return {title: listed([labels.get(name, name) for name in names], limit) for title, names in sides.items() if names}


def scored_as(images: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[str]:
    """Lines with the reference and the extractor of images from elsewhere; `images` says how they were scored."""
    number = protocol["reference"]["num_images"]
    size = "mean and covariance" if number is None else counted(number, "image")
    return [f"reference: {images['reference']} ({size})", f"extractor: {extractor_in_words(protocol['extractor'])}"]


def baseline_text(value: Mapping[str, Any]) -> str:
    software = value["software"]
    commit = software.get("git_commit")
    lines = [
        f"baseline of {value['name']}, accepted {value['accepted']}: {value['reason']}",
        f"{'images' if value.get('images') else 'run'}: {value['run']}",
        *(f"remark: {remark}" for remark in value["remarks"]),
        *(scored_as(of_images, value["cells"][0]["protocol"]) if (of_images := value.get("images")) else ()),
        f"taugrid {(software.get('versions') or {}).get('taugrid')}, commit {commit[:12] if commit else 'unknown'}",
        "",
    ]
    labels = labels_of({cell["cell"]: {**cell["settings"], **cell["axes"]} for cell in value["cells"]})
    rows = []
    had = [cell["metrics"] for cell in value["cells"]]
    with_error = [column for column in SAMPLED if any(column.sampling_error in metrics for metrics in had)]
    shown = [column for column in COLUMNS.values() if column.name == "fid" or column in with_error]
    for cell in value["cells"]:
        n = f"N = {cell['settings']['num_samples']}"
        rows.append((labels[cell["cell"]], n, *(_score(column, cell["metrics"]) for column in shown)))
    return "\n".join([*lines, *in_columns(rows)])


def _score(column: MetricColumn, metrics: Mapping[str, float]) -> str:
    """A metric of a baseline's cell, with its standard error."""
    error = metrics.get(column.sampling_error or "")
    return f"{column.title} {shown_number(_scaled(metrics.get(column.name), column), _scaled(error, column))}"
