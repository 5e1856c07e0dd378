"""What all sections share: immutability, common types, and validation that says in one line what is wrong.

Pydantic reports every branch of a union by itself ("less than or equal to 1", "'sigma_hat'"). Here the JSON schema of
the section says what a key may be as a whole, so that its branches give one sentence.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taugrid.errors import UserError
from taugrid.words import did_you_mean

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(gt=0)]


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """A validator of texts that must be one of `names`, two at least."""

    def known(name: str) -> str:
        if name not in names:
            raise ValueError(f"must be {either(names)}")
        return name

    return known


class Section(BaseModel):
    """A section of the config: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    later_keys: ClassVar[Mapping[str, Any]] = {}
    """Keys that were added after the first version. Their defaults mean what files without them mean."""

    @property
    def recorded(self) -> dict[str, Any]:
        """The section for files and hashes: without `later_keys` at their defaults, so that old hashes stay valid."""
        values: dict[str, Any] = self.model_dump(mode="json")
        later = self.later_keys
        return {key: value for key, value in values.items() if key not in later or value != later[key]}


S = TypeVar("S", bound=Section)


def validate(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """`values` as a `cls`; `UserError` with one line that names every mistake."""
    try:
        validated = cls.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, cls, values)}") from None
    for keys, value in _mistaken_for_numbers(values, validated):
        _, node = _walk(keys, cls.model_json_schema())
        raise UserError(f"{where}: {'.'.join(keys)}: must be {expected(node)}, not {_shown(value, {})}")
    return validated


_EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")
"""A number such as 2e-4, which is text in YAML 1.1."""


def _mistaken_for_numbers(given: Any, made: Any, keys: "Keys" = ()) -> Iterator[tuple["Keys", Any]]:
    """The keys and values of texts and booleans that pydantic made numbers of, or booleans of anything else."""
    if isinstance(given, Mapping) and isinstance(made, Section):
        for key, value in given.items():
            yield from _mistaken_for_numbers(value, getattr(made, key, None), (*keys, key))
    elif isinstance(given, list | tuple) and isinstance(made, list | tuple):
        for value, one in zip(given, made, strict=False):
            yield from _mistaken_for_numbers(value, one, keys)
    elif isinstance(made, int | float):
        is_text = isinstance(given, str) and not _EXPONENT.fullmatch(given)
        if is_text or isinstance(given, bool) != isinstance(made, bool):
            yield keys, given


Schema = Mapping[str, Any]
"""A JSON schema, or a part of one."""
Keys = tuple[str, ...]

TEXTS_MEAN = {
    "data": "{{name: folder, root: {}, shape: [CHANNELS, HEIGHT, WIDTH]}}, or {{name: NAME}} for a known data set",
    "model": "{{checkpoint: {}}}",
}
"""Sections that users write as a folder or a name by mistake, and how to write them."""

NOT_YET = {
    "conditions other than class labels": ("condition", "conditional"),
    "text prompts": ("prompt", "prompts", "negative_prompt", "text_encoder", "tokenizer"),
    "adapters": ("lora", "controlnet", "adapter", "adapters"),
    "experiment trackers beside mlflow, wandb and tensorboard (`track`; an observer package can follow a run)": (
        "comet", "comet_ml", "neptune", "aim", "clearml",
    ),
}  # fmt: skip
"""Features that this version lacks, and the keys with which users ask for them. docs/limits.md has the list."""

NAMED_OTHERWISE = {
    "sample.guidance; 1 is none, as in diffusers (w of Ho & Salimans' paper is guidance - 1)": (
        "guidance_scale", "cfg", "cfg_scale", "classifier_free_guidance",
    ),
    "sample.labels, as in labels: balanced (docs/models.md, Networks with classes)": (
        "label", "class_labels", "class_label", "classes",
    ),
    "model.unet.num_classes to train a network with classes; a checkpoint says how many it has": (
        "num_classes", "num_class_embeds",
    ),
    "model.vae, a folder or an id on the hub, to decode with another VAE; a pipeline brings its own": (
        "vae", "autoencoder",
    ),
    "track at the top, a list such as [mlflow, wandb, tensorboard] (docs/trackers.md)": (
        "wandb", "mlflow", "tracker", "trackers", "tracking",
    ),
}  # fmt: skip
"""What to write, and what others call it or where they write it."""

