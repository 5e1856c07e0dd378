"""From a config's name to a `Config`: finding and reading the file, `--set`, defaults that depend on other keys."""

import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from taugrid.config import GRID_SECTIONS, Config, Data, S, validate
from taugrid.config.model import is_hub_id
from taugrid.config.sample import LabelColumn
from taugrid.config.section import absolute_path
from taugrid.errors import UserError, joined_lines
from taugrid.grids import CHECKPOINT, PATHS, values_by_key, with_values
from taugrid.run_id import is_run_directory
from taugrid.storage import LOCAL, is_url, open_place
from taugrid.words import did_you_mean, with_controls
from taugrid.yaml_text import from_yaml

USER_PREFIX = "x-"  # prefix of top-level keys in YAML that taugrid ignores, as Docker Compose does: they hold anchors
CONFIG_NAME = "config.json"  # of a run directory: a file of this name is the directory's, not the user's own
MODEL_PATHS = ("checkpoint", "weights", "guide", "vae")  # keys of `model`
PATH_KEYS = ("data.root", "evaluate.weights", "cluster.scratch", *(f"model.{key}" for key in MODEL_PATHS))
INNER_PATHS = {"labels": "parquet", CHECKPOINT: "of"}  # key -> the key of a path in it, where it is a mapping

Given = str | Mapping[str, Any]  # a config: the name of one (see `find`), or its content
Override = str | tuple[str, Any]  # `key=value` as --set takes it, or a key and its value


def find(name: str) -> Path:
    """The file that `name` means: a path, a run directory, or the name of a shipped config; else `UserError`."""
    path = Path(name)
    if is_url(name) or path.is_dir():
        root, storage = open_place(name, "CONFIG")
        storage.require(root)
        if not is_run_directory(root, storage):
            raise UserError(f"{name} is not a run directory; give a config file, or a directory that taugrid made")
        if not storage.exists(root / CONFIG_NAME):
            raise UserError(f"{name} has lost its config.json; write it again: `taugrid report CONFIG --out {name}`")
        return (root if is_url(name) else path) / CONFIG_NAME
    if path.is_file():
        return path
    configs = [Path(str(entry)) for entry in files("taugrid.configs").iterdir()]
    shipped = {config.stem: config for config in configs if _is_yaml(config.name)}
    if path.stem in shipped and name in (path.stem, path.name):
        return shipped[path.stem]
    hint = did_you_mean(path.stem, shipped, f"shipped configs: {', '.join(sorted(shipped))}")
    raise UserError(f"no config file, run directory or shipped config is called {name!r} ({hint})")


def _is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, without keys that begin with `USER_PREFIX`; `UserError` if it is none."""
    try:
        root, storage = open_place(str(path.parent), "CONFIG") if is_url(str(path)) else (path.parent, LOCAL)
        text = storage.read(root / path.name).decode("utf-8")
        values = json.loads(text, object_pairs_hook=_without_duplicates) if path.suffix == ".json" else from_yaml(text)
    except UnicodeDecodeError:
        raise UserError(f"can't read {path}: it is not text, so no config") from None
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        reason = joined_lines(error)
        if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark) is not None:
            reason = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
        raise UserError(f"can't read {path}: {reason}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold sections (name:, data:, model:, ...), not {type(values).__name__}")
    ignored = USER_PREFIX if _is_yaml(path.name) else None
    return {key: value for key, value in values.items() if ignored is None or not str(key).startswith(ignored)}


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in JSON. A key that it has twice is refused, because Python would silently use the last."""
    keys = [key for key, _ in pairs]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"the key {twice[0]!r} appears twice; remove one of them")
    return dict(pairs)


def merge(values: Mapping[str, Any], assignments: Sequence[Override]) -> dict[str, Any]:
    """`values` with every assignment applied, as plain data."""
    merged: dict[str, Any] = _plain("config", values)
    for key, value in map(_key_and_value, assignments):
        *parents, last = key.split(".")
        node = merged
        if parents[:1] == ["grid"]:
            parents, last = ["grid"], key.removeprefix("grid.")  # a grid key may itself contain dots
        for depth, parent in enumerate(parents, 1):
            below = node.get(parent)
            path = ".".join(parents[:depth])
            if below is None or below == []:
                node[parent] = {}
            elif isinstance(below, list):
                raise UserError(f"--set {key}: {path} is a list; set the whole list, as in --set '{path}=[...]'")
            elif not isinstance(below, dict):
                remedy = f"set all of it, as in --set '{path}={{...}}'"
                raise UserError(f"--set {key}: {path} is {below!r}, not a section; {remedy}")
            node = node[parent]
        node[last] = value
    return merged


def _key_and_value(assignment: Override) -> tuple[str, Any]:
    if not isinstance(assignment, str):
        key, value = assignment
        return key, _plain(key, value)
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set takes key=value, as in --set sample.num_samples=2000, not {assignment!r}")
    try:
        return key.strip(), from_yaml(text)
    except yaml.YAMLError as error:
        reason = f" ({error.problem})" if isinstance(error, yaml.constructor.ConstructorError) else ""
        raise UserError(f"--set {key}: {text!r} is not a YAML value{reason}") from None


