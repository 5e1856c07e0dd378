"""The section `report` of a config: rows and columns of tables and the base of effects, checked against the grid."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from taugrid.config import Config, Sample
from taugrid.errors import UserError
from taugrid.grids import EVALUATIONS, NOT_AXES, SEEDS, Layout, fits, key_of, options_text, plain_text, short_keys
from taugrid.orchestrator.plan.cells import Plan, column
from taugrid.registry.samplers import DEFAULT


def check(config: Config, plan: Plan) -> None:
    """Raise `UserError` if `report` names keys or values that the grid does not have."""
    layout(config, plan)
    base(config, plan)


def layout(config: Config, plan: Plan) -> Layout:
    """The rows and columns of tables, by the columns of quality.csv, the axis of figures, and the order of metrics."""
    if "," in config.report.columns:
        raise UserError(
            f"report.columns: {config.report.columns} names several keys, and a table's columns are the values of one; "
            "give one key, and the others in report.rows"
        )
    columns = column(_key("report.columns", config.report.columns, plan))
    rows = [column(_key("report.rows", name, plan)) for name in config.report.rows or ()]
    if columns in rows or len(set(rows)) < len(rows):
        raise UserError(
            f"report.rows: {', '.join(rows)} with report.columns: {columns} names a key twice; name each once"
        )
    x = config.report.x or ("evaluations" if any(cell.nfe != cell.settings.steps for cell in plan.cells) else "steps")
    by_cost = False
    if columns == "steps" and x != "steps":  # where equal S, or equal evaluations without guidance, cost differently
        pairs = {(cell.settings.steps, cell.sampler_description.evaluations) for cell in plan.cells}
        by_cost = any(len(set(numbers)) < len(pairs) for numbers in zip(*pairs, strict=True))
    return Layout(tuple(rows), EVALUATIONS if by_cost else columns, x, tuple(config.evaluate.metrics))


def evaluations(plan: Plan) -> list[str]:
    """A line for each sampler, with its options, whose network evaluations are not S: tables show one of the two."""
    counts: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    is_guided = any(cell.guided_calls for cell in plan.cells)
    for cell in plan.cells:
        if cell.settings.sampler != DEFAULT or is_guided:  # ddim's remarks tell of spacings that add times
            name = f"{cell.settings.sampler} {options_text(cell.settings.sampler_options)}".rstrip()
            counts[name][cell.settings.steps].add(cell.nfe)
    return [
        f"{name}: S = {', '.join(map(str, sorted(its)))} takes "
        f"{', '.join(' or '.join(map(str, sorted(its[steps]))) for steps in sorted(its))} network evaluations"
        for name, its in counts.items()
        if any(found != {steps} for steps, found in its.items())
    ]


def base(config: Config, plan: Plan) -> dict[str, Any]:
    """The values that effects are differences to, by the columns of quality.csv."""
    base_values: dict[str, Any] = {}
    for name, requested in config.report.base.items():
        key = _key("report.base", name, plan)
        values = _values(plan, key)
        fitting = [value for value in values if fits(value, requested)]
        if len(fitting) != 1:
            listed = ", ".join(map(plain_text, values))
            problem = "is not in the grid" if not fitting else "fits several values"
            raise UserError(f"report.base: {name}: {plain_text(requested)} {problem}; choose one of {listed}")
        base_values[column(key)] = fitting[0]
    return base_values


def compared_along(where: str, name: str, plan: Plan) -> str:
    """The column of quality.csv for a key of the grid whose values have neighbours; `UserError` if it has none."""
    key = _key(where, name, plan)
    if len(_values(plan, key)) < 2 or column(key) in NOT_AXES:
        raise UserError(
            f"{where}: the cells have no neighbours along {name}; give a key of the grid with several values"
        )
    return column(key)


def _values(plan: Plan, key: str) -> Sequence[Any]:
    every: list[Any] = []
    for cell in plan.cells:
        own: Mapping[str, Any] = {"steps": cell.settings.steps, "eta": cell.settings.eta, **cell.values}
        value = cell.settings.spacing_name if key == "spacing" else own.get(key)
        every += [value] if value not in every else []
    return every


def _key(where: str, name: str, plan: Plan) -> str:
    keys = list(dict.fromkeys([*plan.cells[0].values, "steps", "eta"]))
    short = short_keys(keys, Sample.model_fields)
    key = key_of(name, short)
    if key in SEEDS:
        raise UserError(f"{where}: {name} is a seed, which tables average over; quality.csv has every cell")
    if key is None:
        given = ", ".join(text for full, text in short.items() if full not in SEEDS)
        raise UserError(f"{where}: there is no key {name!r} in this grid; its keys are {given}")
    return key
