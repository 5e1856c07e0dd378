"""What must hold before a night begins, so that its verdict can say something."""

from typing import Any

from taugrid.errors import UserError
from taugrid.orchestrator.nightly.places import Night
from taugrid.orchestrator.plan.evaluation import too_few_samples
from taugrid.orchestrator.plan.extractor import foreseen
from taugrid.orchestrator.run import Run


def check_standard_error(opened: Run) -> None:
    """Raise `UserError` if a cell's N gives FID no standard error: then nothing could be said about it, ever."""
    spec = opened.rundir.extractor(opened.config)
    if (problem := standard_error_problem(opened, spec.name, spec.dimensions)) is not None:
        raise UserError(problem)


def expected_standard_error_problem(opened: Run) -> str | None:
    """`standard_error_problem` as far as it is known without the extractor's weights."""
    found = foreseen(opened.config, opened.rundir.extractor)
    return standard_error_problem(opened, found.name, found.dimensions or 0)


def standard_error_problem(opened: Run, extractor: str, dimensions: int) -> str | None:
    """Why a night would have nothing to judge by: no FID, or an N that gives it no standard error. None: it has."""
    if "fid" not in opened.config.evaluate.metrics:
        return "evaluate.metrics lacks fid, which is what a night is judged by; add it"
    small, least = too_few_samples(opened.plan, dimensions)
    if not small:
        return None
    return (
        f"sample.num_samples: {small[0]} gives FID no standard error with {extractor}, whose features have "
        f"{dimensions} dimensions; a night needs at least {least}"
    )


def check_growth(grow_to: int | None, opened: Run) -> None:
    """Raise `UserError` if no cell could grow."""
    least = min(cell.settings.num_samples for cell in opened.plan.cells)
    if grow_to is not None and grow_to <= least:
        raise UserError(f"--grow-to {grow_to}: every cell has N = {least} or more already; give more than that")


def check_same_night(opened: Run, night: Night, verdict: dict[str, Any]) -> None:
    """Raise `UserError` if a complete night is asked for with cells, or an N, that it does not have.

    Its verdict, and its exit code, would be taken for those of a model that nobody has sampled.
    """
    judged = {score["cell"]: score["settings"]["num_samples"] for score in verdict["scores"]}
    new = [cell.label for cell in opened.plan.cells if cell.id not in judged]
    if new:
        raise UserError(
            f"night {night.id} is complete, but has no {new[0]}{' and others' * (len(new) > 1)}: the checkpoint or the "
            "config has changed since; give --id NAME for another night"
        )
    for cell in opened.plan.cells:
        if (n := cell.settings.num_samples) != judged[cell.id]:
            had = judged[cell.id]
            raise UserError(
                f"night {night.id} is complete with N = {had}, not N = {n}; give --id NAME for another night"
            )
