"""The templates of this folder, and the rules they are filled in by."""

from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = "templates"


@cache
def environment() -> Environment:
    """Templates by name. Every value is escaped, and a name that a template lacks is an error."""
    return Environment(
        loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def asset(name: str) -> Markup:
    """A style sheet or a script that ships with taugrid; it is not escaped."""
    return Markup(_text(name))


def _text(name: str) -> str:
    return files(__package__).joinpath(TEMPLATES, name).read_text(encoding="utf-8")
