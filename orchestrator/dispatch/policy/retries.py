"""The tasks of one kind that have failed and are to be tried again, found by where they have not failed yet. Pure.

Tasks that failed at the same places are equal to whoever looks for one, so they share a queue, and a search passes over
whole queues: ten thousand tasks that one bad node failed cost it one look, not ten thousand.
"""

import heapq
from collections import Counter

Places = frozenset[str]
"""Nodes and workers."""


class Retries:
    """Tasks, as their places in the order in which they go out."""

    def __init__(self) -> None:
        self._places: dict[int, Places] = {}  # of those that wait
        self._queues: dict[Places, list[int]] = {}  # heaps
        self._heads: list[tuple[int, Places]] = []  # a heap of the first of each queue, and of some that were first
        self._met: Counter[str] = Counter()  # how many that wait have failed at a place

    def __len__(self) -> int:
        return len(self._places)

    def add(self, task: int, places: Places) -> None:
        """Queue a task that failed at `places`."""
        self._places[task] = places
        self._met.update(places)
        queue = self._queues.setdefault(places, [])
        heapq.heappush(queue, task)
        if queue[0] == task:
            heapq.heappush(self._heads, (task, places))

    def remove(self, task: int) -> bool:
        """Take a task out for good. False if it isn't queued."""
        if (places := self._places.pop(task, None)) is None:
            return False
        self._met.subtract(places)
        return True

    def take(self, place: str | None) -> int | None:
        """Remove and return the first task that has not failed at `place` (None: wherever it failed); or None."""
        if place is not None and self._met[place] == len(self):
            return None
        passed_over, found = [], None
        while self._heads and found is None:
            task, places = heapq.heappop(self._heads)
            queue = self._queues.get(places)
            if queue is None or queue[0] != task:
                continue  # it is no longer the first of them
            if place in places and task in self._places:
                passed_over.append((task, places))
                continue
            heapq.heappop(queue)
            if queue:
                heapq.heappush(self._heads, (queue[0], places))
            else:
                del self._queues[places]
            if self.remove(task):
                found = task
        for head in passed_over:
            heapq.heappush(self._heads, head)
        return found
