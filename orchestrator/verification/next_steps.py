"""What to do about each thing that `verify` found."""

from collections.abc import Sequence
from typing import NamedTuple

from taugrid.orchestrator.plan.cells import Plan
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.integrity import Damage
from taugrid.orchestrator.work import work_kinds

RUN = "run"
"""The command that makes again what no other command makes."""


class NextStep(NamedTuple):
    """A command that repairs some damage or, in words, what the user must decide."""

    command: str | None
    words: str


def next_steps(damages: Sequence[Damage], plan: Plan, rundir: RunDir) -> list[NextStep]:
    """What to do about each damage, in their order."""
    planned = {rundir.sample_part(cell, shard) for cell in plan.cells for shard in cell.shards}
    own = {kind.folder: kind.stage for kind in work_kinds() if kind.stage not in ("sample", "evaluate")}
    return [_next_step(damage, rundir, own, damage.path in planned) for damage in damages]


def _next_step(damage: Damage, rundir: RunDir, own: dict[str, str], is_planned: bool) -> NextStep:
    path = damage.path
    if path == rundir.samples:
        return NextStep(None, "use a config that has these cells, or remove their folders")
    is_inside = path.is_relative_to(rundir.root)
    folder, *inner = path.relative_to(rundir.root).parts if is_inside else ("",)
    if not is_inside or (folder == rundir.models.name and len(inner) > 1):  # weights: the message has the ways out
        return NextStep(None, damage.reason.partition("; ")[2])
    if folder == rundir.samples.name and not is_planned:
        return NextStep(None, "remove it: it belongs to no cell of the config")
    command = "report" if path in (rundir.provenance, rundir.tables / path.name) else own.get(folder, RUN)
    return NextStep(f"taugrid {command} {rundir.shown}", "")


def in_words(steps: Sequence[NextStep]) -> list[str]:
    """A line for each command, with how many of the problems it solves."""
    commands = [step.command for step in steps if step.command is not None]
    if len(set(commands)) == 1 and len(commands) == len(steps):
        return [f"`{commands[0]}` solves {'all of them' if len(steps) > 1 else 'it'}"]
    return [f"`{each}` solves {commands.count(each):,} of them" for each in dict.fromkeys(commands)]
