"""What `reconstruct` and `interpolate` do: like sampling, pieces of work, files that resume, and then a report.

Both follow the ODE (eta = 0, nothing clipped), so that cells which differ in eta or clip alone share one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from taugrid import parquet
from taugrid.config import Config, Data
from taugrid.hashing import identity
from taugrid.images import decode_png, to_pictures
from taugrid.orchestrator.dispatch.policy import Task
from taugrid.orchestrator.plan.evaluation import check_shapes
from taugrid.orchestrator.plan.grid import Cell, Plan, Shard, name_of, with_settings
from taugrid.orchestrator.rundir.directory import Damage, RunDir, read_events
from taugrid.orchestrator.work.survey import Piece
from taugrid.workers.data import load as data
from taugrid.workers.interpolate import InterpolateJob
from taugrid.workers.reconstruct import ReconstructJob

if TYPE_CHECKING:
    from taugrid.eval.tables import published

PICTURES = 12
"""Images across figures/reconstructions.png."""

INTERPOLATION_STEPS = 11
"""Points from one x_T to another, both included, as in the paper's figure 6."""

OnDamage = Callable[[Damage], None]


class OdeWork(Protocol):
    """A kind of work on the ODE."""

    @property
    def table(self) -> str:
        """Name of the table it writes."""

    def check(self) -> None:
        """Raise `UserError` for what can be known to fail before any worker starts."""

    def pieces(self, on_damage: OnDamage) -> Iterator[Piece]:
        """What is missing on disk; damaged files are reported and count as missing. Models must be there."""

    def missing(self) -> dict[str, str]:
        """Cell name -> what it lacks."""

    def write(self) -> list[dict[str, Any]]:
        """Write the table and figures from what is complete; returns the table's rows."""


class Place(NamedTuple):
    """Where a shard of a cell lies, and whether all of it is there."""

    cell: Cell
    shard: Shard
    path: Path


def ode_cells(plan: Plan, **changes: Any) -> list[Cell]:
    """The plan's cells with eta = 0, no clipping and `changes`; those that this makes equal come once."""
    cells = (with_settings(cell, {"eta": 0.0, "clip": "none", **changes}) for cell in plan.cells)
    return list({cell.id: cell for cell in cells}.values())


