"""Draws the state as lines that fit a terminal. If a line wrapped, rich would erase messages above the view."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from taugrid.orchestrator.progress.stage import Stage, Standing
from taugrid.orchestrator.progress.state import LiveState
from taugrid.orchestrator.progress.table import percent, table
from taugrid.words import counted, duration

LONGEST_BAR = 60
"""Columns of the bar; a longer one tells no more."""

SHORTEST_BAR = 10

BESIDE_THE_BAR = 36
"""Columns kept free for the percentage and the remaining time, so that the bar keeps its length."""

LISTED_WORKERS = 4
"""Up to this many workers get a line each. More are only counted, by what they do."""

GAP = "  "
IN_ORDER = ("train", "sample", "reconstruct", "interpolate", "evaluate", "report")
"""In the order in which a session does them."""


@dataclass(frozen=True)
class Space:
    """The size of a terminal in characters."""

    width: int
    height: int


def fit(line: Text, width: int) -> Text:
    """`line`, cut with an ellipsis if it is wider than that, and never wrapped."""
    line.truncate(width, overflow="ellipsis")
    line.no_wrap, line.overflow = True, "crop"
    return line


def frame(state: LiveState | None, stage: Stage | None, at: float, space: Space) -> list[Text]:
    """All lines, from top to bottom: the table first, because what is at the bottom stays where it is."""
    width = space.width - 1  # some terminals wrap after the last column
    below: list[Text] = []
    if state is not None and state.stages:
        below.append(_stages(state))
    if stage is not None:
        below += _work(stage.standing(at), width)
        if not stage.has_begun:
            below.append(Text(f"starting, {duration(at - stage.since)}", style="dim"))
    elif state is not None and state.todo.open_kinds:
        below += [*_work(state.standing(at)._replace(name="", note="", workers=0), width), *_workers(state, at)]
    above = [] if state is None else table(state, width, space.height - len(below) - 2)
    return [fit(line, width) for line in [*above, *below][: max(1, space.height - 1)]]


def _stages(state: LiveState) -> Text:
    """The stages of the session: done, under way, or to come."""
    asked = [name for name in IN_ORDER if name in state.stages and (name != "train" or state.trainings is not None)]
    return Text(GAP).join(_stage(state, name) for name in asked)


def _stage(state: LiveState, name: str) -> Text:
    kinds = [kind for kind in state.todo.all if kind in state.kinds and state.kinds[kind].stage == name]
    planned, is_open = bool(state.todo.all), not state.todo.open_kinds.isdisjoint(kinds)
    if name == "train":
        begun, over = bool(state.trainings), planned or state.trainings == set()
    elif name == "report":
        begun, over = planned and not state.todo.open_kinds, False
    else:
        begun, over = is_open, planned and not is_open
    if over or state.ended:
        return Text(f"✓ {name}", style="green")
    said = _of_stage(state, kinds) if is_open else ""
    return Text(f"▸ {name}{said}", style="bold") if begun else Text(f"· {name}", style="dim")


def _of_stage(state: LiveState, kinds: Sequence[str]) -> str:
    """How far a stage is: its finished cells if they are counted, else in percent."""
    for kind in kinds:
        if state.kinds[kind].finished:
            done, total = state.finished(kind)
            return f" {done} of {counted(total, 'cell')}"
    return f" {percent(*state.amounts(kinds))}"


def _work(standing: Standing, width: int) -> Iterator[Text]:
    """The bar, and the numbers below it: in one line if they fit, else in two."""
    share = min(1.0, standing.done / standing.total) if standing.total else 0.0
    beside = GAP.join(filter(None, [f" {percent(standing.done, standing.total):>4}", standing.left]))
    columns = max(SHORTEST_BAR, min(LONGEST_BAR, width - BESIDE_THE_BAR))
    full = int(share * columns)
    yield Text.assemble(("━" * full, "green"), ("━" * (columns - full), "dim"), beside)
    amount = f"{standing.name}: {standing.amount}" if standing.name else standing.amount
    workers = counted(standing.workers, "worker") if standing.workers else ""
    rest = ", ".join(filter(None, [*standing.rates, workers, standing.note]))
    if cell_len(amount) + 2 + cell_len(rest) <= width:
        yield Text(", ".join(filter(None, [amount, rest])))
    else:
        yield from (Text(amount), Text(rest))


def _workers(state: LiveState, at: float) -> Iterator[Text]:
    workforce, doing = state.workforce, Counter[str]()
    for worker in workforce.by_name.values():
        if worker.task is not None:
            doing[_activity(state, worker.task)] += 1
        elif worker.joined:
            doing["benched" if workforce.is_benched(worker) else "idle"] += 1
    listed = ", ".join(f"{count} {what}" for what, count in doing.items())
    said = f"{counted(workforce.joined, 'worker')}: {listed}" if workforce.joined else ""
    if starting := workforce.starting:
        waited = duration(at - min(worker.since for worker in starting))
        said = "; ".join(filter(None, [said, f"starting {counted(len(starting), 'worker')}, {waited}"]))
    lost = (f"; {workforce.lost} lost", "red") if workforce.lost else ""
    yield Text.assemble(said, lost)
    if workforce.joined <= LISTED_WORKERS:
        yield from (Text(line, style="dim") for line in _each_worker(state))


def _each_worker(state: LiveState) -> Iterator[str]:
    names = [name for name, worker in state.workforce.by_name.items() if worker.task is not None]
    longest = max(map(len, names), default=0)
    for name in names:
        worker = state.workforce.by_name[name]
        assert worker.task is not None
        item = state.item(worker.task)
        cell = state.cells.get(item.cell or "")
        what = f"{cell.column} {cell.row}" if cell else ""
        done = f"{worker.fraction:.0%}" if worker.last else ""
        parts = [f"  {name:{longest}}", _activity(state, worker.task), what, done]
        yield GAP.join(filter(None, parts))


def _activity(state: LiveState, task: str) -> str:
    kind = task.split("/")[0]
    return state.kinds[kind].activity if kind in state.kinds else kind
