"""summary.md of a night: made for a CI's job summary. The verdict comes first, then what changed, then the rest."""

import math
from typing import Any

from taugrid.eval.gate.power import frozen_seeds_remark
from taugrid.eval.tables.entries import MISSING, write_number
from taugrid.orchestrator.baseline.others import NOT_JUDGED, change_in_words, columns_in
from taugrid.orchestrator.baseline.text import BAD, WORDS, check_lines, counts, facts, headline
from taugrid.orchestrator.baseline.verdict import Verdict
from taugrid.orchestrator.nightly.outcome import worst_first
from taugrid.words import counted

MOST_ROWS = 200
"""Rows of the table; GitHub takes 1 MB, and nobody reads more."""

MOST_NETWORKS = 4

UNMATCHED = {"only_new": "Not in the baseline", "only_baseline": "Only in the baseline"}


def summary(verdict: dict[str, Any]) -> str:
    """The page."""
    compared = verdict["comparison"]
    blocks = [f"# {verdict['name']}, night {verdict['night']}: {_headline(verdict)}"]
    if compared is not None:
        blocks += [f"{counts(compared)}.", *(f"Not judged: {said}." for said in verdict.get("not_judged", ()))]
        blocks += [f"**{line[0].upper()}{line[1:]}**" for line in check_lines(compared)]
        blocks += [_table(verdict, compared), _rule(compared), _sides(verdict), _others(verdict, compared)]
        blocks += [f"- {mark}" for mark in compared["marks"]]
        for title in ("only_new", "only_baseline"):
            named = [compared.get("unmatched", {}).get(name, name) for name in compared[title]]
            blocks += [f"{UNMATCHED[title]}: {_listed(named)}"] * bool(named)
        blocks += [f"Note: {note}" for note in compared["notes"]]
        blocks += [_frozen(verdict, compared), *_pictures(verdict), _next(verdict)]
    elif verdict["scores"]:
        blocks += [_scores(verdict)]
        blocks += [_next(verdict)]
    told = {cell["label"] for cell in (compared or {"cells": []})["cells"]}
    failed = verdict.get("failed", {}).items()
    blocks += [f"- **failed**: `{name}`: {reason}" for name, reason in failed if name not in told]
    blocks += [f"- missing: `{name}`: {reason}" for name, reason in list(verdict["missing"].items())[:MOST_ROWS]]
    if verdict["missing"]:
        blocks.append("Run the same command again to finish what is missing.")
    blocks.append("Tonight's report: [run/report.html](run/report.html). All nights: [index.html](../../index.html).")
    return "\n\n".join(filter(None, blocks)) + "\n"


def _frozen(verdict: dict[str, Any], compared: dict[str, Any]) -> str:
    """What the usual seeds may hide, where a cell is undecided."""
    undecided = any(cell["result"] == Verdict.UNDECIDED for cell in compared["cells"])
    if not undecided or compared["usual_critical"] is None:
        return ""
    n = min(score["settings"]["num_samples"] for score in verdict["scores"])
    said = frozen_seeds_remark(compared["usual_critical"], n)
    return f"{said[0].upper()}{said[1:]}."


def _pictures(verdict: dict[str, Any]) -> list[str]:
    """The strips of the worst cells: the baseline's images, and below them tonight's."""
    return [f"![{label}: baseline above, tonight below]({file})" for label, file in verdict.get("strips", {}).items()]


def _next(verdict: dict[str, Any]) -> str:
    """The command that accepts the night, or looks closer at it."""
    if verdict["missing"] or "next" not in verdict:
        return ""
    return f"Next: {verdict['next']}"


def _headline(verdict: dict[str, Any]) -> str:
    """What comes behind the night's name in the first line."""
    compared = verdict["comparison"]
    if verdict["result"] == Verdict.COLLAPSED:
        told = f"{BAD} {'; '.join([WORDS[Verdict.COLLAPSED], *(facts(compared) if compared else [])])}"
    elif compared is not None:
        told = headline(compared)
    else:
        told = "no baseline yet" if verdict["result"] == "no baseline" else "⚠️ incomplete"
    if verdict["missing"]:
        return f"⚠️ incomplete: {len(verdict['missing'])} missing; so far: {told}"
    return told


def reasons(verdict: dict[str, Any]) -> dict[str, str]:
    """Cell id -> why it has its verdict, in a line."""
    compared = verdict["comparison"]
    return {} if compared is None else {cell["cell"]: _reason(cell) for cell in compared["cells"]}