@dataclass(frozen=True)
class Reconstruct:
    """Table 2: images that were held out, encoded and decoded."""

    config: Config
    plan: Plan
    rundir: RunDir
    table: str = "reconstruction"

    def check(self) -> None:
        """Raise `UserError` if a model makes images of another shape than its data set's, or that is not here."""
        check_shapes(self.plan)
        for model in self.plan.models:
            data.load_images(model.data.held_out)

    def pieces(self, on_damage: OnDamage) -> Iterator[Piece]:
        """A piece for each shard whose file is missing."""
        for place in self._places(self._cells()):
            if self._is_whole(place, on_damage):
                continue
            cell, shard, path = place
            task = Task(f"reconstruct/{cell.id}/{shard.number}", "reconstruct", 2 * shard.evaluations)
            job = ReconstructJob(
                path=str(path),
                replace=path.exists(),
                start=shard.start,
                stop=shard.stop,
                network=self.rundir.network(cell.model, cell.settings.weights),
                data=cell.model.data.held_out,
                data_sha256=data.content_fingerprint(cell.model.data.held_out),
                batch_size=cell.settings.batch_size,
                diffusion=cell.model.diffusion,
                tau=cell.tau,
                metadata={"cell": cell.id, "tau": list(cell.tau), **self._source(cell)},
            )
            yield Piece(task, job, cell)

    def missing(self) -> dict[str, str]:
        """Cells of which not all images are reconstructed."""
        lacking = {}
        for cell in self._cells():
            count = sum(not self._is_whole(place, _ignore) for place in self._places([cell]))
            if count:
                lacking[cell.name] = f"{count} of {len(cell.shards)} shards are not reconstructed"
        return lacking

    def write(self) -> list[dict[str, Any]]:
        """tables/reconstruction.* and figures/reconstruction*."""
        from taugrid.eval.figures import charts as figures
        from taugrid.eval.figures import pictures
        from taugrid.eval.tables import published, reconstruction

        lacking = self.missing()
        cells = [cell for cell in self._cells() if cell.name not in lacking]
        rows = [self._row(cell, [place.path for place in self._places([cell])]) for cell in cells]
        beside = published.beside_reconstructions(rows, [_encoded(cell) for cell in cells])
        published.write(beside, self.rundir.tables, "reconstruction-published")
        if not rows:
            return rows
        notes = [f"{name} is left out: {reason}" for name, reason in lacking.items()]
        notes += published.pointer(beside, "reconstruction-published")
        reconstruction.write(rows, self.rundir.tables, self._about(cells), notes)
        figures.reconstruction_error(reconstruction.frame(rows), self.rundir.figures / "reconstruction-error")
        groups: dict[str, list[Cell]] = {}
        for cell in cells:
            groups.setdefault(_group(cell), []).append(cell)
        _remove(self.rundir.figures, "reconstructions*.png")
        for group, members in groups.items():
            name = "reconstructions" if len(groups) == 1 else f"reconstructions-{group}"
            originals = to_pictures(data.load_images(members[0].model.data.held_out)[:PICTURES])
            count = min(PICTURES, members[0].settings.num_samples)
            rebuilt = {
                cell.settings.steps: first_pictures([place.path for place in self._places([cell])], count)
                for cell in members
            }
            pictures.reconstructions(originals[:count], rebuilt, self.rundir.figures / f"{name}.png")
        return rows

    def _cells(self) -> list[Cell]:
        cells = ode_cells(self.plan, seed=0)  # nothing is drawn
        return [with_settings(cell, {"num_samples": self._count(cell.model.data.held_out)}) for cell in cells]

    def _count(self, held_out: Data) -> int:
        return min(len(data.load_images(held_out)), self.config.report.reconstructed_images)

    def _places(self, cells: list[Cell]) -> Iterator[Place]:
        for cell in cells:
            # The name tells images and weights apart, so that a file of others is never taken for this.
            folder = self.rundir.reconstructions / f"{cell.name}-{identity(self._source(cell))[:8]}"
            for shard in cell.shards:
                yield Place(cell, shard, folder / shard.name)

    def _source(self, cell: Cell) -> dict[str, str]:
        content = data.content_fingerprint(cell.model.data.held_out)
        return {"data": content, "weights_sha256": self.rundir.weights_sha256(cell.model, cell.settings.weights)}

    def _is_whole(self, place: Place, on_damage: OnDamage) -> bool:
        return self.rundir.is_whole(place.path, place.shard.stop, on_damage, place.shard.start)

    def _row(self, cell: Cell, paths: list[Path]) -> dict[str, Any]:
        n = cell.settings.num_samples
        mse, mse_8bit = (
            np.concatenate([part for path in paths for _, part in parquet.read_numbers(path, column)])[:n]
            for column in ("mse", "mse_8bit")
        )
        assert len(mse) == n, "only complete cells have a row"
        return {
            "model": cell.model.id,
            "weights": cell.settings.weights,
            "spacing": cell.settings.spacing_name,
            "steps": cell.settings.steps,
            "num_images": n,
            "network_evaluations": 2 * len(cell.tau),
            "mse": float(mse.mean()),
            "mse_se": float(mse.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
            "mse_8bit": float(mse_8bit.mean()),
            "seconds": _seconds(self.rundir, f"reconstruct/{cell.id}/"),
            **cell.axes,
        }

    def _about(self, cells: list[Cell]) -> str:
        """A sentence for each data set: what its images are to the network."""
        sentences = []
        for model in {cell.model.id: cell.model for cell in cells}.values():
            section = model.data
            if model.oracle is not None:
                seen = "draws from the distribution that the oracle knows"
            elif model.train is None:
                seen = "of which the loaded model may have been trained on some"
            elif section.held_out != section:
                seen = "held out from training"
            else:
                seen = "which the network was trained on (data.split: train holds some out)"
            sentences.append(f"Images: {section.held_out.full_name}, split {section.held_out.split}, {seen}.")
        return " ".join(dict.fromkeys(sentences))


@dataclass(frozen=True)
class Interpolate:
    """Figure 6 and appendix D.5: what is decoded between the x_T of samples."""

    config: Config
    plan: Plan
    rundir: RunDir
    table: str = "interpolation"

    def check(self) -> None:
        """Nothing can be known to fail."""

    def pieces(self, on_damage: OnDamage) -> Iterator[Piece]:
        """A piece for each cell whose file is missing."""
        for cell in self._cells():
            path, count = self._path(cell), cell.settings.num_samples
            if self.rundir.is_whole(path, count, on_damage):
                continue
            assert cell.settings.seed is not None
            job = InterpolateJob(
                path=str(path),
                pairs=self.config.report.interpolated_pairs,
                steps=INTERPOLATION_STEPS,
                network=self.rundir.network(cell.model, cell.settings.weights),
                image_shape=cell.model.image_shape,
                seed=cell.settings.seed,
                batch_size=cell.settings.batch_size,
                diffusion=cell.model.diffusion,
                tau=cell.tau,
                metadata={"cell": cell.id, "tau": list(cell.tau), **self._source(cell)},
            )
            yield Piece(Task(f"interpolate/{cell.id}", "interpolate", count * len(cell.tau)), job, cell)

    def missing(self) -> dict[str, str]:
        """Cells without their file."""
        return {cell.name: "it is not interpolated" for cell in self._cells() if not self._is_whole(cell)}

    def write(self) -> list[dict[str, Any]]:
        """tables/interpolation.csv, where each image stands and between which x_T, and figures/interpolation*.png."""
        import pandas as pd

        from taugrid.eval.figures import pictures
        from taugrid.storage import replacing

        pairs, steps = self.config.report.interpolated_pairs, INTERPOLATION_STEPS
        rows: list[dict[str, Any]] = []
        figures = self.rundir.figures
        _remove(figures, "interpolation*.png")
        for cell in self._cells():
            if not self._is_whole(cell):
                continue
            rows += [{"cell": cell.id, "steps": cell.settings.steps, **row} for row in _positions(pairs, steps)]
            shown = first_pictures([self._path(cell)], cell.settings.num_samples)
            lines = shown[: pairs * steps].reshape(pairs, steps, *shown.shape[1:])
            square = shown[pairs * steps :].reshape(steps, steps, *shown.shape[1:])
            pictures.interpolations(lines, figures / f"interpolations-{cell.name}.png")
            pictures.interpolation_grid(square, figures / f"interpolation-square-{cell.name}.png")
        with replacing(self.rundir.tables / "interpolation.csv") as temporary:
            temporary.write_text(pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"), encoding="utf-8")
        return rows

    def _cells(self) -> list[Cell]:
        steps = INTERPOLATION_STEPS
        return ode_cells(self.plan, num_samples=self.config.report.interpolated_pairs * steps + steps**2)

    def _is_whole(self, cell: Cell) -> bool:
        return self.rundir.is_whole(self._path(cell), cell.settings.num_samples, _ignore)

    def _path(self, cell: Cell) -> Path:
        source = identity(self._source(cell))[:8]
        return self.rundir.interpolations / f"{cell.name}-{source}" / "part-000000.parquet"

    def _source(self, cell: Cell) -> dict[str, Any]:
        return {
            "pairs": self.config.report.interpolated_pairs,
            "steps": INTERPOLATION_STEPS,
            "weights_sha256": self.rundir.weights_sha256(cell.model, cell.settings.weights),
        }


def _positions(pairs: int, steps: int) -> Iterator[dict[str, Any]]:
    """Of each image: its index in the file, its figure, the samples it lies between, and how far along (0 to 1)."""
    fractions = [round(i / (steps - 1), 6) for i in range(steps)]
    for pair in range(pairs):
        for i, fraction in enumerate(fractions):
            between = f"{2 * pair} {2 * pair + 1}"
            yield {"index": pair * steps + i, "figure": "rows", "samples": between, "across": fraction, "down": None}
    for i, down in enumerate(fractions):
        for j, across in enumerate(fractions):
            index = pairs * steps + i * steps + j
            yield {"index": index, "figure": "square", "samples": "0 1 2 3", "across": across, "down": down}


def first_pictures(paths: list[Path], count: int) -> NDArray[np.uint8]:
    """Up to `count` pictures of the files, in the order of their indices, as figures want them."""
    found: dict[int, bytes] = {}
    for path in paths:
        if len(found) < count:
            found |= parquet.read_png(path, range(count))
    return to_pictures([decode_png(found[i]) for i in sorted(found)])


def _encoded(cell: Cell) -> "published.Encoded":
    """What a cell's reconstructions are of, for a published number to stand beside them."""
    from taugrid.eval.tables import published
    from taugrid.orchestrator.report.quality import network

    held_out = cell.model.data.held_out
    return published.Encoded(held_out.full_name, held_out.split, cell.tau, network(cell.model))


def _group(cell: Cell) -> str:
    """What cells share whose pictures make one figure, as part of a file's name."""
    return name_of([cell.settings.spacing_name, cell.settings.weights, *cell.axes.values(), cell.model.id])


def _seconds(rundir: RunDir, prefix: str) -> float | None:
    """Device time of the tasks whose key begins with `prefix`, each counted once, as it was last committed."""
    done = (e for e in read_events(rundir.events) if e.get("task", "").startswith(prefix) and e.get("committed"))
    last = {event["task"]: event["seconds"] for event in done}
    return round(sum(last.values()), 3) if last else None


def _remove(folder: Path, pattern: str) -> None:
    for stale in folder.glob(pattern):
        stale.unlink()


def _ignore(damage: Damage) -> None:
    """Damage was said when work was looked for."""
