"""Writes the tables that compare our numbers with published ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from taugrid.eval.tables.entries import MISSING, write_number
from taugrid.eval.tables.published.counterparts import PAPER, Counterpart, dataset_facts
from taugrid.storage import replacing
from taugrid.words import markdown_table


def write_published(found: Sequence[Counterpart], folder: Path, stem: str) -> None:
    """Write `stem`.{csv,md} into `folder`, each whole or not at all. If `found` is empty, earlier files are removed."""
    if not found:
        for suffix in ("csv", "md"):
            (folder / f"{stem}.{suffix}").unlink(missing_ok=True)
        return
    contents = {"csv": published_frame(found).to_csv(index=False, lineterminator="\n"), "md": published_markdown(found)}
    for suffix, text in contents.items():
        with replacing(folder / f"{stem}.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def pointer(found: Sequence[Counterpart], stem: str) -> list[str]:
    """A note that points from the table of our numbers to this one; none if nothing was found."""
    return [f"the paper's numbers stand beside {len(found)} of these in {stem}.md"] if found else []


def published_frame(found: Sequence[Counterpart]) -> pd.DataFrame:
    """A row for each counterpart. `difference` is ours minus the published; `differs` is joined by semicolons."""
    rows = [
        one._asdict()
        | {"published": float(one.published), "difference": one.difference, "differs": "; ".join(one.differs)}
        for one in found
    ]
    columns = list(Counterpart._fields)
    columns.insert(columns.index("differs"), "difference")
    return pd.DataFrame(rows, columns=columns)


def published_markdown(found: Sequence[Counterpart]) -> str:
    """A table in GitHub's Markdown for each data set. Differences common to all of its rows are listed above it."""
    blocks = [f"## Published numbers\n\n{PAPER}. Difference is ours minus the paper's."]
    for table, dataset in dict.fromkeys((one.table, one.dataset) for one in found):
        members = [one for one in found if (one.table, one.dataset) == (table, dataset)]
        shared = [text for text in members[0].differs if all(text in one.differs for one in members)]
        blocks += [
            f"### Table {table}, {dataset}: {'FID' if members[0].metric == 'fid' else 'reconstruction error'}",
            *_what_differs(members, shared),
            _table(members, set(shared)),
            *_notes(members),
        ]
    return "\n\n".join(blocks) + "\n"


def _what_differs(members: Sequence[Counterpart], shared: Sequence[str]) -> Iterator[str]:
    if shared:
        yield f"Unlike the paper, in every row: {'; '.join(shared)}."
    elif not any(one.differs for one in members):
        yield "Nothing that is known differs from the paper's protocol."


def _table(members: Sequence[Counterpart], shared: set[str]) -> str:
    with_eta = members[0].metric == "fid"
    several = len({one.place for one in members}) < len(members)
    head = [*(["η"] if with_eta else []), "S", "paper", "ours", "difference", "what else differs"]
    columns = "".join("l" if text in ("η", "what else differs") else "r" for text in head)
    if several:
        head, columns = [*head, "cell" if with_eta else "model"], f"{columns}l"
    rows = []
    for one in members:
        value, error = write_number(one.ours, one.standard_error)
        decimals = len(one.published.partition(".")[2])
        rows.append([
            *([one.label] if with_eta else []),
            str(one.steps),
            one.published,
            f"{value} {error}".rstrip(),
            f"{one.difference:+.{decimals}f}",
            "; ".join(text for text in one.differs if text not in shared) or MISSING,
            *([one.cell or one.model] if several else []),
        ])  # fmt: skip
    return markdown_table(head, columns, rows)


def _notes(members: Sequence[Counterpart]) -> Iterator[str]:
    """Notes on single published numbers, and on all numbers of the data set."""
    by_note: dict[str, list[str]] = {}
    for one in members:
        if one.note and one.place not in by_note.setdefault(one.note, []):
            by_note[one.note].append(one.place)
    everywhere = len({one.place for one in members})
    lines = [f"- {note}" if len(at) == everywhere else f"- {', '.join(at)}: {note}" for note, at in by_note.items()]
    if members[0].metric == "fid":
        lines.append(f"- {dataset_facts(members[0].dataset)['reference']}")
    yield "\n".join(lines)