def _plain(key: str, value: Any) -> Any:
    """A copy of `value` as JSON would hold it. Paths become texts, and NumPy's numbers and arrays Python's."""

    def convert(other: Any) -> Any:
        if isinstance(other, os.PathLike):
            return os.fspath(other)
        if hasattr(other, "tolist"):
            return other.tolist()
        raise UserError(f"{key}: a config holds texts, numbers, lists and mappings, not {type(other).__name__}")

    try:
        return json.loads(json.dumps(value, default=convert))
    except RecursionError:
        raise UserError(f"{key}: it is nested too deeply") from None


def load(given: Given, assignments: Sequence[Override] = ()) -> Config:
    """A config with assignments applied in their order, validated, and complete: with seeds, and with absolute paths;
    raises `UserError` for a missing file, bad syntax, an unknown key or a bad value."""
    path = None if isinstance(given, Mapping) else find(given)
    values = given if isinstance(given, Mapping) else read(path or find(given))
    merged = merge(values, assignments)
    if (text := with_controls(merged)) is not None:
        raise UserError(f"{path or 'config'}: {text!r} has a control character; remove it")
    _refuse_overruled(merged, assignments)
    if path is not None and path.name == CONFIG_NAME:
        _follow_seed(values, merged)
    assigned = ", ".join(each if isinstance(each, str) else each[0] for each in assignments)
    return _completed(validate(Config, merged, f"{path or 'config'}{assigned and f' with --set {assigned}'}"))


def _refuse_overruled(merged: Mapping[str, Any], assignments: Sequence[Override]) -> None:
    """Raise `UserError` for a --set that would change nothing, because every mapping of the grid sets the same key."""
    grid = merged.get("grid")
    mappings = [grid] if isinstance(grid, Mapping) else grid
    if not isinstance(mappings, list) or not all(isinstance(mapping, Mapping) for mapping in mappings):
        return  # it is refused as a whole
    for key, _ in map(_key_and_value, assignments):
        section, _, rest = key.partition(".")
        axis = rest if section == "sample" else key if section in GRID_SECTIONS else None
        if mappings and all(axis in values_by_key(mapping) for mapping in mappings):
            raise UserError(f"--set {key} changes nothing, because the grid sets {axis}; set it there")


def _follow_seed(before: Mapping[str, Any], merged: dict[str, Any]) -> None:
    """Reset the seeds that a run directory's config has filled in from `seed`, so that they follow a new `seed`."""
    for section in ("train", "sample"):
        given = before.get(section)
        seed = given.get("seed") if isinstance(given, Mapping) else None
        if before.get("seed", 0) != merged.get("seed", 0) and seed == before.get("seed", 0) == merged[section]["seed"]:
            merged[section]["seed"] = None


def _completed(config: Config) -> Config:
    """`config` with what it leaves to others, so that config.json means the same everywhere.

    Paths become absolute, seeds are the config's, and a reference that is another split of `data` has its root.
    """

    def absolute(key: str, values: list[Any]) -> list[Any]:
        return [_absolute(key, value) for value in values]

    grid = [with_values(mapping, absolute) for mapping in config.grid]
    paths = {key: _absolute(f"model.{key}", getattr(config.model, key)) for key in MODEL_PATHS}
    weights = _absolute("evaluate.weights", config.evaluate.weights)
    scratch = _absolute("cluster.scratch", config.cluster.scratch)
    data, reference, labels = config.data, config.evaluate.reference, config.sample.labels
    if isinstance(reference, Data):
        if reference.name == data.name and reference.root is None:
            reference = reference.model_copy(update={"root": data.root})
    elif reference is not None and Path(absolute_path(reference)).exists():  # else a data set's name
        reference = absolute_path(reference)
    if isinstance(labels, LabelColumn):
        labels = labels.model_copy(update={"parquet": absolute_path(labels.parquet)})
    sample = config.sample.model_copy(update={"labels": labels})
    sections = {
        "model": config.model.model_copy(update=paths),
        "train": _with_seed(config.train, config.seed),
        "sample": _with_seed(sample, config.seed),
        "evaluate": config.evaluate.model_copy(update={"reference": reference, "weights": weights}),
        "cluster": config.cluster.model_copy(update={"scratch": scratch}),
    }
    return config.model_copy(update={"grid": grid, **sections})


def _absolute(key: str, value: Any) -> Any:
    """The value of a key, with an absolute path if it holds one. A URL stays as it is, and so does an id on the hub,
    unless a folder has that name."""
    inner = INNER_PATHS.get(key)
    if isinstance(value, dict) and isinstance(value.get(inner), str):
        return {**value, inner: absolute_path(value[inner])}
    if key not in PATH_KEYS or not isinstance(value, str):
        return value
    is_url = key == "data.root" and "://" in value
    is_on_hub = key in PATHS and is_hub_id(value) and not Path(value).exists()
    return value if is_url or is_on_hub else absolute_path(value)


def _with_seed(section: S, seed: int) -> S:
    return section if getattr(section, "seed", None) is not None else section.model_copy(update={"seed": seed})
