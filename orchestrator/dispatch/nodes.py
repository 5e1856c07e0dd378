"""Asks every node of the connected cluster something, by a task that is pinned to it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from taugrid.errors import last_line


class Answer(NamedTuple):
    node: str
    value: Any = None
    error: str = ""
    """Why there is no value."""


def ask_nodes(question: Callable[[Any], Any], about: Any, seconds: float) -> Iterator[Answer]:
    """What `question(about)` returns on each node, with `seconds` for all of them together."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for alive in [node for node in ray.nodes() if node["Alive"]]:
        there = NodeAffinitySchedulingStrategy(alive["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(question)
        asked[task.remote(about)] = str(alive["NodeName"])
    in_time, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    for answer, node in asked.items():
        if answer not in in_time:
            ray.cancel(answer, force=True)
            yield Answer(node, error=f"no answer within {seconds:.0f} s")
            continue
        try:
            yield Answer(node, ray.get(answer))
        except ray.exceptions.RayError as error:
            yield Answer(node, error=last_line(error))
