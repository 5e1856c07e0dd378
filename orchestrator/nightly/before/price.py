"""What a night costs, time as measured in the last night, and bytes; and how small a loss it will see."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from taugrid.orchestrator.nightly.places import Night, open_history
from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.rates import evaluations_per_second
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import read_events
from taugrid.words import duration, quantity


def price(described: dict[str, Any], plan: Plan, history: str) -> dict[str, Any]:
    """The price of a night of `plan`, which `describe_plan` described. Seconds are None before the first night."""
    nights = open_history(history).complete_nights()
    rate = evaluations_per_second(read_events(RunDir(nights[-1].run, nights[-1].storage))) if nights else None
    evaluations = described["network_evaluations"]
    canary = sum(min(cell.settings.batch_size, cell.settings.num_samples) * cell.evaluations for cell in plan.cells)
    seconds = None if rate is None else round(evaluations / rate, 1)
    return {
        "measured_in": nights[-1].id if nights else None,
        "worker_seconds": seconds,
        "worker_seconds_of_the_canary_at_most": None if rate is None else round(canary / rate, 1),
        "network_evaluations_of_the_canary_at_most": canary,
        "smallest_loss_seen": expected_loss(nights, plan),
        "worker_seconds_of_a_second_look_at_most": None if seconds is None else round(2 * seconds, 1),
        "bytes_at_most": described["bytes_at_most"],
        "bytes_of_a_second_look_at_most": 2 * described["bytes_at_most"],
    }


def expected_loss(nights: Sequence[Night], plan: Plan) -> float | None:
    """The smallest loss, as a share of FID, that a night of `plan` will see in half of its cells; None if unknown.

    It is that of the last night that judged any cell. What exceeds the margin shrinks with the root of N.
    """
    for night in reversed(nights):
        verdict = night.verdict or {}
        compared = verdict.get("comparison") or {}
        if (sharp := compared.get("sharpness")) is not None:
            before = np.median([score["settings"]["num_samples"] for score in verdict["scores"]])
            now = np.median([cell.settings.num_samples for cell in plan.cells])
            margin = float(compared["margin"])
            return float(margin + (sharp["loss"] - margin) * np.sqrt(before / now))
    return None


def price_text(night: dict[str, Any]) -> str:
    """The price in lines."""
    canary = quantity(night["network_evaluations_of_the_canary_at_most"])
    lines = [_cost(night), f"canaries of new weights: at most {canary} network evaluations more"]
    if (loss := night["smallest_loss_seen"]) is not None:
        lines.append(f"judged by the last night, it would miss losses below {100 * loss:.2g} % in half of its cells")
    return "\n".join(lines)


def _cost(night: dict[str, Any]) -> str:
    size = f"at most {quantity(night['bytes_at_most'])}B of images"
    if night["worker_seconds"] is None:
        return f"a night: {size}; its time is unknown before the first night; a second look at all cells: twice as much"
    time, more = night["worker_seconds"], night["worker_seconds_of_a_second_look_at_most"]
    return (
        f"a night: {duration(time)} of sampling on one worker (measured in night {night['measured_in']}) and {size}; "
        f"a second look at all cells: at most {duration(more)} and {quantity(night['bytes_of_a_second_look_at_most'])}B"
    )
