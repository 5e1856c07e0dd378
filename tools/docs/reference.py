"""Writes docs/reference/ from the code: config keys, commands, Python functions, columns, exit codes, variables.

`make docs` runs it. tests/unit/test_reference_pages.py fails if the pages that are committed are not these.
"""

import ast
import inspect
import re
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import yaml

import taugrid
from taugrid.config import DIFFUSION_DEFAULTS, EDM_DEFAULTS, SIGMA_KEYS, Section
from taugrid.config.experiment import Config
from taugrid.config.section import either
from taugrid.errors import Exit
from taugrid.eval.tables import by_label, differences, long_form, reconstruction
from taugrid.eval.tables.effects import Effect
from taugrid.eval.tables.published.counterparts import Counterpart, published_frame
from taugrid.orchestrator.cli.main import cli
from taugrid.orchestrator.nightly.history import HistoryView
from taugrid.orchestrator.plan.sections import NOT_IDENTITY
from taugrid.orchestrator.report import write
from taugrid.orchestrator.view.run import CellView, RunView
from taugrid.parquet.writer import sample_schema
from taugrid.registry.metrics import METRICS, OF_SAMPLING, MetricSettings

FOLDER = Path(__file__).parents[2] / "docs/reference"
MEANINGS = yaml.safe_load(Path(__file__).with_name("meanings.yaml").read_text())
Schema = Mapping[str, Any]
MADE = "<!-- Made from the code by tools/docs/reference.py: `make docs` writes it again. -->"
WIDTH = 120

BY_CONTENT = {
    "model.checkpoint", "model.callable", "model.weights", "model.guide", "model.vae", "evaluate.extractor",
    "evaluate.weights", "evaluate.reference",
}  # fmt: skip
"""Keys with places of files, or names of code."""
OUTSIDE = NOT_IDENTITY | {
    "evaluate": set(Config.model_fields["evaluate"].annotation.model_fields)  # type: ignore[union-attr]
    - {*inspect.signature(MetricSettings).parameters, "precision"}
}
NO_IDS = ("name", "seed", "grid", "gate", "report", "cluster", "track")
"""Keys of the config that are in no id. The values of `grid` and the seeds are, as the keys that they set."""


