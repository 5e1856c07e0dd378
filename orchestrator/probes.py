"""What `reconstruct` and `interpolate` do: like sampling, pieces of work, files that resume, and then a report.

Both follow the ODE (eta = 0, nothing clipped), so they need one cell for each model and list tau of the plan, whatever
eta and clip the plan's own cells have.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import Config
from orchestrator.dispatch import Task
from orchestrator.grid import Cell, Plan, Shard, identity, with_settings
from orchestrator.rundir import Damage, RunDir, read_events
from orchestrator.work import Piece
from workers import data, images
from workers.jobs import InterpolateJob, ReconstructJob

PICTURES = 12
"""Images across figures/reconstructions.png."""

INTERPOLATION_STEPS = 11
"""Points from one x_T to another, both included, as in the paper's figure 6."""

OnDamage = Callable[[Damage], None]


class Probe(Protocol):
    """A kind of work on the ODE."""

    def pieces(self, on_damage: OnDamage) -> Iterator[Piece]:
        """What is missing on disk; damaged files are reported and count as missing. Models must be there."""

    def missing(self) -> dict[str, str]:
        """Cell name -> what it lacks."""

    def write(self) -> list[dict[str, Any]]:
        """Write tables and figures from the files that there are; returns the rows of a table, if there is one."""


def ode_cells(plan: Plan, num_samples: int, **changes: Any) -> list[Cell]:
    """The plan's cells with eta = 0, no clipping and `changes`; those that this makes equal come once."""
    settings = {"eta": 0.0, "clip": "none", "num_samples": num_samples, **changes}
    cells = (with_settings(cell, settings) for cell in plan.cells)
    return list({cell.id: cell for cell in cells}.values())


@dataclass(frozen=True)
class Reconstruct:
    """Table 2: images that were held out, encoded and decoded."""

    config: Config
    plan: Plan
    rundir: RunDir

    def pieces(self, on_damage: OnDamage) -> Iterator[Piece]:
        """A piece for each shard whose file is missing."""
        held_out = self.config.data.held_out
        content = data.fingerprint(data.load_images(held_out))
        for cell in self._cells():
            weights = self.rundir.weights_sha256(cell.model, cell.settings.weights)
            for shard in cell.shards:
                path = self._path(cell, shard)
                if self.rundir.is_whole(path, shard.stop, on_damage, shard.start):
                    continue
                job = ReconstructJob(
                    path=str(path),
                    replace=path.exists(),
                    start=shard.start,
                    stop=shard.stop,
                    network=self.rundir.network(cell.model, cell.settings.weights),
                    data=held_out,
                    batch_size=cell.settings.batch_size,
                    diffusion=cell.model.diffusion,
                    tau=cell.tau,
                    metadata={"cell": cell.id, "data": content, "weights_sha256": weights, "tau": list(cell.tau)},
                )
                task = Task(f"reconstruct/{cell.id}/{shard.number}", "reconstruct", 2 * shard.evaluations)
                yield Piece(task, job, cell)

    def missing(self) -> dict[str, str]:
        """Cells of which not all images are reconstructed."""
        lacking = {}
        for cell in self._cells():
            count = sum(not self._path(cell, shard).exists() for shard in cell.shards)
            if count:
                lacking[cell.name] = f"{count} of {len(cell.shards)} shards are not reconstructed"
        return lacking

    def write(self) -> list[dict[str, Any]]:
        """tables/reconstruction.* and figures/reconstruction*."""
        from eval import figures, pictures, reconstruction

        rows: list[dict[str, Any]] = []
        rebuilt: dict[str, dict[int, NDArray[np.uint8]]] = {}
        for cell in self._cells():
            paths = [self._path(cell, shard) for shard in cell.shards]
            if all(path.exists() for path in paths):
                rows.append(self._row(cell, paths))
                rebuilt.setdefault(_group(cell), {})[cell.settings.steps] = first_pictures(paths, PICTURES)
        if not rows:
            return rows
        reconstruction.write(rows, self.rundir.tables, self._about())
        figures.reconstruction_error(reconstruction.frame(rows), self.rundir.figures / "reconstruction-error")
        for stale in self.rundir.figures.glob("reconstructions*.png"):
            stale.unlink()
        originals = images.to_pictures(data.load_images(self.config.data.held_out)[:PICTURES])
        for group, by_steps in rebuilt.items():
            name = "reconstructions" if len(rebuilt) == 1 else f"reconstructions-{group}"
            count = min(len(originals), *(len(row) for row in by_steps.values()))
            shown = {steps: row[:count] for steps, row in by_steps.items()}
            pictures.reconstructions(originals[:count], shown, self.rundir.figures / f"{name}.png")
        return rows

    def _cells(self) -> list[Cell]:
        available = len(data.load_images(self.config.data.held_out))
        return ode_cells(self.plan, min(available, self.config.report.reconstructed_images), seed=0)

    def _path(self, cell: Cell, shard: Shard) -> Path:
        """The folder's name tells images and weights apart, so that a file of others is never taken for this."""
        held_out = self.config.data.held_out.model_dump(mode="json")
        weights = self.rundir.weights_sha256(cell.model, cell.settings.weights)
        source = identity({"data": held_out, "weights": weights})[:8]
        return self.rundir.reconstructions / f"{cell.name}-{source}" / shard.name

    def _row(self, cell: Cell, paths: list[Path]) -> dict[str, Any]:
        n = cell.settings.num_samples
        mse, mse_8bit = (
            np.concatenate([part for path in paths for _, part in images.read_numbers(path, column)])[:n]
            for column in ("mse", "mse_8bit")
        )
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

    def _about(self) -> str:
        section = self.config.data
        if section.held_out != section:
            seen = "held out from training"
        elif all(model.train is None for model in self.plan.models):
            seen = "of which a loaded model may have seen some"
        else:
            seen = "which the network was trained on (data.split: train holds some out)"
        return f"Images: {section.held_out.name}, split {section.held_out.split}, {seen}."


