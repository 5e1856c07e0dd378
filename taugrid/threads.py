"""Threads that compute results ahead of their reader, in order; used to decode large images."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice, repeat, takewhile
from typing import TypeVar

THREADS = min(8, os.cpu_count() or 1)  # threads that decode large images

LARGE_BYTES = 3 * 64 * 64
"""Decoded bytes of an image from which on threads decode images. Pillow lets go of Python's lock only within an image:
with two threads, RGB of 64 x 64 takes 0.58 of the time for 1.11 times the CPU, but RGB of 32 x 32 takes 1.6 times the
time for twice the CPU (docs/decisions.md)."""

MAX_IMAGES_PER_TASK = 32  # images that a thread decodes in one task
BYTES_PER_TASK = 2**20  # a task ends at about this number of decoded bytes, but has at least one image

Item = TypeVar("Item")
Made = TypeVar("Made")
Image = TypeVar("Image")


def ahead(tasks: Iterable[Callable[[], Made]], threads: int, max_begun: int) -> Iterator[Made]:
    """The results of `tasks`, in order. Threads run at most `max_begun` tasks ahead of the result that is yielded. The
    garbage collector may close an abandoned generator in any thread. Closing must not wait for the threads: in one that
    is just starting, Python 3.11 would deadlock on a lock that it holds. Each ends after its current task."""
    pool = ThreadPoolExecutor(threads)
    try:
        pending: deque[Future[Made]] = deque()
        for task in tasks:
            pending.append(pool.submit(task))
            if len(pending) > max_begun:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def one_ahead(values: Iterator[Item]) -> Iterator[Item]:
    """The values, none of which is None; a thread computes the next one while the last one is used."""
    results = ahead(repeat(partial(next, values, None)), threads=1, max_begun=1)
    return takewhile(lambda value: value is not None, results)


def as_is(image: Image) -> Image:
    return image


def decode_each(
    decode: Callable[[Item], Image],
    items: Iterable[Item],
    bytes_of: Callable[[Image], int],
    transform: Callable[[Image], Image] = as_is,
) -> Iterator[Image]:
    """`transform(decode(item))` of each item, in order. Errors are raised in the order of the items, too. If the first
    image is small, no thread is used. Large ones are decoded by `THREADS` threads, at most 2 x `THREADS` tasks ahead.
    The first image's size decides how many images a task has."""

    def decoded(group: list[Item]) -> list[Image]:
        return [transform(decode(item)) for item in group]

    remaining = iter(items)
    if not (head := list(islice(remaining, 1))):
        return
    first = decode(head[0])
    yield transform(first)
    if (size := bytes_of(first)) < LARGE_BYTES:
        yield from (transform(decode(item)) for item in remaining)
        return
    images_per_task = max(1, min(MAX_IMAGES_PER_TASK, BYTES_PER_TASK // size))
    groups = iter(lambda: list(islice(remaining, images_per_task)), [])
    yield from chain.from_iterable(ahead((partial(decoded, group) for group in groups), THREADS, 2 * THREADS))
