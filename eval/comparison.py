"""Judges images B, the new side, against images A: the difference B - A of each metric, its error, and a verdict."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from taugrid.eval.gate.rule import Change, Scored, judge, margin_of
from taugrid.eval.gate.verdict import Verdict, worst
from taugrid.eval.metrics.statistics import Array
from taugrid.eval.tables.entries import ROUNDING
from taugrid.registry.metrics import COLUMNS, METRICS, MetricColumn

if TYPE_CHECKING:
    from taugrid.eval.standalone import ScoredImages

REPEATS = 0.9
"""Images repeat if the share of distinct ones in B is below this share of A's."""


def compare(
    a: "ScoredImages", b: "ScoredImages", paired: bool, margin: float, alpha: float, required: Collection[str] = ()
) -> dict[str, Any]:
    """The verdict on each metric that both sets have.

    All metrics with a standard error are judged by one test: if none got worse by more than its margin, the probability
    that any is called worse is at most `alpha`, whatever their number (`eval.gate.rule`).

    Args:
        a: the old side, in the order of `b` if they are paired.
        b: the new side.
        paired: image n of one side belongs to image n of the other, as from the same noise or prompt. Otherwise all
            images are independent.
        margin: the accepted regression, as a share of A's value.
        alpha: in (0, 0.5).
        required: the metrics that must be judged; none: it is enough if some number is.

    Returns:
        `metrics`: column of quality.csv -> `a`, `b`, `a_se`, `b_se`, `difference` (b - a), `se`, `verdict`, `paired`,
        and of a judged one `margin`, `upper` (of the interval of the regression) and `detectable` (the regression that
        is called worse with a probability of 80 %), all in the metric's unit; `critical`, which T must exceed;
        `distinct`, the shares of distinct images of A and B; `result`, the worst verdict; `not_judged`, the reasons for
        exit code 5; `notes`, why numbers that have an error are not judged.
    """
    sizes = [len(side.digests) for side in (a, b)]
    same = paired and np.array_equal(a.digests, b.digests)
    rows: dict[str, dict[str, Any]] = {}
    changes, notes = [], list[str]()
    for column in _columns(a, b):
        change = None if same else _change(column, a, b, paired, margin)
        if change is not None and sizes[0] != sizes[1] and not column.unbiased:
            change, reason = None, "its bias depends on N, of which A has {:,} and B {:,}".format(*sizes)
            notes.append(f"no verdict on {column.name}: {reason}")
        rows[column.name] = _shown(column, a, b) | {"paired": paired}
        if same or (change is not None and _is_rounding(change, a)):
            rows[column.name] |= {"se": 0.0, "verdict": _unjudged(column, same)}
        elif change is not None:
            changes.append(change)
    judgement = judge(changes, alpha)
    for judged in judgement.cells:
        if judged.verdict is Verdict.NOT_JUDGED:
            continue
        rows[judged.name] |= {key: getattr(judged, key) for key in ("se", "verdict", "margin", "upper", "detectable")}
    distinct = [len(np.unique(side.digests)) / len(side.digests) for side in (a, b)]
    verdicts = {name: row["verdict"] for name, row in rows.items() if row["verdict"] is not Verdict.NOT_JUDGED}
    not_judged = list(_reasons(verdicts, required, [*a.document["notes"], *b.document["notes"], *notes]))
    repeats = [Verdict.COLLAPSED] if distinct[1] < REPEATS * distinct[0] else []
    return {
        "metrics": rows,
        "critical": judgement.critical if judgement.cells else None,
        "distinct": distinct,
        "result": worst([*verdicts.values(), *repeats, *([Verdict.NOT_JUDGED] if not_judged else [])]),
        "not_judged": not_judged,
        "notes": notes,
    }


def _columns(a: "ScoredImages", b: "ScoredImages") -> list[MetricColumn]:
    """The numbers that both sets have."""
    sides = (a, b)
    return [column for name, column in COLUMNS.items() if all(name in side.document["metrics"] for side in sides)]


def _shown(column: MetricColumn, a: "ScoredImages", b: "ScoredImages") -> dict[str, Any]:
    """The numbers of both sets, before they are judged."""
    values, errors = (
        [side.document["metrics"].get(name) for side in (a, b)] for name in (column.name, column.sampling_error)
    )
    return {
        **dict(zip(("a", "b", "a_se", "b_se"), [*values, *errors], strict=True)),
        "difference": values[1] - values[0],
        "se": None,
        "verdict": Verdict.NOT_JUDGED,
    }


def _change(column: MetricColumn, a: "ScoredImages", b: "ScoredImages", paired: bool, margin: float) -> Change | None:
    """How much worse a number of B is than A's; None if A has no standard error, or B none because N is smaller."""
    influence_a, influence_b = (side.influences.get(column.name) for side in (a, b))
    only_worse = influence_b is None and a.images.num_images <= b.images.num_images
    if only_worse:
        influence_b = b.unsure.get(column.name)
    if influence_a is None or influence_b is None or not influence_a.std() or not influence_b.std():
        return None
    if not paired:
        influence_a, influence_b = independent(influence_a, influence_b)
    old = Scored(a.document["metrics"][column.name], influence_a)
    new = Scored(b.document["metrics"][column.name], influence_b)
    change = Change.between(column.name, new, old, margin_of(old, margin, column), 0, column)
    return replace(change, only_worse=only_worse)


def _unjudged(column: MetricColumn, same: bool) -> Verdict:
    """The verdict where every pair moves a number alike: of a distance, the features are the same."""
    return Verdict.IDENTICAL if same or not column.higher_is_better else Verdict.NOT_WORSE


def _is_rounding(change: Change, a: "ScoredImages") -> bool:
    """Whether both images of every pair move a number alike, but for rounding."""
    return float(change.influence.std()) <= ROUNDING * float(a.influences[change.name].std())


def independent(influence_a: Array, influence_b: Array) -> tuple[Array, Array]:
    """The influences of two independent sets on a joint sample of all their images.

    Each is 0 where the other's images are, and has the same standard error as before. So the difference has the error
    sqrt(se_a^2 + se_b^2), and several metrics of the same two sets have the correlations of their errors.
    """
    n = len(influence_a) + len(influence_b)
    a, b = (
        (influence - influence.mean()) * math.sqrt(n * (n - 1) / (len(influence) * (len(influence) - 1)))
        for influence in (influence_a, influence_b)
    )
    return np.concatenate([a, np.zeros(len(b))]), np.concatenate([np.zeros(len(a)), b])


def _reasons(judged: Collection[str], required: Collection[str], notes: Sequence[str]) -> Iterator[str]:
    """Why the verdict is incomplete, from the columns with a verdict and the notes of both sets."""
    if not required and not judged:
        of_both = {note.partition(":")[0]: note for note in reversed(notes) if note.startswith("no ")}
        yield "; ".join(reversed(of_both.values())) or "no metric has a standard error on both sides"
    for name in required:
        columns = METRICS[name].columns
        for column in [column for column in columns if column.sampling_error] or columns:
            if column.name not in judged:
                unjudged = f"no verdict on {column.name}: "
                begins = (f"no {column.sampling_error}: ", f"no {name}: ", unjudged)
                known = (note for note in notes if note.startswith(begins))
                yield next(known, f"{unjudged}it has no standard error on both sides")