def _reason(cell: dict[str, Any]) -> str:
    told = [f"FID {_number(cell['baseline_fid'])} -> {_number(cell['fid'])}, change {_change(cell) or 'unknown'}"]
    if cell["t"] is not None:
        told.append(f"T = {cell['t']:+.1f}, margin {cell['margin']:.3g}")
    return "; ".join([*told, *_remarks(cell)])


def _remarks(cell: dict[str, Any]) -> list[str]:
    """What the table's columns do not say."""
    told = []
    if cell["seeds"] != "usual":
        seeds = "a fresh seed" if cell["seeds"] == "fresh" else "more samples and a fresh seed"
        usual = f"{_number(cell['baseline_fid'])} -> {_number(cell['fid'])}"
        told.append(f"numbers of {seeds}; with the usual one: FID {usual}")
    if cell["result"] == Verdict.UNDECIDED and cell["detectable"] is not None:
        told.append(f"a change of {cell['detectable']:.3g} would be seen in 4 of 5 nights")
    pixels = cell["pixels"]
    if pixels and pixels["differing"]:
        levels = "an unknown number of" if pixels["largest"] is None else f"up to {pixels['largest']}"
        told.append(f"{pixels['differing']} of {pixels['images']} images differ, by {levels} grey levels")
    return [*told, *filter(None, [cell["note"]])]


def _number(value: float | None, error: float | None = None) -> str:
    if value is None:
        return MISSING
    return " ".join(write_number(value, math.nan if error is None else error)).strip()


def _change(cell: dict[str, Any]) -> str:
    if cell["difference"] is None:
        return ""
    return f"{'+' if cell['difference'] > 0 else ''}{_number(cell['difference'], cell['se'])}"


def _sides(verdict: dict[str, Any]) -> str:
    """What was compared with what: networks and code of tonight and of the baseline."""
    baseline = verdict["baseline"]
    accepted, reason = baseline["accepted"], baseline["reason"]
    lines = [f"Baseline: `{baseline['place']}`" + (f", accepted {accepted[:10]}: {reason}" if accepted else "")]
    sides = {"baseline": (baseline.get("model"), baseline.get("git_commit")),
             "tonight": (verdict.get("model"), verdict.get("software", {}).get("git_commit"))}  # fmt: skip
    for side, (networks, commit) in sides.items():
        names = [f"`{net['checkpoint'] or 'no file'}` ({(net['weights_sha256'] or 'unknown')[:10]})"
                 for net in (networks or [])[:MOST_NETWORKS]]  # fmt: skip
        more = f" and {len(networks) - MOST_NETWORKS} more" if networks and len(networks) > MOST_NETWORKS else ""
        if names:
            lines.append(f"- {side}: {', '.join(names)}{more}" + (f", commit {commit[:10]}" if commit else ""))
    return "\n".join([lines[0], "", *lines[1:]]) if lines[1:] else lines[0]


def _table(verdict: dict[str, Any], compared: dict[str, Any]) -> str:
    named = _labels(verdict)
    cells = sorted(compared["cells"], key=worst_first)
    rows = []
    for cell in cells[:MOST_ROWS]:
        fid, base = cell.get("judged_fids") or (cell["fid"], cell["baseline_fid"])
        t = "" if cell["t"] is None else format(cell["t"], "+.1f")
        told = (_bold(cell["result"]), _number(base), _number(fid), _change(cell), t, "; ".join(_remarks(cell)))
        rows.append(f"| {named[cell['cell']]} | {' | '.join(told)} |")
    more = [f"... and {counted(len(cells) - MOST_ROWS, 'more cell')}."] if len(cells) > MOST_ROWS else []
    head = ["| cell | verdict | baseline FID | FID | change | T | |", "| :-- | :-- | --: | --: | --: | --: | :-- |"]
    return "\n".join([*head, *rows, *(["", *more] if more else [])])


def _bold(result: str) -> str:
    return f"**{result}**" if Verdict(result).is_regression else result


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
    named = _labels(verdict)
    found = [(named[score["cell"]], score["metrics"]) for score in verdict["scores"][:MOST_ROWS]]
    rows = [f"| {label} | {_number(metrics.get('fid'), metrics.get('fid_se'))} |" for label, metrics in found]
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
