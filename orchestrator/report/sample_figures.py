"""The figures of samples: a grid of eta and S, and one row of S at eta = 0 (the paper's figure 5)."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taugrid.errors import DamagedFile
from taugrid.eval.figures import pictures
from taugrid.eval.figures.pictures import EtaAndSteps
from taugrid.eval.tables.labels import OPTIONS, short_checkpoints, short_samplers
from taugrid.grids import PATHS, SEEDS, options_text
from taugrid.images import PIXELS_AT_ONCE, decode_together, to_pictures
from taugrid.orchestrator.plan.cells import Cell, Plan, name_of
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.parquet import first_pictures, read_numbers, read_png
from taugrid.registry.samplers import DEFAULT
from taugrid.storage import together

MOST_CLASSES = 20  # classes in a figure: those with most images

LOOKED_AT = 2048  # images of a cell among which those of the classes are looked for


def write_sample_figures(run: Run) -> None:
    """Write figures/samples.png and consistency.png: a pair for each group if cells differ in more than eta and S."""
    rundir = run.rundir
    rundir.remove_outputs("figures/samples*.png")
    rundir.remove_outputs("figures/consistency*.png")
    for group in first_images(run):
        stem = f"samples-{group.name}" if group.name else "samples"
        with rundir.storage.local_folder(rundir.figures) as figures:
            pictures.samples(group.images, figures / f"{stem}.png", short_samplers(group.title))
            # the paper's figure 5
            without_noise = {steps: images for (eta, steps), images in group.images.items() if eta == "0"}
            if len(without_noise) > 1:  # there is more than one S to compare
                pictures.consistency(without_noise, figures / f"{stem.replace('samples', 'consistency', 1)}.png")


def write_class_figures(run: Run) -> None:
    """Write figures/classes-<cell>.png, a row for each class: of a group, its cell of most S with the least noise."""
    rundir, wanted = run.rundir, run.config.report.images_per_cell
    rundir.remove_outputs("figures/classes-*.png")
    for cells in _groups(run.plan).values():
        for cell in sorted(cells, key=lambda cell: (-cell.settings.steps, cell.eta_number or 0.0)):
            if rows := images_of_classes(cell, rundir, wanted):
                guided = f"guidance={cell.settings.guidance:g}"
                title = cell.label if guided in cell.label else f"{cell.label} {guided}"
                with rundir.storage.local_folder(rundir.figures) as figures:
                    pictures.classes(rows, figures / f"classes-{cell.name}.png", short_samplers(title))
                break


def images_of_classes(cell: Cell, rundir: RunDir, wanted: int) -> dict[str, NDArray[np.uint8]]:
    """At most `wanted` images of each class by its name, of `MOST_CLASSES`; empty without labels or images."""
    if cell.label_rule is None:
        return {}
    classes, names = cell.label_rule.classes, cell.model.data.dataset.classes
    paths = [rundir.sample_part(cell, shard) for shard in cell.shards if shard.start < LOOKED_AT]
    try:
        parts = [found for path in paths for _, found in read_numbers(path, "label", rundir.storage)]
        labels = np.concatenate(parts)[:LOOKED_AT]
        of_class = {int(label): np.flatnonzero(labels == label)[:wanted] for label in np.unique(labels)}
        most = sorted(of_class, key=lambda label: -len(of_class[label]))[:MOST_CLASSES]
        chosen = {int(i) for label in most for i in of_class[label]}
        pngs: dict[int, bytes] = {}
        for path in paths:
            pngs |= read_png(path, chosen - pngs.keys(), rundir.storage)
        images = dict(zip(pngs, decode_together(list(pngs.values()), 2 * PIXELS_AT_ONCE), strict=True))
    except (DamagedFile, FileNotFoundError):
        return {}
    named = {label: names[label] if len(names) == classes else str(label) for label in sorted(most)}
    return {name: to_pictures([images[int(i)] for i in of_class[label]]) for label, name in named.items()}


class Shown(NamedTuple):
    """The images of cells that differ only in eta and S."""

    name: str
    """Part of a file's name. Empty for the only group."""
    title: str
    """The group's name, such as "schedule=cosine train.seed=0". Empty for the only one."""
    images: dict[EtaAndSteps, NDArray[np.uint8]]  # each (n, H, W) or (n, H, W, 3), with the same n


