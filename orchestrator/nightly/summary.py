"""summary.md of a night: made for a CI's job summary. The verdict comes first, then what changed, then the rest."""

import math
from typing import Any

from taugrid.eval.tables.entries import write_number
from taugrid.orchestrator.baseline.others import NOT_JUDGED, change_in_words, columns_in
from taugrid.words import counted

MOST_ROWS = 200
"""Rows of the table; GitHub takes 1 MB, and nobody reads more."""

HEADLINES = {
    "changed pixels": "❌ changed: the same weights, software and device make other images",
    "worse": "❌ worse",
    "undecided": "✅ not worse, as far as can be told: some cells are undecided at this N",
    "not worse": "✅ not worse",
    "identical": "✅ identical: every image is the same",
    "no standard error": "⚠️ not judged: some cells have no standard error",
    "no baseline": "no baseline yet",
    "incomplete": "⚠️ incomplete",
}

UNMATCHED = {"only_new": "Not in the baseline", "only_baseline": "Only in the baseline"}

ORDER = ("changed pixels", "worse", "undecided", "no standard error", "not worse", "identical")


def summary(verdict: dict[str, Any]) -> str:
    """The page."""
    headline = HEADLINES[verdict["result"]]
    if verdict["missing"]:
        headline = f"⚠️ incomplete: {len(verdict['missing'])} missing; so far: {headline}"
    blocks = [f"# {verdict['name']}, night {verdict['night']}: {headline}"]
    compared = verdict["comparison"]
    if compared is not None:
        blocks += [_counts(compared), _table(verdict, compared), _rule(compared), _baseline(verdict["baseline"])]
        blocks += [_others(verdict, compared)]
        blocks += [f"- {mark}" for mark in compared["marks"]]
        for title in ("only_new", "only_baseline"):
            named = [compared.get("unmatched", {}).get(name, name) for name in compared[title]]
            blocks += [f"{UNMATCHED[title]}: {_listed(named)}"] * bool(named)
        blocks += [f"Note: {note}" for note in compared["notes"]]
    elif verdict["scores"]:
        blocks += [_scores(verdict)]
        if verdict["result"] == "no baseline":
            blocks.append("Accept this night: `taugrid baseline accept HISTORY/nights/ID/run --to FILE --reason TEXT`.")
    blocks += [f"- missing: `{name}`: {reason}" for name, reason in list(verdict["missing"].items())[:MOST_ROWS]]
    if verdict["missing"]:
        blocks.append("Run the same command again to finish what is missing.")
    blocks.append("Trend, as seen from this file: `../../trend.png`, drawn from `../../history.parquet`.")
    return "\n\n".join(filter(None, blocks)) + "\n"


def reasons(verdict: dict[str, Any]) -> dict[str, str]:
    """Cell id -> why it has its verdict, in a line."""
    compared = verdict["comparison"]
    return {} if compared is None else {cell["cell"]: _reason(cell) for cell in compared["cells"]}


def _reason(cell: dict[str, Any]) -> str:
    told = [f"FID {_number(cell['baseline_fid'])} -> {_number(cell['fid'])}, change {_change(cell)}"]
    if cell["t"] is not None:
        told.append(f"T = {cell['t']:+.1f}, margin {cell['margin']:.3g}")
    return "; ".join([*told, *_remarks(cell)])


def _remarks(cell: dict[str, Any]) -> list[str]:
    """What the table's columns do not say."""
    told = []
    if cell["seeds"] != "usual":
        told.append(f"change with {'a fresh seed' if cell['seeds'] == 'fresh' else 'more samples and a fresh seed'}")
    if cell["result"] == "undecided" and cell["detectable"] is not None:
        told.append(f"a change of {cell['detectable']:.3g} would be seen in 4 of 5 nights")
    pixels = cell["pixels"]
    if pixels and pixels["differing"]:
        levels = "an unknown number of" if pixels["largest"] is None else f"up to {pixels['largest']}"
        told.append(f"{pixels['differing']} of {pixels['images']} images differ, by {levels} grey levels")
    return [*told, *filter(None, [cell["note"]])]


def _number(value: float, error: float | None = None) -> str:
    return " ".join(write_number(value, math.nan if error is None else error)).strip()


def _change(cell: dict[str, Any]) -> str:
    return f"{'+' if cell['difference'] > 0 else ''}{_number(cell['difference'], cell['se'])}"


def _baseline(baseline: dict[str, Any]) -> str:
    accepted, reason = baseline["accepted"], baseline["reason"]
    return f"Baseline: `{baseline['place']}`" + (f", accepted {accepted[:10]}: {reason}" if accepted else "")


def _counts(compared: dict[str, Any]) -> str:
    found = [cell["result"] for cell in compared["cells"]]
    return ", ".join(f"{found.count(result)} {result}" for result in ORDER if result in found) + "."


def _table(verdict: dict[str, Any], compared: dict[str, Any]) -> str:
    named = _labels(verdict)
    cells = sorted(compared["cells"], key=lambda cell: (ORDER.index(cell["result"]), -(cell["t"] or 0)))
    rows = [
        f"| {named[cell['cell']]} | {'**' if cell['result'] in ORDER[:2] else ''}{cell['result']}"
        f"{'**' if cell['result'] in ORDER[:2] else ''} | {_number(cell['baseline_fid'])} | {_number(cell['fid'])} | "
        f"{_change(cell)} | {'' if cell['t'] is None else format(cell['t'], '+.1f')} | {'; '.join(_remarks(cell))} |"
        for cell in cells[:MOST_ROWS]
    ]
    more = [f"... and {counted(len(cells) - MOST_ROWS, 'more cell')}."] if len(cells) > MOST_ROWS else []
    head = ["| cell | verdict | baseline FID | FID | change | T | |", "| :-- | :-- | --: | --: | --: | --: | :-- |"]
    return "\n".join([*head, *rows, *(["", *more] if more else [])])


def _others(verdict: dict[str, Any], compared: dict[str, Any]) -> str:
    columns = columns_in(cell["others"] for cell in compared["cells"])
    if not columns:
        return ""
    named = _labels(verdict)
    rows = []
    for cell in compared["cells"][:MOST_ROWS]:
        told = (change_in_words(cell["others"], column, "→") for column in columns)
        rows.append(f"| {' | '.join([named[cell['cell']], *told])} |")
    head = [f"| cell | {' | '.join(column.title for column in columns)} |", f"| :-- |{' --: |' * len(columns)}"]
    return "\n".join([f"Other metrics, {NOT_JUDGED}:", "", *head, *rows])


def _labels(verdict: dict[str, Any]) -> dict[str, str]:
    """Cell id -> its label, which must not end a column of a table."""
    return {score["cell"]: score["label"].replace("|", "/") for score in verdict["scores"]}


def _scores(verdict: dict[str, Any]) -> str:
    rows = [
        f"| {score['label'].replace('|', '/')} | {_number(score['metrics']['fid'], score['metrics'].get('fid_se'))} |"
        for score in verdict["scores"][:MOST_ROWS]
    ]
    return "\n".join(["| cell | FID |", "| :-- | --: |", *rows])


def _rule(compared: dict[str, Any]) -> str:
    if compared["critical"] is None:
        return ""
    return (
        f"Rule: {compared['rule']}. T = (change - margin) / se; the margin is {100 * compared['margin']:g} % of the "
        "baseline's FID."
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
