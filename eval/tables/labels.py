"""What tables and figures call settings and their values: symbols, short names of keys, texts of labels."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from taugrid.config import Sample
from taugrid.eval.tables.long_form import as_text, axes
from taugrid.grids import EVALUATIONS, PATHS, SHOWN, options_text, plain_text, short_keys, short_names
from taugrid.protocol import ProtocolFields, comparability_key

SIGMA_HAT = "σ̂"
SYMBOLS = SHOWN | {"eta": "η", EVALUATIONS: "evaluations"}
"""Columns that tables and figures write as the paper does, or shorter."""
OTHERS = ("sampler", "spacing", "clip")
"""Columns of quality.csv that are settings of a cell, besides those that every table has."""
IGNORABLE = ("spacing", "clip")  # those of them that are empty where the sampler ignores them
OPTIONS = "sampler_options"


def prepared(
    frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields], columns: Collection[str] = ()
) -> pd.DataFrame:
    """The frame with comparability keys, for these `columns` of quality.csv, instead of protocols' names, and
    checkpoints by their short names. A setting that some samplers ignore gets the others' value where that is the only
    one: it distinguishes no cells."""
    keys = {name: comparability_key(protocol, columns) for name, protocol in protocols.items()}
    changed = {"protocol": frame["protocol"].map(lambda name: keys.get(name, "unknown"))}
    changed |= {name: frame[name].ffill().bfill() for name in IGNORABLE if frame[name].nunique() == 1}
    for key in frame.columns.intersection([*PATHS]):
        names = short_checkpoints(frame[key])
        changed[key] = frame[key].map(lambda path, names=names: names.get(path, path))
    return frame.assign(**changed)


def short_columns(columns: Iterable[str]) -> dict[str, str]:
    """Column -> its name for people: a symbol of the paper, or a grid key's last component where that is unique."""
    given = list(columns)
    return {**short_keys(given, Sample.model_fields), **{name: SYMBOLS[name] for name in given if name in SYMBOLS}}


def short_checkpoints(checkpoints: Iterable[object]) -> dict[str, str]:
    """Short names of the `checkpoints` that are set (paths or names): each distinguishes one from all others."""
    given = list(dict.fromkeys(checkpoint for checkpoint in checkpoints if isinstance(checkpoint, str)))
    return dict(zip(given, short_names(given), strict=True))


def is_number(label: object) -> bool:
    """Whether a label of eta is a number; else it is sigma_hat's, or the name of a sampler without eta."""
    try:
        float(str(label))
    except ValueError:
        return False
    return True


def eta_in_words(eta: str) -> str:
    """Such as "η = 0.2", from eta as in a config, or the name of a sampler without eta."""
    if eta == "sigma_hat":
        return SIGMA_HAT
    return f"η = {eta}" if is_number(eta) else eta


def labelled(frame: pd.DataFrame, name: str, beside: Sequence[str] = ()) -> "pd.Series[Any]":
    """A column's values in tables: eta as 0.0 or σ̂, S as a number, others as in a config. What a sampler ignores is
    empty; in place of eta it has its name, unless that is `beside` it in a row or above."""
    if name == "eta":
        numbers = frame["eta"].map(lambda eta: str(float(eta)))
        others = "" if "sampler" in beside else frame["sampler"]
        return numbers.where(frame["sigma"] != "sigma_hat", SIGMA_HAT).where(frame["eta"].notna(), others)
    if name == OPTIONS:
        return frame[name].map(options_text)
    if name in ("steps", EVALUATIONS):
        return frame[name]
    unset = "" if name in IGNORABLE else as_text(None)
    return frame[name].map(lambda value: unset if pd.isna(value) else plain_text(value))


def short_samplers(text: str) -> str:
    """A text with diffusers' schedulers by the short names of their classes; not DDIM, which is also one of ours."""
    return re.sub(r"\bdiffusers:(?!DDIMScheduler\b)(\w+)Scheduler\b", r"\1", text)


def spelled(text: str) -> str:
    """Settings in a text as pages write them: "schedule = cosine, η = 0.5" from "schedule=cosine η=0.5"."""
    parted = re.sub(r"(=\S+) (?=[^\W\d][\w.]*=\S)", r"\1, ", text)
    return re.sub(r"(?<!\S)([^\W\d][\w.]*)=(?=\S)", r"\1 = ", parted).replace(f"η = {SIGMA_HAT}", SIGMA_HAT)


def row_name(settings: Iterable[tuple[str, str]]) -> str:
    """The name of a row, such as "schedule = cosine, η = 0.5". Samplers, their options and σ̂ have no key."""
    return ", ".join(
        label if key in (OTHERS[0], OPTIONS) or (key == "η" and not is_number(label)) else f"{key} = {label}"
        for key, label in settings
        if label
    )


def row_note(group: pd.DataFrame, column: str) -> str:
    """The rows with each value of `column`, such as "clip: none (0.0, 0.2), x0_and_eps (σ̂)"."""
    known = group[group[column].notna()] if column in IGNORABLE else group
    ordered = known.assign(row=labelled(known, "eta"), value=known[column].map(as_text)).sort_values(["sigma", "eta"])
    rows = {str(value): ", ".join(part.unique()) for value, part in ordered.groupby("value", sort=False)["row"]}
    return f"{column}: " + ", ".join(f"{v} ({labels})" if len(rows) > 1 else v for v, labels in rows.items())


def settings_in(columns: Sequence[str]) -> list[str]:
    """The settings among the columns of quality.csv besides eta, S and N: the grid's keys in its order, then others."""
    keys = sorted(axes(columns), key=columns.index)
    options = [key for key in keys if key == OPTIONS]
    return [*(key for key in keys if key != OPTIONS), OTHERS[0], *options, *OTHERS[1:]]