def markdown(text: str) -> str:
    """Text of a docstring, in which only code is marked, as Markdown in one line."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        part if part.startswith("`") else re.sub(r"([*]|(?<!\w)_|_(?!\w))", r"\\\1", part).replace("<", "&lt;")
        for part in parts
    )


def wrapped(text: str, first: str = "", rest: str = "") -> str:
    """Lines of Markdown. No line but the first may begin as an item of a list does."""
    glued = re.sub(r" (?=(?:[-+*#>=]+|\d+[.)])(?: |$))", "\0", text)
    lines = textwrap.wrap(
        glued, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace("\0", " ")


def item(name: str, text: str) -> str:
    """An item of a list: a name, if it has one, and what it means."""
    return wrapped(": ".join(filter(None, [name and f"`{name}`", text])), "- ", "  ")


def attribute_docs(cls: type) -> dict[str, str]:
    """The docstrings below the fields of a class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: doc.value.value
        for field, doc in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)
    }


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a key may hold."""
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        yield annotation
    for part in typing.get_args(annotation):
        yield from sections_in(part)


def config_page() -> Iterator[str]:
    schema = Config.model_json_schema()
    filled = {"diffusion": {**DIFFUSION_DEFAULTS.recorded, **EDM_DEFAULTS.model_dump(include=set(SIGMA_KEYS))}}
    todo: list[tuple[str, type[Section]]] = [("", Config)]
    seen = set()
    while todo:
        path, section = todo.pop(0)
        seen.add(section)
        nodes = (schema if section is Config else schema["$defs"][section.__name__])["properties"]
        items, inner = [], []
        for key, field in section.model_fields.items():
            full = f"{path}.{key}".lstrip(".")
            inner += [(full, each) for each in sections_in(field.annotation) if each not in seen]
            about = nodes[key].get("description") or field.description or ""
            is_list = all(line.startswith("`") for line in about.splitlines())  # as of data.name
            about, *further = about.splitlines() if is_list and about else [about]
            takes = value_of(nodes[key], field, filled.get(path, {}).get(key, field.default))
            words = " ".join(filter(None, [markdown(about), in_ids(full)]))
            items.append(wrapped(f"`{key}` {takes}: {words}", "- ", "  "))
            items += [wrapped(markdown(line), "    - ", "      ") for line in further]
        todo = inner + todo
        yield f"## {path}" if path else "## Top level"
        yield markdown(section.__doc__ or "").replace("from `DIFFUSION_DEFAULTS`", "is the default that is given here")
        yield "\n".join(items)


def value_of(node: Mapping[str, Any], field: Any, default: Any) -> str:
    """What a key takes, and its default."""
    if field.is_required():
        return f"({markdown(expected(node))}; required)"
    if "$ref" in node:
        return "(a section)"
    shown = yaml.safe_dump(default, default_flow_style=True, width=1000).splitlines()[0]
    return f"({markdown(expected(node))}; default `{shown}`)"


def expected(node: Schema) -> str:
    """The expected value of a key, as a phrase such as "a number from 0 to 1, or sigma_hat"."""
    branches = node.get("anyOf", [node])
    words = [word for branch in branches for word in _words(branch)]
    phrases = [_phrase(branch) for branch in branches if not _words(branch)]
    *others, last = [*phrases, *([either(words)] if words else [])]
    return f"{', '.join(others)}, or {last}" if others else last


def _words(branch: Schema) -> list[str]:
    if branch.get("type") == "boolean":
        return ["true", "false"]
    if branch.get("type") == "null":
        return ["null"]
    return [*map(str, branch.get("enum", [branch["const"]] if "const" in branch else []))]


def _phrase(branch: Schema, plural: bool = False) -> str:
    match branch.get("type"):
        case "integer":
            return _number(branch, "whole number", plural)
        case "number":
            return _number(branch, "number", plural)
        case "string":
            return f"text of {branch['form']}" if "form" in branch else "text"
        case "array":
            item = branch.get("prefixItems", [branch.get("items")])[0]
            items = either(_words(item)) if _words(item) else _phrase(item, plural=True)
            least, most = branch.get("minItems"), branch.get("maxItems")
            if least is not None and least == most:
                return f"a list of {least} {items}"
            return f"a list of {'one or more ' if least else ''}{items}"
        case _:
            return "mappings" if plural else str(branch.get("form", "a mapping"))  # a section, or a mapping of the grid


def _number(branch: Schema, noun: str, plural: bool) -> str:
    low, above = branch.get("minimum"), branch.get("exclusiveMinimum")
    high, below = branch.get("maximum"), branch.get("exclusiveMaximum")
    nouns = f"{noun}s" if plural else f"a {noun}"
    if above == 0 and high is None and below is None:
        return f"positive {noun}s" if plural else f"a positive {noun}"
    if low is not None and high is not None:
        return f"{nouns} from {low:g} to {high:g}"
    limits = {"at least": low, "greater than": above, "at most": high, "less than": below}
    bounds = [
        f"{words} {'2^63' if limit == 2**63 else f'{limit:g}'}" for words, limit in limits.items() if limit is not None
    ]
    return f"{nouns} {'of ' if low is not None else ''}{' and '.join(bounds)}" if bounds else nouns


def in_ids(key: str) -> str:
    section, _, inner = key.partition(".")
    is_outside = inner in OUTSIDE.get(section, ()) or key in NO_IDS
    return "*By content.*" if key in BY_CONTENT else "*Not in ids.*" if is_outside else ""


def commands(group: click.Group, before: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{before} {name}")
        else:
            yield f"{before} {name}", command


def cli_page() -> Iterator[str]:
    for name, command in commands(cli, "taugrid"):
        context = click.Context(command, info_name=name)
        yield f"## {name}"
        yield from (markdown(text) for text in inspect.cleandoc(command.help or "").split("\n\n"))
        yield "\n".join(f"    {line}" for line in getattr(command, "examples", ()))
        usage = " ".join(command.collect_usage_pieces(context)).removeprefix("[OPTIONS]").strip()
        yield f"Arguments: `{usage}`" if usage else ""
        options = [each.get_help_record(context) for each in command.params if isinstance(each, click.Option)]
        yield "\n".join(item(names, markdown(about)) for names, about in filter(None, options))


def docstring(text: str | None) -> Iterator[str]:
    """The parts of a docstring in Google's style."""
    for block in inspect.cleandoc(text or "").split("\n\n"):
        head, _, rest = block.partition("\n")
        if head not in ("Args:", "Returns:", "Raises:"):
            yield markdown(block)
            continue
        yield head
        entries = (
            re.fullmatch(r"(?:([\w.]+):)?(.*)", entry, re.DOTALL)
            for entry in re.split(r"\n(?=[\w.]+:)", textwrap.dedent(rest))
        )
        yield "\n".join(item(*map(markdown, entry.groups(""))) for entry in entries if entry)


