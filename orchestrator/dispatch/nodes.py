"""Asks every node of the connected cluster something, by a task that is pinned to it."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from taugrid.errors import last_line


class Answer(NamedTuple):
    node: str
    value: Any = None
    error: str = ""
    """Why there is no value."""
    clock: tuple[float, float] = 0.0, 0.0
    """How many seconds the node's clock is ahead of this machine's, and how far off that may be."""


def ask_nodes(question: Callable[[Any], Any], about: Any, seconds: float) -> Iterator[Answer]:
    """What `question(about)` returns on each node, with `seconds` for all of them together."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def pinned(function: Callable[..., Any], node: str) -> Any:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(function)

    names = {node["NodeID"]: str(node["NodeName"]) for node in ray.nodes() if node["Alive"]}
    asked = {pinned(question, node).remote(about): node for node in names}
    in_time, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    for answer, node in asked.items():
        if answer not in in_time:
            ray.cancel(answer, force=True)
            yield Answer(names[node], error=f"no answer within {seconds:.0f} s")
            continue
        try:
            value, began = ray.get(answer), time.time()
            there = ray.get(pinned(_now, node).remote(), timeout=seconds)
            ended = time.time()
        except ray.exceptions.RayError as error:
            yield Answer(names[node], error=last_line(error))
        else:
            yield Answer(names[node], value, clock=(there - (began + ended) / 2, (ended - began) / 2))


def _now() -> float:
    return time.time()
