"""Writes the quality-versus-steps tables: quality.csv in long form, quality.md and .tex pivoted, quality.json."""

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import pandas as pd

from taugrid.eval.tables.ablation.one_table import USUAL, Layout
from taugrid.eval.tables.ablation.replicates import varying_seeds
from taugrid.eval.tables.entries import has_best, marked_pivots, sizes, tabulated
from taugrid.eval.tables.latex import to_latex
from taugrid.eval.tables.long_form import in_grid_order, long_form
from taugrid.eval.tables.markdown import to_markdown
from taugrid.eval.tables.rows import without_nan
from taugrid.protocol import ProtocolFields, shortened
from taugrid.storage import replacing


def write_quality(
    rows: Sequence[Mapping[str, object]],
    folder: Path,
    protocols: Mapping[str, ProtocolFields],
    notes: Sequence[str] = (),
    indistinguishable: Set[str] = frozenset(),
    joined: Set[str] = frozenset(),
    layout: Layout = USUAL,
    shown: Sequence[Mapping[str, object]] = (),
) -> None:
    """Write quality.{csv,json,md,tex} into `folder`, each whole or not at all.

    Args:
        rows: the cells' rows, as in `long_form`, in the order of the grid.
        folder: made if it is missing.
        protocols: the rows' protocols by hash.
        notes: lines below the tables.
        indistinguishable: as in `marked_pivots`.
        joined: as in `marked_pivots`.
        layout: what rows and columns are in quality.md and .tex.
        shown: the rows of quality.md and .tex, if these also have places for cells without scores.
    """
    table, ordered = long_form(rows), in_grid_order(shown or rows)
    marked = (protocols, indistinguishable, joined, layout)
    has_bold = any(has_best(marked_pivots(ordered, metric, *marked), metric) for metric in tabulated(ordered))
    about = _about(table, protocols, has_bold)
    document = {"rows": table.to_dict("records"), "protocols": protocols, "notes": list(notes)}
    document |= {"indistinguishable": sorted(indistinguishable), "joined": sorted(joined)}
    listed = "\n".join(f"- {note}" for note in notes)
    contents = {
        "csv": table.to_csv(index=False, lineterminator="\n"),
        "json": json.dumps(without_nan(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "md": about + "\n\n" + to_markdown(ordered, *marked) + (f"\n## Notes\n\n{listed}\n" if notes else ""),
        "tex": "".join(f"% {' '.join(line.split())}\n" for line in (about, *notes)) + to_latex(ordered, *marked),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in contents.items():
        with replacing(folder / f"quality.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def _about(frame: pd.DataFrame, protocols: Mapping[str, ProtocolFields], has_bold: bool) -> str:
    """One line with N, reference, extractor, a clip that all cells share, and the meaning of ± and bold."""
    spelled = [protocols[name] for name in dict.fromkeys(frame["protocol"]) if name in protocols]
    parts = [f"N = {sizes(frame)} samples per cell" if len(frame) else "no cell has been scored"]
    for key in ("reference", "extractor"):
        values = list(dict.fromkeys(_spell(protocol[key]) for protocol in spelled if protocol.get(key) is not None))
        parts += [f"{key}: {' or '.join(values)}"] if values else []
    clips = {protocol.get("clip") for protocol in spelled}  # if they differ, the tables say where
    parts += [f"clip: {clip}" for clip in clips if len(clips) == 1 and clip not in (None, "none")]
    if not varying_seeds(frame):
        parts.append(
            "± beside FID is one standard error of sampling at this N (neither its bias nor the spread between "
            "trainings)"
        )
    parts += ["bold is the best of its column"] if has_bold else []
    line = "; ".join(parts) + "."
    return line[0].upper() + line[1:]


def _spell(value: object) -> str:
    """A value of a protocol for people: mappings in one line, hashes cut to ten digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_spell(item)}" for key, item in value.items())
    return shortened(str(value))
