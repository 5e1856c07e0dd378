"""Along the ODE: reconstruction (the paper's table 2) and interpolation (its figure 6 and appendix D.5)."""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from taugrid import parquet
from taugrid.errors import UserError
from taugrid.hashing import identity
from taugrid.images import to_pictures
from taugrid.orchestrator.plan.cells import Cell, Plan, Shard, name_of, part_name
from taugrid.orchestrator.plan.grid import with_settings
from taugrid.orchestrator.plan.scoring import check, other_shapes
from taugrid.orchestrator.rundir.directory import OnDamage
from taugrid.orchestrator.rundir.history import RunHistory
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, KindResult, WorkKind, shard_key
from taugrid.parquet import first_pictures
from taugrid.registry.samplers import DEFAULT
from taugrid.words import counted, listed, some_of
from taugrid.workers.data import load as data
from taugrid.workers.diffusion.decoder import Vae
from taugrid.workers.jobs import InterpolateJob, ReconstructJob

PICTURES = 12  # images across figures/reconstructions.png
INTERPOLATION_STEPS = 11  # points from one x_T to another, both included, as in the paper's figure 6

OF_THE_ODE = {"sampler": "ddim", "eta": 0.0, "clip": "none", "precision": "float32", "compile": "none", "guidance": 1.0}


def ode_cells(plan: Plan, **changes: Any) -> list[Cell]:
    """The plan's cells of DDIM without labels, with the settings of the ODE and `changes`. Equal cells are one."""
    cells = (with_settings(cell, OF_THE_ODE | changes) for cell in plan.cells if not _has_no_ode(cell))
    return list({cell.id: cell for cell in cells}.values())


def _has_no_ode(cell: Cell) -> str:
    """What a cell is that is left out; empty: it is not."""
    if cell.settings.sampler != DEFAULT:
        return cell.settings.sampler
    return "" if cell.label_rule is None else "networks with labels (sample.labels)"


def require_ode_cells(plan: Plan, stage: str) -> None:
    """Raise `UserError` if no cell is of DDIM and a network without labels, or one samples latents."""
    if latent := next((cell.label for cell in plan.cells if isinstance(cell.decoder, Vae)), None):
        raise UserError(f"{stage} is for networks that sample pixels, and {latent} samples latents; leave it out")
    if not ode_cells(plan):
        raise UserError(
            f"{stage} follows the ODE of ddim (eta = 0) without labels, and no cell has it; add sampler: ddim to the "
            "grid, with an unconditional model"
        )


def left_out(plan: Plan, stage: str) -> str:
    """That cells of other samplers are left out, as the end of a sentence."""
    named = listed(list(dict.fromkeys(what for cell in plan.cells if (what := _has_no_ode(cell)))), 3)
    return f"; {stage} leaves out the cells of {named}" if named else ""


class OdeWork(WorkKind):
    """What both kinds share: a folder for each cell, whose name depends on what its files are made from."""

    unit = NETWORK_EVALUATIONS
    files = "*/part-*.parquet"

    @abstractmethod
    def cells(self) -> list[Cell]:
        """The cells to do, with their numbers of images."""

    def source(self, cell: Cell) -> dict[str, Any]:
        """What the files of a cell are made from, beside its settings."""
        return {"weights_sha256": self.rundir.weights_sha256(cell.model, cell.settings.weights)}

    def folder_of(self, cell: Cell) -> Path:
        return self.path / f"{cell.name}-{identity(self.source(cell))[:8]}"

    def labels(self) -> dict[str, str]:
        return {cell.name: cell.label for cell in self.cells()}

    def common(self, cell: Cell, path: Path) -> dict[str, Any]:
        """The arguments that both kinds of job have."""
        return {
            **self.job_at(path),
            "network": self.rundir.network(cell.model, cell.settings.weights),
            "batch_size": cell.settings.batch_size,
            "diffusion": cell.model.diffusion,
            "tau": cell.tau,
            "metadata": {"cell": cell.id, "tau": list(cell.tau), **self.source(cell)},
        }


