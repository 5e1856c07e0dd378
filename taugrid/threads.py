"""Threads that work ahead of their results' reader, in order; and which images are decoded in threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice, repeat, takewhile
from typing import TypeVar

THREADS = min(8, os.cpu_count() or 1)
"""Threads that decode large images."""

LARGE_BYTES = 3 * 64 * 64
"""Decoded bytes of an image from which on threads decode images. Pillow lets go of Python's lock only within an image:
with two threads, RGB of 64 x 64 takes 0.58 of the time for 1.11 times the CPU, but RGB of 32 x 32 takes 1.6 times the
time for twice the CPU (docs/decisions.md)."""

IMAGES_OF_A_TASK = 32
"""Number of images that a thread decodes at most before it hands them over."""

BYTES_OF_A_TASK = 2**20
"""About how many bytes of images it decodes before that: at least one image."""

Item = TypeVar("Item")
Made = TypeVar("Made")
Image = TypeVar("Image")


def ahead(tasks: Iterable[Callable[[], Made]], threads: int, most: int) -> Iterator[Made]:
    """The results of `tasks`, in order. Threads have begun at most `most` of them when a result is handed over.

    The garbage collector closes what was abandoned before its end, in whatever thread it runs. Closing must not wait
    for the threads: in a thread that is just starting, Python 3.11 would deadlock on a lock that it holds. They end
    once they have done what they are at.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        pending: deque[Future[Made]] = deque()
        for task in tasks:
            pending.append(pool.submit(task))
            if len(pending) > most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def one_ahead(values: Iterator[Item]) -> Iterator[Item]:
    """The values, none of which is None; a thread makes the next one while the last one is used."""
    found = ahead(repeat(partial(next, values, None)), threads=1, most=1)
    return takewhile(lambda value: value is not None, found)


def unchanged(image: Image) -> Image:
    return image


def decoded(
    decode: Callable[[Item], Image],
    items: Iterable[Item],
    bytes_of: Callable[[Image], int],
    then: Callable[[Image], Image] = unchanged,
) -> Iterator[Image]:
    """`then(decode(item))` of each item, in order. What fails is raised in the order of the items, too.

    If the first image is small, no thread is used. Large ones are decoded by `THREADS` threads, ahead by at most
    2 x `THREADS` tasks of at most `IMAGES_OF_A_TASK` images and about `BYTES_OF_A_TASK`, if images are alike.
    """
    remaining = iter(items)
    for item in islice(remaining, 1):
        first = decode(item)
        yield then(first)
        if (size := bytes_of(first)) < LARGE_BYTES:
            yield from (then(decode(item)) for item in remaining)
        else:
            most = max(1, min(IMAGES_OF_A_TASK, BYTES_OF_A_TASK // size))
            tasks = (partial(_all_of, decode, then, group) for group in _groups(remaining, most))
            yield from chain.from_iterable(ahead(tasks, THREADS, 2 * THREADS))


def _groups(items: Iterator[Item], most: int) -> Iterator[list[Item]]:
    return iter(lambda: list(islice(items, most)), [])


def _all_of(decode: Callable[[Item], Image], then: Callable[[Image], Image], items: list[Item]) -> list[Image]:
    return [then(decode(item)) for item in items]
