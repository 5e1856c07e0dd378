"""Exports of images alone: PNG files named by index, in one folder or one for each label, and .npz files."""

import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.images import decode_png
from taugrid.orchestrator.exports.target import Target
from taugrid.orchestrator.plan.cells import Cell, Shard
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.threads import decode_each

Tick = Callable[[int], None]  # hears how many images more are done


def put_pngs(target: Target, cell: Cell, rundir: RunDir, folder: str, by_label: bool, tick: Tick) -> None:
    """Put a cell's images as PNG files named by index, with the bytes as in Parquet. Labels go to metadata.csv
    (file_name, label), which the library `datasets` reads with a folder of images; with `by_label` to the names of
    folders, which torchvision's ImageFolder reads."""
    lines = ["file_name,label"]
    digits = 0 if cell.label_rule is None else len(str(cell.label_rule.classes - 1))
    for shard in cell.shards:
        names = [f"{index:07d}.png" for index in range(shard.start, shard.stop)]
        if cell.label_rule is not None:
            labels = _labels_of(cell, shard, rundir)
            lines += [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
            if by_label:
                names = [f"{label:0{digits}d}/{name}" for name, label in zip(names, labels, strict=True)]
        paths = [f"{folder}{name}" for name in names]
        missing = {path for path in paths if not target.has(path)}
        for path, png in zip(paths, _pngs_of(cell, shard, rundir), strict=True) if missing else ():
            if path in missing:
                target.put(path, partial(Path.write_bytes, data=png))
            tick(1)
        tick(0 if missing else shard.images)
    if cell.label_rule is not None and not by_label:
        target.put_text(f"{folder}metadata.csv", "\n".join([*lines, ""]))


def write_npz(path: Path, cell: Cell, rundir: RunDir, comment: bytes, tick: Tick) -> None:
    """Write a cell's images as ADM's evaluator reads them: `arr_0`, (N, H, W, C) uint8, and its labels `arr_1`, (N,). C
    is 1 for grey images. One image after the other goes into the file, so memory does not grow with N."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = comment
        put_array(archive, "arr_0", _pixels(cell, rundir), cell.settings.num_samples, tick)
        if cell.label_rule is not None:
            labels = (label for shard in cell.shards for label in _labels_of(cell, shard, rundir))
            put_array(archive, "arr_1", labels, cell.settings.num_samples, lambda count: None)


def has_comment(path: Path, comment: bytes) -> bool:
    """Whether there is an .npz that `write_npz` wrote with this comment."""
    return zipfile.is_zipfile(path) and zipfile.ZipFile(path).comment == comment


def _pngs_of(cell: Cell, shard: Shard, rundir: RunDir) -> Iterator[bytes]:
    """The PNG bytes of a shard's images, as in Parquet, of which a row group is in memory at a time."""
    for _, group in parquet.read_encoded(rundir.sample_part(cell, shard), shard.stop, rundir.storage):
        yield from group


def _labels_of(cell: Cell, shard: Shard, rundir: RunDir) -> NDArray[np.int64]:
    """The labels of a shard's images, (n,)."""
    read = parquet.read_numbers(rundir.sample_part(cell, shard), "label", rundir.storage)
    return np.concatenate([labels for _, labels in read])[: shard.images].astype(np.int64)


def _pixels(cell: Cell, rundir: RunDir) -> Iterator[NDArray[np.uint8]]:
    pngs = (png for shard in cell.shards for png in _pngs_of(cell, shard, rundir))
    return decode_each(decode_png, pngs, lambda image: image.nbytes, lambda image: image.transpose(1, 2, 0))


def put_array(
    archive: zipfile.ZipFile, name: str, elements: Iterator[NDArray[np.generic]], count: int, tick: Tick
) -> None:
    """Put `count` arrays of one shape into a zip file as one, stored as np.savez does."""
    first = next(elements)
    header = {"descr": first.dtype.str, "fortran_order": False, "shape": (count, *first.shape)}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        member.write(first.tobytes())
        tick(1)
        for element in elements:
            member.write(element.tobytes())
            tick(1)
