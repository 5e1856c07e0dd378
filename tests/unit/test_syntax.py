"""Source without comments, docstrings and layout: what it is equal for, and that every Python makes the same of it."""

import hashlib
import shutil
import subprocess
import sys

import pytest

from taugrid.workers.custom import syntax
from taugrid.workers.custom.syntax import without_comments

SAMPLE = '''#!/usr/bin/env python
# -*- coding: utf-8 -*-
"""Of the module."""
from __future__ import annotations
import os.path as path, sys
from . import near as n
VALUES = [0, -1, 0x1F, 10**30, 1_000, 1e-300, 1j, True, None, ..., b"\\x00a", "é😀\\ud800", u"u", r"\\d" "joined"]
TEXT = f"{VALUES[0]!r:>{10}} and {path.sep=} {{}} {'a' 'b'}" "c" f"{sys.argv}{''}"
SETS = {*VALUES}, {1: 2, **{}}, (), (1,), {i for i in range(3) if i if not i}
class A(dict, metaclass=type):
    """Of the class."""
    value: int = 1
    """Of the attribute."""
    @property
    async def f(self, a, /, b=1, *args, c, d=2, **kwargs) -> "A":
        """Of the function."""
        async with a as x, b: await x
        async for i in b: yield i
        else: pass
        return
def g(*, key=None):
    global VALUES
    try: raise ValueError from None
    except* (ValueError, TypeError) as error: del error
    finally: assert key, "a message"
    while (n := 3) > 2 > 1 is not None: break
    match key:
        case {"a": [1, *rest], **others} | A(value=-1) if rest: return lambda x: (yield x)
        case None | "text" as text: x = y = VALUES[1:2, ::3] @ 3 // 2 if text else not +1
        case _: VALUES[0] += 1; nonlocal_ = ~1 ^ 2 & 3 | 4 << 5
    return (i async for i in A())
'''
"""Most of Python's grammar of 3.11."""

SHA256 = "0624f4bf22b4284c5d1482d98a62661b3bcccff3e345a50767df796c5d0fb4c8"


def test_every_python_makes_the_same_of_it():
    """The hash is pinned: ids depend on it. The Pythons that are installed here show that it holds for them."""
    assert hashlib.sha256(without_comments(SAMPLE.encode())).hexdigest() == SHA256
    code = (
        f"import hashlib, runpy, sys; text = runpy.run_path({syntax.__file__!r})['without_comments']("
        "sys.stdin.buffer.read()); print(hashlib.sha256(text).hexdigest())"
    )
    pythons = [found for minor in (11, 12, 13, 14) if (found := shutil.which(f"python3.{minor}"))]
    for python in [sys.executable, *pythons]:
        done = subprocess.run([python, "-c", code], input=SAMPLE.encode(), capture_output=True, check=False)
        if done.returncode != 127:  # a shim without its Python
            assert done.stdout.decode().strip() == SHA256, (python, done.stderr.decode())


BASE = "import os\n\ndef f(x, y=1):\n    return {'a': x + y}\n"


@pytest.mark.parametrize(
    "text",
    [
        "# a comment\n" + BASE,
        '"""Of the module."""\n' + BASE,
        BASE.replace("    return", "    '''Of the function.'''\n    # why\n\n    return"),
        BASE.replace("'a'", '"a"').replace("x + y", "(x  # the first\n      + y)"),
        BASE.replace("    return", "\treturn").replace("\n", "\r\n"),
        BASE.replace("'a'", "u'a'").replace("(x, y=1)", "(x, y=0x1,)").replace("x + y}", "x + y}  # type: ignore"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(text):
    assert without_comments(text.encode()) == without_comments(BASE.encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'a'", "'b'"), ("'a'", "b'a'"), ("'a'", "f'{x}'"), ("=1", "=1.0"), ("=1", "=True"), ("=1", "=-1"),
        ("x + y", "y + x"), ("x + y", "x - y"), ("x + y", "x + y + 0"), ("y=1", "*, y=1"),
        ("import os", "import os as o"), ("import os", "from os import path"), ("    return", "    pass\n    return"),
        ("    return", "    1\n    return"), ("return", "yield"), ("def f", "@staticmethod\ndef f"),
        ("(x,", "(x: 'int',"),
    ],
)  # fmt: skip
def test_whatever_can_have_an_effect_counts(old, new):
    assert old in BASE
    assert without_comments(BASE.replace(old, new).encode()) != without_comments(BASE.encode())


def test_text_can_not_pass_for_the_structure_around_it():
    one = without_comments(b"f(')', 'x')")
    assert one != without_comments(b"f(\"', 'x\")")
    assert without_comments(b"a = ['b', 'c']") != without_comments(b"a = [\"b', 'c\"]")


def test_a_file_that_is_not_python_is_left_as_it_is():
    for content in (b"\x7fELF\0", b"def (:", "x = 'ä'".encode("latin-1")):
        assert without_comments(content) == content


def test_a_long_sum_does_not_end_in_a_recursion_error():
    text = "x = " + " + ".join(["1"] * 800)
    assert len(without_comments(text.encode())) > 800
