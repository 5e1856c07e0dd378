"""A data set for the Hub and the library `datasets`: the run's Parquet files and a card, with a split for each cell."""

import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from taugrid.eval.tables.quality import QualityTable
from taugrid.eval.tables.table import shown_number
from taugrid.orchestrator.exports.images import Tick
from taugrid.orchestrator.exports.results import (
    TASK,
    config_block,
    fenced,
    front_matter,
    markdown,
    results,
    without_homes,
)
from taugrid.orchestrator.exports.target import Target
from taugrid.orchestrator.plan.cells import Cell
from taugrid.orchestrator.run import Run
from taugrid.storage import Storage
from taugrid.words import counted, markdown_table


def put_dataset(target: Target, run: Run, cells: Sequence[Cell], tick: Tick) -> None:
    """Put the sample files of `cells` and a README.md. Splits whose files have other columns get their own config."""
    configs: dict[bytes, list[Cell]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for cell in cells:
        for shard in cell.shards:
            name = f"data/{split_of(cell)}/{shard.name}"
            if not target.has(name):
                part = run.rundir.sample_part(cell, shard)
                target.put(name, partial(_copy, part=part, images=shard.images, storage=run.rundir.storage))
            tick(shard.images)
        files = sorted(target.folder.glob(f"data/{split_of(cell)}/*.parquet"))
        sizes[cell.id] = sum(file.stat().st_size for file in files)
        configs[pq.read_schema(files[0]).metadata[b"huggingface"]].append(cell)
    target.put_text("README.md", _card(run, list(configs.values()), sizes))


def split_of(cell: Cell) -> str:
    r"""The name of a cell's split: its folder's, in the form that `datasets` demands, \w+(\.\w+)*."""
    return re.sub(r"[^\w.]|\.(?!\w)", "_", cell.name, flags=re.ASCII)


def _copy(path: Path, part: Path, images: int, storage: Storage) -> None:
    """Copy a sample file. Of one with more images, from when N was larger, the first `images` are written."""
    with storage.local_path(part) as local, pq.ParquetFile(local) as file:
        if file.metadata.num_rows == images:
            shutil.copyfile(local, path)
            return
        with pq.ParquetWriter(path, file.schema_arrow, compression="none") as writer:
            for group in range(file.num_row_groups):
                writer.write_table(rows := file.read_row_group(group).slice(0, images))
                images -= len(rows)


def _card(run: Run, configs: Sequence[Sequence[Cell]], sizes: Mapping[str, int]) -> str:
    names = ["default", *(f"columns-{n}" for n in range(2, len(configs) + 1))]
    infos, files = [], []
    for name, cells in zip(names, configs, strict=True):
        size = sum(sizes[cell.id] for cell in cells)
        splits = [
            {"name": split_of(c), "num_bytes": sizes[c.id], "num_examples": c.settings.num_samples} for c in cells
        ]
        infos.append({"config_name": name, "splits": splits, "download_size": size, "dataset_size": size})
        paths = [{"split": split_of(cell), "path": f"data/{split_of(cell)}/*.parquet"} for cell in cells]
        files.append({"config_name": name, "data_files": paths})
    about = {"pretty_name": run.config.name, "task_categories": [TASK["type"]], "tags": ["taugrid"]}
    lines = [
        front_matter({**about, "dataset_info": infos, "configs": files}),
        f"# {run.config.name}",
        f"Samples of {counted(len(sizes), 'cell')} of a taugrid run, with a split for each. The column `index` numbers "
        "the images: with the same seed, the same number has the same noise in every split.",
        *_scores([cell for cells in configs for cell in cells], results(run)),
        "## Config",
        config_block(run),
        "No licence is set: choose one, and add it as `license:` above.",
    ]
    return without_homes("\n\n".join(lines) + "\n")


def _scores(cells: Sequence[Cell], table: QualityTable) -> Iterator[str]:
    """The splits with their settings and scores, and the protocol: what all share, and the rest of each."""
    scored = {(row["cell"], row["num_samples"]): row for row in table.rows}  # a cell may have grown since
    rows, protocols = [], {}
    for cell in cells:
        row, split = scored.get((cell.id, cell.settings.num_samples), {}), split_of(cell)
        scores = [shown_number(row.get(metric.name), row.get(metric.error or "")) for metric in table.metrics]
        rows.append([f"`{split}`", markdown(cell.label), f"{cell.settings.num_samples:,}", *scores])
        if row:
            protocols[split] = table.protocols.get(row["protocol"], {})
    heads = ["split", "settings", "images", *(metric.title for metric in table.metrics)]
    yield markdown_table(heads, "llr" + "r" * len(table.metrics), rows)
    yield " ".join(f"{each.metric.title}: {each.means}" for each in table.sections if each.means)
    if protocols:
        first, *others = protocols.values()
        shared = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
        own = {split: {key: its[key] for key in its if key not in shared} for split, its in protocols.items()}
        about = table.about.replace("; bold is the best of its column", "")
        yield from ("## Protocol", about, fenced({**shared, "splits": own}))
