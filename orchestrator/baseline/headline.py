"""The first line of a comparison with a baseline: the verdict, and how much it can be trusted."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from taugrid.orchestrator.baseline.verdict import Sharpness, Verdict
from taugrid.words import counted

BAD, GOOD, NEUTRAL = "❌", "✅", "➖"

WORDS = {
    Verdict.CHANGED_SAMPLER: "changed sampler: today's code makes other images with the baseline's network",
    Verdict.CHANGED_SCORER: "changed scorer: today's code gives the same images other scores",
    Verdict.CHANGED_PIXELS: "changed pixels: the same weights, software and device make other images",
    Verdict.COLLAPSED: "collapsed: images that no longer vary, or can't be sampled or scored",
    Verdict.WORSE: "worse",
    Verdict.UNDECIDED: "undecided: N is too small to tell",
    Verdict.NOT_JUDGED: "not judged: some cells have no standard error in common",
    Verdict.NOT_WORSE: "not worse",
    Verdict.IDENTICAL: "identical: every image is the same",
}


def headline(compared: Mapping[str, Any]) -> str:
    """The line, of a comparison as plain data (`BaselineComparison.as_dict`), of this version or an earlier one."""
    return f"{sign(compared)} {'; '.join([WORDS[Verdict(compared['result'])], *facts(compared)])}"


def sign(compared: Mapping[str, Any]) -> str:
    """Red for a regression. Green only if every cell was judged, and sampler and scorer are the baseline's."""
    result = Verdict(compared["result"])
    if result.is_regression:
        return BAD
    checked = all(check["result"] == "clean" for check in _checks(compared).values())
    is_good = result in (Verdict.NOT_WORSE, Verdict.IDENTICAL) and checked and not compared.get("not_judged")
    return GOOD if is_good else NEUTRAL


def facts(compared: Mapping[str, Any]) -> list[str]:
    """How many cells were compared, the smallest loss that would have been seen, and what was not checked."""
    found = []
    if (of := compared.get("compared")) is not None:
        found.append(f"{of[0]:,} of {counted(of[1], 'baseline cell')} compared")
    if (sharp := compared.get("sharpness")) is not None:
        found.append(Sharpness(**sharp).in_words)
    unknown = [name for name, check in _checks(compared).items() if check["result"] == "unknown"]
    if unknown:
        found.append(f"{' and '.join(unknown)} not checked")
    return found


def counts(compared: Mapping[str, Any]) -> str:
    """Such as "3 worse, 9 not worse"."""
    found = Counter(Verdict(cell["result"]) for cell in compared["cells"])
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in Verdict if found[verdict])


def check_lines(compared: Mapping[str, Any]) -> list[str]:
    """What the canaries say, a line for each that is not clean."""
    return [
        f"{name} {'not checked' if check['result'] == 'unknown' else check['result']}: {check['reason']}"
        for name, check in _checks(compared).items()
        if check["result"] != "clean"
    ]


def _checks(compared: Mapping[str, Any]) -> Mapping[str, Any]:
    """The checks; verdicts of earlier versions have none."""
    nothing = {"result": "unknown", "reason": "a version of taugrid that had no canaries"}
    found: Mapping[str, Any] = compared.get("checks") or {"sampler": nothing, "scorer": nothing}
    return found
