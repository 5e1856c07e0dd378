"""Matches the cells of two runs by settings and grid values, and gives them labels that are the same every night.

Ids and folder names change with every new network.
"""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from taugrid.config.sample import SAMPLER_KEYS
from taugrid.errors import UserError
from taugrid.eval.reference import images_in_words
from taugrid.eval.tables.labels import short_checkpoints
from taugrid.grids import varying
from taugrid.orchestrator.baseline.snapshot import MODEL_FILES, Snapshot, SnapshotCell
from taugrid.orchestrator.plan.cells import COLUMN_NAMES, settings_name
from taugrid.protocol import disagreements
from taugrid.registry.samplers import DEFAULT, SAMPLERS, is_custom
from taugrid.words import listed
from taugrid.workers.samplers.sampler import find

ACCEPT = "`taugrid baseline accept DIR --to FILE --reason TEXT`"

NOT_MATCHED = frozenset({"num_samples", "batch_size", "shard_evaluations"})
"""Keys of `sample` that do not identify a cell: how many images it has, and how the work is divided."""

OPTIONAL = ("conditions", "decoder")  # fields that a protocol leaves out for unconditional cells and networks of pixels

MUST_AGREE = (
    "reference", "extractor", "num_samples", "weights", "tau", "clip", "precision", "compile", "rounding", "sampler",
    *OPTIONAL,
)  # fmt: skip
"""Fields of a protocol without which two FIDs are not comparable; of `sampler`, `SAMPLER_FIELDS`. Versions may differ:
an upgrade is what a night is for. Settings of metrics are compared metric by metric (comparison.py)."""

SAMPLER_FIELDS = ("name", "options", "times", "last_sigma", "clip", "code")
"""Those of a sampler's block that must agree. The others are versions of libraries whose code computes its steps."""

MAX_DIFFERENCES_NAMED = 4  # the number of differences between protocols that an error message names


class Matched(NamedTuple):
    """The cells of two snapshots, side by side."""

    pairs: list[tuple[SnapshotCell, SnapshotCell]]  # (new, baseline), in the order of the new run's grid
    only_new: dict[str, str]  # name -> label of cells that the baseline lacks, unscored ones of the new run included
    only_baseline: dict[str, str]


def matched(new: Snapshot, baseline: Snapshot) -> Matched:
    """The cells of both, matched; `UserError` if no cells match, or matching ones were measured in different ways."""
    sides = (new.cells, baseline.cells)
    # N, and what files name, identify a cell only if a grid has several values of them.
    columns = ["labels"] if any(cell.labels_are_rows for side in sides for cell in side) else []
    optional = ("num_samples", *columns, *sorted(MODEL_FILES))
    shared = [name for name in optional if any(len({_value(cell, name) for cell in side}) > 1 for side in sides)]
    by_key = {_key(cell, shared): cell for cell in baseline.cells}
    pairs = [(cell, by_key[key]) for cell in new.cells if (key := _key(cell, shared)) in by_key]
    if not pairs:
        if changed := changed_code(new, baseline):
            raise UserError("; ".join(changed))
        raise UserError(
            f"no cell of {new.source} has the settings of one of {baseline.source} "
            f"({_first_difference(new.cells[0], baseline.cells[0])}); give the baseline of this grid"
        )
    accepted = new.source if new.images is None else f"{new.source} {new.images.options}"
    _require_comparable(pairs, accepted if new.cells[0].metrics else "DIR")
    only = []
    for side, snapshot in enumerate((new, baseline)):
        label_of, both = labels(snapshot.cells), {pair[side].cell for pair in pairs}
        alone = {cell.name: label_of[cell.cell] for cell in snapshot.cells if cell.cell not in both}
        only.append({**alone, **snapshot.unscored})
    return Matched(pairs, *only)


def _value(cell: SnapshotCell, name: str) -> str:
    return json.dumps(cell.by_content.get(name, cell.axes.get(name)), sort_keys=True)


def _key(cell: SnapshotCell, shared: Iterable[str]) -> str:
    left_out = NOT_MATCHED | ({"labels"} if cell.labels_are_rows else set())
    settings = {key: value for key, value in cell.settings.items() if key not in left_out}
    known_otherwise = MODEL_FILES | cell.settings.keys() | set(COLUMN_NAMES.values())
    axes = {key: value for key, value in cell.axes.items() if key not in known_otherwise}
    return json.dumps([settings, axes, [_value(cell, name) for name in shared], _code(cell)], sort_keys=True)


def _code(cell: SnapshotCell) -> str | None:
    """The hash of the code of its custom sampler."""
    return (cell.protocol.get("sampler") or {}).get("code")


def changed_code(new: Snapshot, baseline: Snapshot) -> list[str]:
    """A sentence for each custom sampler that both sides have with different code: its cells are not compared."""
    known = {(cell.settings.get("sampler", DEFAULT), _code(cell)) for cell in baseline.cells}
    names, label_of = {name for name, _ in known}, labels(new.cells)
    changed: dict[str, list[str]] = {}
    for cell in new.cells:
        name = cell.settings.get("sampler", DEFAULT)
        if name in names and (name, _code(cell)) not in known:
            changed.setdefault(name, []).append(label_of[cell.cell])
    accept = ACCEPT.replace("DIR", new.source if new.cells[0].metrics else "DIR")
    return [
        f"the code of the sampler {name} is not the baseline's, so there is nothing to compare its cells with "
        f"({listed(cells, MAX_DIFFERENCES_NAMED)}); undo the change or, if it is meant, accept a run with the new "
        f"code: {accept}"
        for name, cells in changed.items()
    ]


