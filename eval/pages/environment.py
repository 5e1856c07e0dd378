"""The templates of this folder, the rules they are filled in by, and the board's page."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from taugrid.eval.tables.labels import spelled
from taugrid.words import short_path

TEMPLATES = "templates"
BOARD_SCRIPTS = ("copy.js", "board.js", "board_table.js", "board_panel.js", "board_start.js")
KEYS = {
    "↑ ↓": "move to another cell",
    "Page Up, Page Down, Home, End": "move further",
    "Space": "pick the cell, or unpick it",
    "Enter": "show its details and report; on a heading: sort",
    "/": "filter by text",
    "Esc": "close a menu",
    "?": "show these keys",
}


@cache
def environment() -> Environment:
    """Templates by name. Every value is escaped, and a name that a template lacks is an error."""
    found = Environment(
        loader=FunctionLoader(_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"short_path": short_path, "spelled": spelled}
    return found


def rendered(
    template: str,
    styles: Sequence[str],
    scripts: Sequence[str] = ("copy.js", "report.js"),
    loads: str = "img-src data:",
    **values: Any,
) -> str:
    """A whole page, with a policy that allows its own styles and scripts alone, and the directives `loads`."""
    style, script = (Markup("").join(map(asset, names)) for names in (styles, scripts))
    policy = (
        f"default-src 'none'; {loads}; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment().get_template(template).render(style=style, script=script, policy=policy, **values)


def asset(name: str) -> Markup:
    """A style sheet or a script that ships with taugrid; it is not escaped."""
    return Markup(_text(name))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    return files(__package__).joinpath(TEMPLATES, name).read_text(encoding="utf-8")


def board_html(document: Mapping[str, Any], live: bool) -> str:
    """The page of a board: the cells of many runs, to filter, sort and compare; a `ValueError` if there is a NaN.
    `document` is as orchestrator/board/document.py makes it. A `live` page asks for newer ones and paired
    differences."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")
    styles, loads = ("report.css", "history.css", "board.css"), "img-src 'self' file: data:; connect-src 'self'"
    return rendered("board.html", styles, BOARD_SCRIPTS, loads, data=Markup(text), live=live, keys=KEYS.items())
