"""Python source as its syntax tree: without comments, docstrings and layout. Equal on Python 3.11 to 3.13.

The result is hashed into ids, so it must never change. `ast.dump` would not do: its text differs between versions.
"""

import ast
from collections.abc import Iterable, Iterator
from typing import Any

WITHOUT_EFFECT = {"kind", "type_comment", "type_ignores"}
"""Fields of a syntax tree that change nothing: the u of u"", and comments about types."""


def parsed(source: bytes) -> ast.Module | None:
    """The syntax tree of a Python file, or None if this version of Python can't read it."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def without_comments(source: bytes) -> bytes:
    """The syntax tree of a Python file as text. A file that is not Python, or newer Python, is left as it is. Values
    that a statement leaves unused because it is only a string (docstrings, for one) are cut out."""
    tree = parsed(source)
    return source if tree is None else "".join(_text(tree)).encode()


def _text(tree: ast.Module) -> Iterator[str]:
    """Each node as its name and its fields, without recursion: a long sum is a deep tree."""
    waiting: list[Any] = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _Text):
            yield item
        elif isinstance(item, list):
            waiting += [_Text("]"), *reversed(item), _Text("[")]
        elif isinstance(item, ast.AST):
            waiting.append(_Text(")"))
            for name, value in sorted(_fields(item), reverse=True, key=lambda field: field[0]):
                waiting += [value, _Text(f" {name}=")]
            waiting.append(_Text(f"{type(item).__name__}("))
        else:
            yield _constant(item)


class _Text(str):
    """Text that is part of the result, unlike a string of the source."""


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """The fields of a node that are not empty. A later Python adds fields, which are empty for older source."""
    for name, value in ast.iter_fields(node):
        if isinstance(value, list):
            value = [item for item in value if not _is_only_a_string(item)]
            value = list(_joined(value)) if isinstance(node, ast.JoinedStr) else value
        if value is not None and value != [] and name not in WITHOUT_EFFECT:
            yield name, value


def _is_only_a_string(statement: Any) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return False
    return isinstance(statement.value.value, str)


def _joined(parts: Iterable[Any]) -> Iterator[Any]:
    """The parts of an f-string with its texts joined: versions of Python cut them in different places."""
    text = ""
    for part in parts:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            text += part.value
            continue
        if text:
            yield ast.Constant(text)
            text = ""
        yield part
    if text:
        yield ast.Constant(text)


def _constant(value: Any) -> str:
    """A constant with its type. Letters beyond ASCII are escaped: which of them `repr` shows depends on the version."""
    shown = hex(value) if type(value) is int else ascii(value)
    return f"{type(value).__name__} {shown}"