@dataclass(frozen=True)
class Interpolate:
    """Figure 6 and appendix D.5: what is decoded between the x_T of samples."""

    config: Config
    plan: Plan
    rundir: RunDir

    def pieces(self, on_damage: OnDamage) -> Iterator[Piece]:
        """A piece for each cell whose file is missing."""
        for cell in self._cells():
            path = self._path(cell)
            count = cell.settings.num_samples
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
                metadata={"cell": cell.id, "pairs": self.config.report.interpolated_pairs, "tau": list(cell.tau)},
            )
            yield Piece(Task(f"interpolate/{cell.id}", "interpolate", count * len(cell.tau)), job, cell)

    def missing(self) -> dict[str, str]:
        """Cells without their file."""
        return {cell.name: "it is not interpolated" for cell in self._cells() if not self._path(cell).exists()}

    def write(self) -> list[dict[str, Any]]:
        """figures/interpolations-*.png, pairs in rows, and figures/interpolation-square-*.png."""
        from eval import pictures

        pairs, steps = self.config.report.interpolated_pairs, INTERPOLATION_STEPS
        for cell in self._cells():
            path = self._path(cell)
            if not path.exists():
                continue
            shown = first_pictures([path], cell.settings.num_samples)
            rows, square = shown[: pairs * steps], shown[pairs * steps :]
            figures = self.rundir.figures
            pictures.interpolations(_folded(rows, pairs, steps), figures / f"interpolations-{cell.name}.png")
            pictures.interpolation_grid(
                _folded(square, steps, steps), figures / f"interpolation-square-{cell.name}.png"
            )
        return []

    def _cells(self) -> list[Cell]:
        steps = INTERPOLATION_STEPS
        return ode_cells(self.plan, self.config.report.interpolated_pairs * steps + steps**2)

    def _path(self, cell: Cell) -> Path:
        weights = self.rundir.weights_sha256(cell.model, cell.settings.weights)
        source = identity({"pairs": self.config.report.interpolated_pairs, "weights": weights})[:8]
        return self.rundir.interpolations / f"{cell.name}-{source}" / "part-000000.parquet"


def first_pictures(paths: list[Path], count: int) -> NDArray[np.uint8]:
    """Up to `count` pictures of the files, in the order of their indices, as figures want them."""
    found: dict[int, bytes] = {}
    for path in paths:
        if len(found) < count:
            found |= images.read_png(path, range(count))
    return images.to_pictures([images.decode_png(found[i]) for i in sorted(found)])


def _folded(shown: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    return shown.reshape(rows, columns, *shown.shape[1:])


def _group(cell: Cell) -> str:
    """What cells share whose pictures make one figure, as part of a file's name."""
    others = [cell.settings.spacing_name, cell.settings.weights, *map(str, cell.axes.values()), cell.model.id]
    return "".join(c if c.isalnum() or c in "=.-_" else "_" for c in "-".join(others))


def _seconds(rundir: RunDir, prefix: str) -> float | None:
    """Device time of the tasks whose key begins with `prefix`, each counted once, as it was last committed."""
    last = {e["task"]: e["seconds"] for e in read_events(rundir.events) if e.get("task", "").startswith(prefix)
            and e.get("committed")}  # fmt: skip
    return round(sum(last.values()), 3) if last else None