MAX_SHOWN_LIST = 8
"""A message shows only the first wrong item of a longer list."""


def explain(error: ValidationError, cls: type[BaseModel], values: Mapping[str, Any]) -> str:
    """All mistakes in `values`, joined by semicolons: each key, what it must be, and what it is."""
    schema = cls.model_json_schema()
    messages: dict[Keys, str] = {}
    for mistake in error.errors(include_url=False):
        keys, node = _walk(mistake["loc"], schema)
        if mistake["type"] == "extra_forbidden":
            keys = (*keys, str(mistake["loc"][-1]))
            messages[keys] = _unknown(".".join(keys), list(_section(node, schema)))
        elif mistake["type"] == "missing" and mistake["loc"][-1] == keys[-1]:
            messages[keys] = f"{'.'.join(keys)} is missing"
        elif mistake["type"] == "value_error":  # from one of taugrid's validators, which wrote a sentence
            text = mistake["msg"].removeprefix("Value error, ")
            given = f", not {_shown(mistake['input'], mistake)}" if text.startswith("must be ") else ""
            messages[keys] = ": ".join(filter(None, (".".join(keys), f"{text}{given}")))
        else:
            given = _shown(_at(values, keys), mistake)
            key, shown = ".".join(keys), f"must be {expected(node)}, not {given}"
            messages.setdefault(keys, f"{key or 'config'}: {shown}{_section_meant(key, _at(values, keys))}")
    # A section that is one branch of a union: its keys say what is wrong, not that it could have been something else.
    inner = {keys[:length] for keys in messages for length in range(len(keys))}
    return "; ".join(text for keys, text in messages.items() if keys not in inner)


def _unknown(key: str, known: list[str]) -> str:
    hint = did_you_mean(key.rpartition(".")[2], known, f"known keys: {', '.join(known)}")
    return not_yet(key) or f"unknown key {key!r} ({hint})"


def not_yet(key: str) -> str | None:
    """The message for an unknown dotted key of what taugrid lacks, or names otherwise; None for any other."""
    for meant, keys in NAMED_OTHERWISE.items():
        if key.rpartition(".")[2].lower() in keys:
            return f"{key!r}: write {meant}"
    for feature, keys in NOT_YET.items():
        if key.rpartition(".")[2].lower() in keys:
            return f"{key!r}: {feature} are not supported yet; remove the key (docs/limits.md lists what is missing)"
    return None


def _walk(location: Sequence[str | int], schema: Schema) -> tuple[Keys, Schema]:
    """The keys in a location, and the schema of the last. A location also names branches of unions and list items."""
    keys: list[str] = []
    node = schema
    for part in location:
        properties = _section(node, schema)
        if isinstance(part, str) and part in properties:
            keys.append(part)
            node = properties[part]
    return tuple(keys), node


def _section(node: Schema, schema: Schema) -> Schema:
    """The keys of the section that `node` is, or has as a branch, with their schemas; empty if it has none."""
    for branch in node.get("anyOf", [node]):
        target = schema["$defs"][branch["$ref"].rpartition("/")[2]] if "$ref" in branch else branch
        if "properties" in target:
            properties: Schema = target["properties"]
            return properties
    return {}


def _section_meant(key: str, value: Any) -> str:
    """How to write a section that was given as a folder or a name."""
    if key not in TEXTS_MEAN or not isinstance(value, str):
        return ""
    return f"; write {key}: {TEXTS_MEAN[key].format(value)}"


def _at(values: Any, keys: Keys) -> Any:
    for key in keys:
        values = values[key]
    return values


def _shown(value: Any, mistake: Mapping[str, Any]) -> str:
    if isinstance(value, list) and len(value) > MAX_SHOWN_LIST:
        value = mistake["input"]
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]  # as YAML writes them
    return repr(value)


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


def either(words: Iterable[str]) -> str:
    """Words of which one is meant: a, b or c."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


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