def signature(function: Any, name: str) -> str:
    """How a function is called, without types, as ruff lays it out."""
    found = inspect.signature(function)
    shown = [each.replace(annotation=each.empty) for each in found.parameters.values() if each.name != "self"]
    words = str(found.replace(parameters=shown, return_annotation=found.empty)).replace("'", '"')
    if len(name + words) > WIDTH:
        words = "(\n    " + re.sub(r", (?![^(]*\))", ",\n    ", words[1:-1]) + ",\n)"
    return f"```python\n{name}{words}\n```"


def python_page() -> Iterator[str]:
    for name in taugrid.__all__:
        if inspect.isfunction(function := getattr(taugrid, name)):
            yield from (f"## taugrid.{name}", signature(function, f"taugrid.{name}"), *docstring(function.__doc__))
    for cls, title in ((RunView, "A run"), (CellView, "A cell of a run"), (HistoryView, "A history of nights")):
        yield from (f"## {title}", *docstring(cls.__doc__))
        for name, member in vars(cls).items():
            if name.startswith("_") or isinstance(member, classmethod) or not inspect.getdoc(member):
                continue
            call = f"{title.split()[1]}.{name}"
            yield f"### {call}"
            yield signature(member, call) if inspect.isfunction(member) else ""
            yield from docstring(inspect.getdoc(member))


def metric_columns() -> dict[str, str]:
    """Column of quality.csv -> what it is, of metrics."""
    found = {}
    for metric in METRICS.values():
        for column in metric.columns:
            better = "higher" if column.higher_is_better else "lower"
            found[column.name] = f"{column.title}; {better} is better (`evaluate.metrics: {metric.name}`)"
            if column.error:
                found[column.error] = f"{column.error_means}, of `{column.name}`"
            if column.sampling_error:
                found[column.sampling_error] = f"{OF_SAMPLING}, of `{column.name}`"
            for further in column.further:
                found[further] = f"one standard error of drawing the reference's images, of `{column.name}`"
    return found


def tables_page() -> Iterator[str]:
    docs = attribute_docs(Effect), attribute_docs(Counterpart)
    names: dict[str, Iterable[str]] = {
        "quality.csv": [*long_form.COLUMNS, long_form.EXACT, *long_form.appended_columns()],
        "cells.csv and cells.parquet": write.FIRST,
        "differences.csv": differences.DIFFERENCE_COLUMNS,
        "effects.csv": ["metric", *Effect.__dataclass_fields__],
        "by_label.csv": by_label.FIRST,
        "reconstruction.csv": reconstruction.RECONSTRUCTION_COLUMNS,
        "published.csv": published_frame([]).columns,
        "Sample files": sample_schema({}, conditional=True).names,
    }
    for name, table in MEANINGS["tables"].items():
        known = {"quality.csv": metric_columns(), "effects.csv": docs[0], "published.csv": docs[1]}.get(name, {})
        known = {column: markdown(text) for column, text in known.items()} | table["columns"]
        yield from (f"## {name}", table["about"])
        yield "\n".join(item(column, known[column]) for column in names.get(name, table["columns"]))


def exit_codes_page() -> Iterator[str]:
    yield "## Exit codes"
    yield "\n".join(item(str(int(code)), MEANINGS["exit codes"][code.name]) for code in Exit)
    yield "## Environment variables"
    yield "\n".join(item(name, meaning) for name, meaning in MEANINGS["variables"].items())


PAGES = {
    "config": config_page,
    "cli": cli_page,
    "python": python_page,
    "tables": tables_page,
    "exit-codes": exit_codes_page,
}


def page(name: str) -> str:
    """A page of docs/reference/."""
    title, *intro = MEANINGS["pages"][name]
    parts = [title, MADE, *intro, *PAGES[name]()]
    is_laid = re.compile(r"#|    |- |```|<!--|.*\n")
    return "\n\n".join(part if is_laid.match(part) else wrapped(part) for part in parts if part) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in PAGES:
        (FOLDER / f"{name}.md").write_text(page(name), encoding="utf-8")
