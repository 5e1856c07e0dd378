"""Text for messages: counts, durations, paths, tables, and the name of this machine."""

import difflib
import io
import platform
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

_node = platform.node()

MAX_PATH_LENGTH = 40  # a longer path is shortened in messages

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Characters that a terminal obeys, that reorder a line, or that XML and UTF-8 can't hold; not newline and tab."""

_URL_AS_PATH = re.compile(r"(?<![\w/])(s3|gs|az):/(?=[^/\s])")


def this_node() -> str:
    """The name of the machine that this process runs on: its host name, or in a worker its address in the cluster."""
    return _node


def call_this_node(name: str) -> None:
    global _node
    _node = name


def counted(count: int, noun: str, plural: str = "") -> str:
    """`count` and `noun` in agreement: 1 file, 2 files, 1,200 files; `plural` if it is not the noun and an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def some_of(count: int, total: int, noun: str) -> str:
    """A subject with its verb: 1 of 2 shards is, 3 of 4 shards are."""
    return f"{count:,} of {counted(total, noun)} {'is' if count == 1 else 'are'}"


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """The hint "did you mean 'X'?" for the nearest of `known` words; `otherwise` if none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise


def listed(names: Sequence[str], most: int, noun: str = "", between: str = ", ") -> str:
    """The first `most` of `names`, and how many more there are: a, b and 3 more; with a `noun`, and 3 more cells."""
    shown, left = between.join(names[:most]), len(names) - most
    if left <= 0:
        return shown
    return f"{shown} and {counted(left, f'more {noun}') if noun else f'{left} more'}"


def markdown_table(heads: Sequence[str], columns: str, rows: Iterable[Sequence[str]]) -> str:
    """A table in GitHub's Markdown; `columns` has l, c or r for each column."""
    rules = [{"l": ":--", "c": ":-:", "r": "--:"}[column] for column in columns]
    lines = [[text.replace("|", r"\|") for text in line] for line in (heads, rules, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_columns(rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Rows of text as lines, in columns as wide as they need to be; the columns `right` are aligned to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    for number, column in enumerate(table.columns):
        column.justify, column.no_wrap = "right" if number in right else "left", True
    console = Console(file=io.StringIO(), width=100_000, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def short_path(path: str) -> str:
    """A path as messages name it where the user knows it: the last two parts of a long one."""
    parts = path.rstrip("/").split("/")
    return path if len(path) <= MAX_PATH_LENGTH or len(parts) < 3 else "/".join(["…", *parts[-2:]])


def quantity(value: float) -> str:
    """A count that people can read: 950, 12.3k, 4.56M."""
    for size, least, suffix in ((1e12, 999.5e9, "T"), (1e9, 999.5e6, "G"), (1e6, 999.5e3, "M"), (1e3, 1e4, "k")):
        if abs(value) >= least:  # it rounds to 1 at least, and to less than 1000 of the suffix below
            return f"{_three_digits(value / size)}{suffix}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """A time that people can read: 8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def with_urls(text: str) -> str:
    """`text` with the names of objects as URLs: a `Path` keeps one slash of `s3://bucket/run`."""
    return _URL_AS_PATH.sub(r"\1://", text)


def printable(text: str) -> str:
    """`text` with control characters as escapes such as \\x1b: names in files of others must not steer a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def with_controls(value: Any) -> str | None:
    """A text in plain data, keys included, that has a control character; None if there is none."""
    left = [value]  # not in the order of the data; a nested call each would end at some depth
    while left:
        each = left.pop()
        if isinstance(each, str) and _CONTROL.search(each):
            return each
        left += [*each, *each.values()] if isinstance(each, Mapping) else each if isinstance(each, list) else []
    return None


def beside(levels: Iterable[float], low: float, high: float) -> str:
    """The levels next to an interval that has none of them, in words."""
    found = list(levels)
    near = [max((at for at in found if at <= low), default=None), min((at for at in found if at >= high), default=None)]
    return " and ".join(f"{at:.3g}" for at in near if at is not None)