def _first_difference(new: SnapshotCell, old: SnapshotCell) -> str:
    if (new.images is None) != (old.images is None):
        return "one is a run, and the other images"
    sides = [{**cell.axes, **cell.by_content} for cell in (new, old)]
    for key in {**sides[0], **sides[1]}:
        if key not in NOT_MATCHED | MODEL_FILES and sides[0].get(key) != sides[1].get(key):
            return f"{key} is {sides[0].get(key)} and {sides[1].get(key)}"
    return "their settings differ"


def _require_comparable(pairs: Iterable[tuple[SnapshotCell, SnapshotCell]], directory: str) -> None:
    """Raise `UserError` if a pair differs in a field of `MUST_AGREE`; the message says how to accept `directory`."""
    differences: dict[str, set[str]] = {}
    for new, old in pairs:
        sides = {name: _fields(cell) for name, cell in (("new", new), ("baseline", old))}
        for name, values in disagreements(sides, may_differ=frozenset()).items():
            by_side = {side: value for value, having in values.items() for side in having}
            if name.startswith("reference."):
                by_side, name = {side: _reference(fields) for side, fields in sides.items()}, "reference"
            difference = f"{name} is {by_side['new']}, in the baseline {by_side['baseline']}"
            differences.setdefault(difference, set()).add(new.name)
    if differences:
        most = sorted(differences.items(), key=lambda item: -len(item[1]))[:MAX_DIFFERENCES_NAMED]
        shown = "; ".join(f"{difference} ({listed(sorted(names), 2, 'cell')})" for difference, names in most)
        raise UserError(
            f"the runs were measured in different ways: {shown}; measure both alike, or accept a run that is measured "
            f"as this one: {ACCEPT.replace('DIR', directory)}"
        )


def _fields(cell: SnapshotCell) -> dict[str, Any]:
    """What must agree: of its protocol, and the process, whose times tau and a sampler's block tell."""
    protocol = cell.protocol
    fields = {name: protocol.get(name) for name in MUST_AGREE if name not in OPTIONAL or name in protocol}
    if (block := fields["sampler"]) is not None:
        fields["sampler"] = {key: value for key, value in block.items() if key in SAMPLER_FIELDS}
    return fields | {"diffusion.process": cell.network.diffusion.get("process") or "ddpm"}


def _reference(fields: Mapping[str, Any]) -> str:
    """The reference in a protocol, with its preprocessing and hash: a name alone may stand for several."""
    reference = fields["reference"]
    kind = f"{reference.get('preprocessing')}, " if reference.get("preprocessing") else ""
    return f"{images_in_words(reference)} ({kind}SHA-256 {reference['sha256'][:8]})"


def changed_versions(pairs: Iterable[tuple[SnapshotCell, SnapshotCell]]) -> list[str]:
    """The differences between versions, such as "scored with torch 2.9.1 -> 2.10.0" or "sampled with diffusers ..."."""
    changes = []
    for new, old in pairs:
        before, after = _versions(old.protocol), _versions(new.protocol)
        both = [(name, before.get(name), after.get(name)) for name in sorted({*before, *after})]
        changes += [f"{name} {old or 'unknown'} -> {new or 'unknown'}" for name, old, new in both if old != new]
    return list(dict.fromkeys(changes))


def _versions(protocol: Mapping[str, Any]) -> dict[str, Any]:
    scoring = {"scoring": protocol.get("scoring"), **(protocol.get("versions") or {})}
    sampling = {key: value for key, value in (protocol.get("sampler") or {}).items() if key not in SAMPLER_FIELDS}
    return {f"{verb} with {name}": version for verb, its in (("scored", scoring), ("sampled", sampling))
            for name, version in its.items()}  # fmt: skip


def labels(cells: Sequence[SnapshotCell]) -> dict[str, str]:
    """Cell id -> label, such as "S0010-eta0.2" or "S0010-sigma_hat clip=x0_and_eps", with the settings that vary."""
    values = {cell.cell: {**cell.settings, **cell.axes} for cell in cells}
    short_paths = {key: short_checkpoints(its.get(key) for its in values.values()) for key in MODEL_FILES}
    left_out = {"steps", *(NOT_MATCHED - {"num_samples"}), *COLUMN_NAMES.values()}
    shown: dict[str, dict[str, str]] = {}  # the values other than S, as text; paths of models by their short names
    for cell, its in values.items():
        texts = {key: value if isinstance(value, str) else json.dumps(value)
                 for key, value in its.items() if key not in left_out}  # fmt: skip
        shown[cell] = {key: short_paths.get(key, {}).get(text, text) for key, text in texts.items()}
    differing = varying(list(shown.values()))
    labels: dict[str, str] = {}
    for unsaid in ({"sampler", "eta"}, {"sampler"}, set[str]()):  # names of cells begin with the sampler, or ddim's eta
        for cell, its in values.items():
            unsaid_here = unsaid | _ignored(its.get("sampler", DEFAULT))
            keys = (key for key in differing if key in shown[cell] and key not in unsaid_here)
            name = settings_name(its) if "steps" in its else "images"
            labels[cell] = " ".join([name, *(f"{key}={shown[cell][key]}" for key in keys)])
        if len(set(labels.values())) == len(labels):
            break
    return labels


def _ignored(sampler: str) -> Set[str]:
    """The keys that names leave out, because a sampler of taugrid's ignores them or, of ddim, because they have it."""
    if sampler == DEFAULT:
        return {"eta"}
    honoured = find(sampler).keys if sampler in SAMPLERS else set(SAMPLER_KEYS) if is_custom(sampler) else set()
    return set(SAMPLER_KEYS) - honoured
