"""Selects the cells of a plan that a user names: by id, folder name, label, or settings (`steps=50,schedule=cosine`).
And checks the indices of images."""

import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from taugrid.config import Sample
from taugrid.errors import UserError
from taugrid.grids import MAX_NAMED, chosen, is_selector, short_keys
from taugrid.orchestrator.plan.cells import Cell, Plan
from taugrid.words import counted


def find_cell(plan: Plan, name: str) -> Cell:
    """The cell with this id, folder name, beginning of either, label, or settings; `UserError` unless one matches."""
    if is_selector(name):
        fitting = [cell for cell in plan.cells if cell.label == name] or _fitting(plan, name)
        if len(fitting) == 1:
            return fitting[0]
        count = counted(len(fitting), "cell")
        raise UserError(f"{name!r} fits {count}; give settings that fit one: {_labels(fitting)}")
    fitting = [cell for cell in plan.cells if cell.id.startswith(name) or cell.name.startswith(name)]
    exact = [cell for cell in fitting if name in (cell.id, cell.name)]
    if len(exact or fitting) == 1:
        return (exact or fitting)[0]
    problem = "fits more than one cell" if fitting else "is not a cell of this run"
    raise UserError(f"{name!r} {problem}; choose one of: {_labels(fitting or plan.cells)}")


def whole_numbers(indices: Any) -> list[int]:
    """Indices of images as a list; `UserError` for a mask, which would be read as the images 0 and 1, and fractions."""
    try:
        given = list(indices)
        if any(isinstance(index, bool | np.bool_) for index in given):
            raise TypeError
        return list(map(operator.index, given))
    except TypeError:
        raise UserError(f"indices must be whole numbers, as in [7, 0, 3], not {indices!r}") from None


def select(plan: Plan, selectors: Sequence[str]) -> Plan:
    """The cells that match any of `selectors`, with their models; the whole plan if there are none. `UserError` if a
    selector matches no cell."""
    if not selectors:
        return plan
    keys = {name for pair in _short(plan).items() for name in pair}
    for text in selectors:
        if not text.strip() or text in keys:
            raise UserError(f"--only {text!r}: a value is missing; write KEY=VALUE, as in steps=50,schedule=cosine")
    wanted = {cell.id for text in selectors for cell in _fitting(plan, text)}
    return plan.with_cells(cell for cell in plan.cells if cell.id in wanted)


def without_models(plan: Plan, ids: Collection[str]) -> Plan:
    return plan.with_cells(cell for cell in plan.cells if cell.model.id not in ids)


def _fitting(plan: Plan, text: str) -> list[Cell]:
    """The cells that match a selector, or a name for `find_cell`; `UserError` if there are none."""
    if not is_selector(text):
        return [find_cell(plan, text)]
    values = [{**cell.settings.model_dump(mode="json"), **cell.values} for cell in plan.cells]
    return [plan.cells[place] for place in chosen(text, values, _short(plan))]


def _short(plan: Plan) -> dict[str, str]:
    """Key -> its short form, for every key that a selector can name."""
    return short_keys(dict.fromkeys([*plan.cells[0].values, *Sample.model_fields]), Sample.model_fields)


def _labels(cells: Iterable[Cell]) -> str:
    labels = [cell.label for cell in cells]
    return "; ".join(labels[:MAX_NAMED]) + ("; ..." if len(labels) > MAX_NAMED else "")
