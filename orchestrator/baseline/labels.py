"""Names of cells that stay the same from night to night: ids and folders' names change with every new network."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from taugrid.eval.tables.pivots import short_checkpoints
from taugrid.grids.names import varying
from taugrid.orchestrator.baseline.snapshot import MODEL_FILES, NOT_MATCHED, SnapshotCell
from taugrid.orchestrator.plan.grid import COLUMN_NAMES


def labels(cells: Sequence[SnapshotCell]) -> dict[str, str]:
    """Cell id -> label, such as "S0010-eta0.2" or "S0010-sigma_hat clip=x0_and_eps", with the settings that vary."""
    return labels_of({cell.cell: {**cell.settings, **cell.axes} for cell in cells})


def labels_of(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """As `labels`; `cells` has the settings and the grid's other values of each cell id."""
    places = {key: short_checkpoints(values.get(key) for values in cells.values()) for key in MODEL_FILES}
    given = {cell: _in_text(values, places) for cell, values in cells.items()}
    differing = varying(list(given.values()))
    found = {}
    for cell, values in given.items():
        eta = cells[cell]["eta"]
        base = f"S{cells[cell]['steps']:04d}-{eta if eta == 'sigma_hat' else f'eta{eta:g}'}"
        found[cell] = " ".join([base, *(f"{name}={values[name]}" for name in differing if name in values)])
    return found


def _in_text(values: Mapping[str, Any], places: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The values besides S and eta, as text; places of models by their short names."""
    left_out = {"steps", "eta", *(NOT_MATCHED - {"num_samples"}), *COLUMN_NAMES.values()}
    given = {key: value for key, value in values.items() if key not in left_out}
    shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}
    return {key: places[key].get(value, value) if key in MODEL_FILES else value for key, value in shown.items()}