class ReconstructWork(OdeWork):
    """Table 2: held-out images, encoded and decoded."""

    name = "reconstruct"
    priority = 20
    folder = "reconstructions"
    stage = "reconstruct"
    activity = "reconstructing"
    task_in_words = ("shard", "to reconstruct")

    def check(self) -> None:
        """Raise `UserError` if no cell is of DDIM, shapes of images and data differ, or the data set is missing."""
        require_ode_cells(self.plan, self.stage)
        for model in self.plan.models:
            check(other_shapes(model, "data", model.data.image_shape))
            data.load_images(model.data.held_out)

    def announcement(self, cost: float) -> str:
        """How many images and evaluations it is, and the key that makes it fewer."""
        images = " or ".join(f"{n:,}" for n in sorted({cell.settings.num_samples for cell in self.cells()}))
        said = (
            f"reconstructing {images} held-out images for each S: {round(cost):,} network evaluations to do; for "
            "fewer, set report.reconstructed_images (--set report.reconstructed_images=100)"
        )
        return said + left_out(self.plan, self.stage)

    def tasks(self) -> Iterator[Task]:
        for cell in self.cells():
            images = data.load_images(cell.model.data.held_out)
            for shard, path in self._missing_of(cell, self.survey.on_damage):
                job = ReconstructJob(
                    replaces=self.rundir.version(path),
                    start=shard.start,
                    stop=shard.stop,
                    data=cell.model.data.held_out,
                    data_sha256=data.fingerprint(images[shard.start : shard.stop]),
                    **self.common(cell, path),
                )
                yield Task(shard_key(self.name, shard), self.name, 2 * shard.total_nfe, cell=cell, given=job)

    def missing(self) -> dict[str, str]:
        lacking = {}
        for cell in self.cells():
            if count := len(list(self._missing_of(cell))):
                lacking[cell.name] = f"{some_of(count, cell.num_shards, 'shard')} not reconstructed"
        return lacking

    def conclude(self) -> KindResult:
        """Write tables/reconstruction.* and figures/reconstruction*."""
        from taugrid.eval.figures.drawing import save
        from taugrid.eval.figures.lines import reconstruction_figure
        from taugrid.eval.tables.published import counterparts
        from taugrid.eval.tables.reconstruction import (
            reconstruction_frame,
            reconstruction_to_console,
            write_reconstruction,
        )
        from taugrid.orchestrator.report.write import network_origin

        lacking, labels = self.missing(), self.labels()
        cells = [cell for cell in self.cells() if cell.name not in lacking]
        history, rows, encoded, about = RunHistory.read(self.rundir), [], [], list[str]()
        for cell in cells:
            rows.append(self._row(cell, history))
            held_out, seen = cell.model.data.held_out, cell.model.source.relation_to(cell.model.data)
            origin = network_origin(cell.model)
            encoded.append(counterparts.EncodedImages(held_out.full_name, held_out.split, cell.tau, origin))
            about.append(f"Images: {held_out.full_name}, split {held_out.split}, {seen}.")
        beside = counterparts.reconstruction_counterparts(rows, encoded)
        notes = [f"{labels[name]} is left out: {reason}" for name, reason in lacking.items()]
        notes += counterparts.pointer(beside, "reconstruction-published")
        sentences = " ".join(dict.fromkeys(about))
        if not beside:
            self.rundir.remove_outputs("tables/reconstruction-published.*")
        with self.rundir.storage.local_folder(self.rundir.tables) as tables:
            if beside:
                counterparts.write_published(beside, tables, "reconstruction-published")
            if not rows:
                return KindResult(rows)
            write_reconstruction(rows, tables, sentences, notes)
        with self.rundir.storage.local_folder(self.rundir.figures) as figures:
            save(reconstruction_figure(reconstruction_frame(rows)), figures / "reconstruction-error")
        self._draw(cells)
        return KindResult(rows, reconstruction_to_console(reconstruction_frame(rows), sentences, notes))

    def _draw(self, cells: list[Cell]) -> None:
        """Draw a figure of pictures for each group of cells that differ only in S."""
        from taugrid.eval.figures import pictures

        groups: dict[str, list[Cell]] = {}
        for cell in cells:
            shared = [cell.settings.spacing_name, cell.settings.weights, *cell.axes.values(), cell.model.id]
            groups.setdefault(name_of(shared), []).append(cell)
        self.rundir.remove_outputs("figures/reconstructions*.png")
        for group, members in groups.items():
            name = "reconstructions" if len(groups) == 1 else f"reconstructions-{group}"
            count = min(PICTURES, members[0].settings.num_samples)
            originals = to_pictures(data.load_images(members[0].model.data.held_out)[:count])
            rebuilt = {
                cell.settings.steps: first_pictures([path for _, path in self._files(cell)], count, self.rundir.storage)
                for cell in members
            }
            with self.rundir.storage.local_folder(self.rundir.figures) as figures:
                pictures.reconstructions(originals, rebuilt, figures / f"{name}.png")

    @classmethod
    def cells_of(cls, plan: Plan) -> list[Cell]:
        """The cells of the ODE, without a seed of their own: nothing is drawn."""
        return ode_cells(plan, seed=0)

    def cells(self) -> list[Cell]:
        most = self.config.report.reconstructed_images
        counts = ((cell, len(data.load_images(cell.model.data.held_out))) for cell in self.cells_of(self.plan))
        return [with_settings(cell, {"num_samples": min(count, most)}) for cell, count in counts]

    def source(self, cell: Cell) -> dict[str, Any]:
        return {"data": data.content_fingerprint(cell.model.data.held_out), **super().source(cell)}

    def _files(self, cell: Cell) -> Iterator[tuple[Shard, Path]]:
        folder = self.folder_of(cell)
        return ((shard, folder / shard.name) for shard in cell.shards)

    def _missing_of(self, cell: Cell, on_damage: OnDamage = lambda damage: None) -> Iterator[tuple[Shard, Path]]:
        """The files of a cell that are not there, or damaged. Without `on_damage`, damage was reported before."""
        for shard, path in self._files(cell):
            if not self.rundir.has_intact_file(path, shard.stop, on_damage, shard.start, {"cell": cell.id}):
                yield shard, path

    def _row(self, cell: Cell, history: RunHistory) -> dict[str, Any]:
        """The row of a complete cell."""
        n, keys = cell.settings.num_samples, [shard_key(self.name, shard) for shard in cell.shards]
        seconds = [history.seconds[key] for key in keys if key in history.seconds]
        mse, mse_8bit = (
            np.concatenate(
                [part for _, path in self._files(cell)
                 for _, part in parquet.read_numbers(path, column, self.rundir.storage)]
            )[:n]
            for column in ("mse", "mse_8bit")
        )  # fmt: skip
        assert len(mse) == n
        return {
            "model": cell.model.id,
            "weights": cell.settings.weights,
            "spacing": cell.settings.spacing_name,
            "steps": cell.settings.steps,
            "num_images": n,
            "network_evaluations": 2 * cell.nfe,
            "mse": float(mse.mean()),
            "mse_se": float(mse.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
            "mse_8bit": float(mse_8bit.mean()),
            "seconds": round(sum(seconds), 3) if seconds else None,
            **cell.axes,
        }


class InterpolateWork(OdeWork):
    """Figure 6 and appendix D.5: points between the x_T of samples, decoded."""

    name = "interpolate"
    priority = 30
    folder = "interpolations"
    stage = "interpolate"
    activity = "interpolating"
    task_in_words = ("cell", "to interpolate")

    def check(self) -> None:
        """Raise `UserError` if no cell is of DDIM."""
        require_ode_cells(self.plan, self.stage)

    def announcement(self, cost: float) -> str | None:
        """That other samplers' cells are left out."""
        return left_out(self.plan, self.stage).removeprefix("; ") or None

    def tasks(self) -> Iterator[Task]:
        for cell in self.cells():
            if self._is_whole(cell, self.survey.on_damage):
                continue
            assert cell.settings.seed is not None
            job = InterpolateJob(
                pairs=self.config.report.interpolated_pairs,
                steps=INTERPOLATION_STEPS,
                decoder=cell.model.decoder,
                seed=cell.settings.seed,
                **self.common(cell, self._path(cell)),
            )
            yield Task(f"{self.name}/{cell.id}", self.name, cell.settings.num_samples * cell.nfe, cell=cell, given=job)

    def missing(self) -> dict[str, str]:
        return {cell.name: "not interpolated" for cell in self.cells() if not self._is_whole(cell)}

    def conclude(self) -> KindResult:
        """Write figures/interpolation*.png, and tables/interpolation.csv with each image's position and its x_T."""
        import pandas as pd

        from taugrid.eval.figures import pictures
        from taugrid.storage import replacing

        pairs, steps = self.config.report.interpolated_pairs, INTERPOLATION_STEPS
        rows: list[dict[str, Any]] = []
        self.rundir.remove_outputs("figures/interpolation*.png")
        whole = [cell for cell in self.cells() if self._is_whole(cell)]
        for cell in whole:
            rows += [{"cell": cell.id, "steps": cell.settings.steps, **row} for row in _positions(pairs, steps)]
            shown = first_pictures([self._path(cell)], cell.settings.num_samples, self.rundir.storage)
            lines = shown[: pairs * steps].reshape(pairs, steps, *shown.shape[1:])
            square = shown[pairs * steps :].reshape(steps, steps, *shown.shape[1:])
            with self.rundir.storage.local_folder(self.rundir.figures) as figures:
                pictures.interpolations(lines, figures / f"interpolations-{cell.name}.png")
                pictures.interpolation_grid(square, figures / f"interpolation-square-{cell.name}.png")
        with replacing(self.rundir.tables / "interpolation.csv", self.rundir.storage) as temporary:
            temporary.write_text(pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"), encoding="utf-8")
        return KindResult(rows, f"{counted(len(whole), 'cell')} interpolated: figures/interpolation*.png")

    @classmethod
    def cells_of(cls, plan: Plan) -> list[Cell]:
        return ode_cells(plan)

    def cells(self) -> list[Cell]:
        count = self.config.report.interpolated_pairs * INTERPOLATION_STEPS + INTERPOLATION_STEPS**2
        return ode_cells(self.plan, num_samples=count)

    def source(self, cell: Cell) -> dict[str, Any]:
        pairs = self.config.report.interpolated_pairs
        return {"pairs": pairs, "steps": INTERPOLATION_STEPS, **super().source(cell)}

    def _path(self, cell: Cell) -> Path:
        return self.folder_of(cell) / part_name(0)

    def _is_whole(self, cell: Cell, on_damage: OnDamage = lambda damage: None) -> bool:
        return self.rundir.has_intact_file(self._path(cell), cell.settings.num_samples, on_damage)


def _positions(pairs: int, steps: int) -> Iterator[dict[str, Any]]:
    """For each image: its index in the file, its figure, the samples it lies between, and how far along (0 to 1)."""
    fractions = [round(i / (steps - 1), 6) for i in range(steps)]
    for pair in range(pairs):
        for i, fraction in enumerate(fractions):
            between = f"{2 * pair} {2 * pair + 1}"
            yield {"index": pair * steps + i, "figure": "rows", "samples": between, "across": fraction, "down": None}
    for i, down in enumerate(fractions):
        for j, across in enumerate(fractions):
            index = pairs * steps + i * steps + j
            yield {"index": index, "figure": "square", "samples": "0 1 2 3", "across": across, "down": down}
