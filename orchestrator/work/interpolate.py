"""Interpolation, the paper's figure 6 and appendix D.5: a task for each cell, and figures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taugrid.hashing import identity
from taugrid.orchestrator.plan.cells import Cell, Plan, part_name
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.kind import NETWORK_EVALUATIONS, KindResult, WorkKind
from taugrid.orchestrator.work.reconstruct import ignore_damage, left_out, ode_cells, require_ode_cells
from taugrid.parquet import first_pictures
from taugrid.words import counted
from taugrid.workers.ode import InterpolateJob

INTERPOLATION_STEPS = 11
"""Number of points from one x_T to another, both included, as in the paper's figure 6."""


class InterpolateWork(WorkKind):
    """Figure 6 and appendix D.5: points between the x_T of samples, decoded."""

    name = "interpolate"
    priority = 30
    folder = "interpolations"
    files = "*/part-*.parquet"
    stage = "interpolate"
    unit = NETWORK_EVALUATIONS
    activity = "interpolating"
    task_in_words = ("cell", "to interpolate")

    def check(self) -> None:
        """Raise `UserError` if no cell is of DDIM."""
        require_ode_cells(self.plan, self.stage)

    def announcement(self, cost: float) -> str | None:
        """That other samplers' cells are left out."""
        return left_out(self.plan, self.stage).removeprefix("; ") or None

    def tasks(self) -> Iterator[Task]:
        for cell in self._cells():
            path, count = self._path(cell), cell.settings.num_samples
            if self.rundir.has_intact_file(path, count, self.survey.on_damage):
                continue
            assert cell.settings.seed is not None
            job = InterpolateJob(
                path=str(path),
                storage=self.rundir.storage,
                run_id=self.rundir.run_id,
                pairs=self.config.report.interpolated_pairs,
                steps=INTERPOLATION_STEPS,
                network=self.rundir.network(cell.model, cell.settings.weights),
                decoder=cell.model.decoder,
                seed=cell.settings.seed,
                batch_size=cell.settings.batch_size,
                diffusion=cell.model.diffusion,
                tau=cell.tau,
                metadata={"cell": cell.id, "tau": list(cell.tau), **self._source(cell)},
            )
            yield Task(f"{self.name}/{cell.id}", self.name, count * cell.nfe, cell=cell, given=job)

    def missing(self) -> dict[str, str]:
        return {cell.name: "not interpolated" for cell in self._cells() if not self._is_whole(cell)}

    def labels(self) -> dict[str, str]:
        return {cell.name: cell.label for cell in self._cells()}

    def conclude(self) -> KindResult:
        """Write figures/interpolation*.png, and tables/interpolation.csv with each image's position and its x_T."""
        import pandas as pd

        from taugrid.eval.figures import pictures
        from taugrid.storage import replacing

        pairs, steps = self.config.report.interpolated_pairs, INTERPOLATION_STEPS
        rows: list[dict[str, Any]] = []
        self.rundir.remove_outputs("figures/interpolation*.png")
        for cell in self._cells():
            if not self._is_whole(cell):
                continue
            rows += [{"cell": cell.id, "steps": cell.settings.steps, **row} for row in _positions(pairs, steps)]
            shown = first_pictures([self._path(cell)], cell.settings.num_samples, self.rundir.storage)
            lines = shown[: pairs * steps].reshape(pairs, steps, *shown.shape[1:])
            square = shown[pairs * steps :].reshape(steps, steps, *shown.shape[1:])
            with self.rundir.storage.local_folder(self.rundir.figures) as figures:
                pictures.interpolations(lines, figures / f"interpolations-{cell.name}.png")
                pictures.interpolation_grid(square, figures / f"interpolation-square-{cell.name}.png")
        with replacing(self.rundir.tables / "interpolation.csv", self.rundir.storage) as temporary:
            temporary.write_text(pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"), encoding="utf-8")
        cells = counted(len({row["cell"] for row in rows}), "cell")
        return KindResult(rows, f"{cells} interpolated: figures/interpolation*.png")

    @classmethod
    def cells_of(cls, plan: Plan) -> list[Cell]:
        return ode_cells(plan)

    def _cells(self) -> list[Cell]:
        steps = INTERPOLATION_STEPS
        return ode_cells(self.plan, num_samples=self.config.report.interpolated_pairs * steps + steps**2)

    def _is_whole(self, cell: Cell) -> bool:
        return self.rundir.has_intact_file(self._path(cell), cell.settings.num_samples, ignore_damage)

    def _path(self, cell: Cell) -> Path:
        source = identity(self._source(cell))[:8]
        return self.path / f"{cell.name}-{source}" / part_name(0)

    def _source(self, cell: Cell) -> dict[str, Any]:
        return {
            "pairs": self.config.report.interpolated_pairs,
            "steps": INTERPOLATION_STEPS,
            "weights_sha256": self.rundir.weights_sha256(cell.model, cell.settings.weights),
        }


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
