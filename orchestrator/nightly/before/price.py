"""What a night costs: time, as measured in the last night, and bytes."""

from typing import Any

from taugrid.orchestrator.nightly.places import open_history
from taugrid.orchestrator.rates import evaluations_per_second
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import read_events
from taugrid.words import duration, quantity


def price(plan: dict[str, Any], history: str) -> dict[str, Any]:
    """The price of a night of `plan`, from `inspection.describe_plan`. Seconds are None before the first night."""
    nights = open_history(history).complete_nights()
    rate = evaluations_per_second(read_events(RunDir(nights[-1].run, nights[-1].storage))) if nights else None
    evaluations = plan["network_evaluations"]
    seconds = None if rate is None else round(evaluations / rate, 1)
    return {
        "measured_in": nights[-1].id if nights else None,
        "worker_seconds": seconds,
        "worker_seconds_of_a_second_look_at_most": None if seconds is None else round(2 * seconds, 1),
        "bytes_at_most": plan["bytes_at_most"],
        "bytes_of_a_second_look_at_most": 2 * plan["bytes_at_most"],
    }


def price_text(night: dict[str, Any]) -> str:
    """The price in a line."""
    size = f"at most {quantity(night['bytes_at_most'])}B of images"
    if night["worker_seconds"] is None:
        return f"a night: {size}; its time is unknown before the first night; a second look at all cells: twice as much"
    time, more = night["worker_seconds"], night["worker_seconds_of_a_second_look_at_most"]
    return (
        f"a night: {duration(time)} of sampling on one worker (measured in night {night['measured_in']}) and {size}; "
        f"a second look at all cells: at most {duration(more)} and {quantity(night['bytes_of_a_second_look_at_most'])}B"
    )
