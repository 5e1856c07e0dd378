"""What taugrid says: texts that tests meet are compared with tests/texts/, which people read when it changes.

`make texts` writes them anew. A test asserts error classes, exit codes, keys and numbers itself; here is only wording.
"""

import json
import os
import re
import socket
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FOLDER = TESTS / "texts"

update = False
"""Whether texts are written in place of compared (`pytest --texts`)."""

base = Path("/nonexistent")
"""pytest's folder of temporary files."""

_calls: Counter[str] = Counter()
_files: dict[Path, dict[str, str | list[str]]] = {}


def plain(text):
    """A text without what differs between machines and moments: paths, times, processes, ports and decimals."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(re.escape(str(base)) + r"/[^/\s:;,`'\"<>)]+", "TMP", text)
    text = text.replace(sys.executable, "PYTHON").replace(str(TESTS.parent), "ROOT")
    text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "NODE", text)
    text = re.sub(r"\b[0-9a-f]{32,}\b", "HASH", text)
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(\+00:00|Z)?", "TIME", text)
    text = re.sub(r"\b(process|pid|port) \d+", r"\1 #", text)
    text = re.sub(r"…/\S+", "…/TMP", text)  # a path whose beginning was too long
    text = re.sub(r"\b\d+(\.\d+){3}(:\d+)?", "NODE", text)  # a host, or its address once Ray has run in the process
    text = re.sub(r"\d+(,\d{3})*\.\d+(e[+-]?\d+)?", "#.#", text)
    text = re.sub(r"\b\d+ (s|min|h)\b", r"# \1", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def recorded(text, about=None):
    """Assert that a text is the recorded one; with `about`, its lines that hold this word, of which there is one."""
    if about is not None:
        lines = [line for line in text.splitlines() if about in line]
        assert lines, f"no line holds {about!r}:\n{text}"
        text = "\n".join(lines)
    file, name = os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)").split("::", 1)
    _calls[f"{file}::{name}"] += 1
    key = f"{name} {_calls[f'{file}::{name}']}"
    path = FOLDER / f"{Path(file).stem.removeprefix('test_')}.json"
    texts = _files.setdefault(path, json.loads(path.read_text()) if path.is_file() else {})
    now = plain(text)
    if update:
        texts[key] = now.splitlines() if "\n" in now else now
        return
    before = texts.get(key)
    before = "\n".join(before) if isinstance(before, list) else before
    assert now == before, f"not the text of {path.name}, {key}; if users should read it, `make texts` records it"


@contextmanager
def raises(error):
    """As `pytest.raises`, with the error's text as recorded."""
    with pytest.raises(error) as caught:
        yield caught
    recorded(str(caught.value))


def write():
    """Write the files of the texts that were recorded."""
    for path, texts in _files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(dict(sorted(texts.items())), ensure_ascii=False, indent=1) + "\n")