def first_images(run: Run) -> list[Shown]:
    """The same first images of every cell that has them. Of replicates only the first that has images is shown."""
    groups = _groups(run.plan)
    found: dict[str, Shown] = {}

    def its_first(cell: Cell) -> NDArray[np.uint8] | None:
        return images_of(cell, run.rundir, run.config.report.images_per_cell)

    for name, cells in groups.items():
        setting = _title(cells, without=SEEDS)
        firsts = zip(map(_place, cells), together(run.rundir.storage, its_first, cells), strict=True)
        complete = {place: images for place, images in firsts if images is not None}
        if complete and setting not in found:
            smallest = min(map(len, complete.values()))
            shown = {place: images[:smallest] for place, images in complete.items()}
            found[setting] = Shown(name, _title(cells), shown) if len(groups) > 1 else Shown("", "", shown)
    return list(found.values())


def _title(cells: Sequence[Cell], without: Collection[str] = ()) -> str:
    naming, first = cells[0].naming, cells[0].values
    left_out = {"steps", "eta", *without}
    shared = (key for key in naming.keys if key not in left_out and all(c.values[key] == first[key] for c in cells))
    return " ".join(naming.part(key, first[key]) for key in shared if first[key] not in (None, {}))


def _groups(plan: Plan) -> dict[str, list[Cell]]:
    """Cells that share a figure, by the name of their group."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    checkpoints = {key: short_checkpoints(cell.axes.get(key) for cell in plan.cells) for key in PATHS}
    for cell in plan.cells:
        groups[_group_name(cell, checkpoints, with_clip=False)].append(cell)
    for name, cells in list(groups.items()):
        if len({_place(cell) for cell in cells}) < len(cells):  # clip is a grid key and does not follow from the row
            del groups[name]
            for cell in cells:
                groups[_group_name(cell, checkpoints, with_clip=True)].append(cell)
    return groups


def _place(cell: Cell) -> EtaAndSteps:
    """The row and column of a cell. A sampler without eta is the row's name, unless the title names it."""
    sampler = "" if "sampler" in cell.naming.keys else cell.settings.sampler
    eta = sampler if cell.eta is None else cell.eta
    return (eta if isinstance(eta, str) else f"{eta:g}", cell.settings.steps)


def _group_name(cell: Cell, checkpoints: Mapping[str, Mapping[str, str]], with_clip: bool) -> str:
    settings, axes = cell.settings, dict(cell.axes)
    axes |= {key: short[axes[key]] for key, short in checkpoints.items() if axes.get(key) is not None}
    others = [
        *filter(None, [cell.spacing_name]),
        *(f"{key.split('.')[-1]}={value}" for key, value in axes.items() if key != OPTIONS and value != {}),
        *options_text(axes.get(OPTIONS)).split(),
    ]
    foreign = [short_samplers(settings.sampler)] if settings.sampler != DEFAULT else []
    return name_of([*others, *foreign, *([f"clip={settings.clip}"] if with_clip else []), cell.model.id])


def images_of(cell: Cell, rundir: RunDir, count: int) -> NDArray[np.uint8] | None:
    """(count, H, W) or (count, H, W, 3) of the images 0 to count - 1; None if some are missing."""
    wanted = min(count, cell.settings.num_samples)
    paths = [rundir.sample_part(cell, shard) for shard in cell.shards if shard.start < wanted]
    try:
        found = first_pictures(paths, wanted, rundir.storage)
    except (DamagedFile, FileNotFoundError, NotADirectoryError):
        return None
    return found if len(found) == wanted else None
