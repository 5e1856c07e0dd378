"""What people read while taugrid works: the state, the remaining time, the drawing, plain lines."""

import io
import os
import pty
import subprocess
import sys
import tomllib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from snapshots import recorded

from taugrid.config.load import load
from taugrid.errors import Exit
from taugrid.orchestrator import ending
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.progress import Progress, display
from taugrid.orchestrator.progress.display import frame
from taugrid.orchestrator.progress.state import GridCell, LiveState, Stage
from taugrid.orchestrator.rates import Waiting, seconds_left
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work import kinds_by_name
from taugrid.words import quantity

KINDS = kinds_by_name()


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def a_progress(live=False, width=200):
    clock, console = Clock(), Console(file=io.StringIO(), width=width, force_terminal=live)
    return Progress(console, live, clock), clock, console.file


OF_TEN_STEPS = {
    "name": "ten",
    "model": {"oracle": "gaussian"},
    "data": {"name": "gaussian", "shape": [1, 4, 4]},
    "sample": {"seed": 0, "num_samples": 100},
    "grid": {"steps": [10], "eta": [0]},
}
[CELL] = plan(load(OF_TEN_STEPS)).cells


def sampling(cell, number=0, model="m"):
    """A task of 100 images in 1,000 evaluations."""
    of = replace(CELL, id=cell, model=replace(CELL.model, id=model))
    return Task(f"sample/{cell}/{number}", "sample", 1000, cell=of)


def by_key(*found):
    return {task.key: task for task in found}


def tasks(cells=("a", "b"), shards=2):
    """The tasks of a small run: each cell has shards of 100 images in 1,000 evaluations, and a score."""
    found = []
    for cell in cells:
        for number in range(shards):
            found.append(sampling(cell, number))
            found.append(Task(f"extract/{cell}/{number}", "extract", 100, cell=found[-1].cell))
        found.append(Task(f"score/{cell}", "score", 200, cell=found[-1].cell))
    return by_key(*found)


def to_do(known):
    groups = {}
    for task in known.values():
        groups.setdefault((task.kind, KINDS[task.kind].rate_key(task)), []).append(task.cost)
    return [{"kind": k, "pace": p, "tasks": len(costs), "cost": sum(costs)} for (k, p), costs in groups.items()]


class Session:
    """A state, and the events that it is told, each some seconds after the one before."""

    def __init__(self, known=None, cells=None):
        self.now, self.state = 0.0, LiveState(KINDS)
        self.known = tasks() if known is None else known
        self.state.expect(self.known)
        self.state.show_cells(cells or {}, "FID")
        self.tell("session", stages=["evaluate", "report", "sample", "train"])
        self.tell("to do", work=to_do(self.known))

    def tell(self, event, after=0.0, **values):
        self.now += after
        self.state.observe(self.now, {"event": event, **values})

    def join(self, *workers, after=0.0, device="cpu"):
        for worker in workers:
            self.tell("starting", worker=worker)
        for worker in workers:
            self.tell("worker", worker=worker, device=device, after=after)

    def give(self, worker, task):
        self.tell("assigned", worker=worker, task=task)

    def beat(self, worker, fraction, after=1.0):
        self.now += after
        self.state.heard(self.now, worker, fraction)

    def did(self, worker, event, after=1.0, **values):
        self.tell(event, after, worker=worker, committed=True, **{"images": 100} | values)

    @property
    def left(self):
        return self.snapshot.left

    @property
    def snapshot(self):
        return self.state.snapshot(self.now)

    def drawn(self):
        return drawn(self.state, None, self.now)


def drawn(state, stage, now):
    """The lines of a terminal."""
    console = Console(file=io.StringIO(), width=80, height=30)
    console.print(frame(state, stage, now, console, console.options))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def seconds(said):
    return int(said.split(" s ")[0].split(" min ")[-1]) + 60 * int(said.split(" min ")[0] if " min " in said else 0)


def test_there_is_no_remaining_time_before_a_rate_is_known():
    session = Session()
    session.join("w0", after=9)
    session.give("w0", "sample/a/0")
    assert session.left == ""
    session.beat("w0", 0.0, after=5)  # loading
    session.beat("w0", 0.1)
    assert session.left == "", "one heartbeat is no rate"
    session.beat("w0", 0.2, after=2)
    assert session.left.startswith("1 min 16 s left"), "0.05 a second, and 3.8 shards to do"
    recorded(session.left, "extracting")


def test_the_remaining_time_is_the_rest_at_the_rate_beside_it():
    """One of two workers has nothing to do, as in a cell of two unequal shards: 3 min 54 s stood beside 6 min 54 s."""
    session = Session(by_key(*(sampling("a", number) for number in range(27))))
    session.join("w0", "w1")
    session.give("w1", "sample/a/1")
    session.did("w1", "shard", after=8)
    session.give("w0", "sample/a/0")
    for fraction in (0.05, 0.4, 0.7, 1.0):
        session.beat("w0", fraction, after=6)
    at = session.snapshot
    assert seconds(at.left) == pytest.approx((at.total - at.done) / at.rate, abs=1)


def test_more_workers_take_less_time_and_the_last_task_is_not_divided():
    assert seconds_left([Waiting(4, 10.0)], 2) == 20
    assert seconds_left([Waiting(2, 1.0), Waiting(1, 2.0)], 2) == 2.0, "the longest go first"
    assert seconds_left([Waiting(4, 10.0)], 3) == 20, "two rounds"
    assert seconds_left([Waiting(4, 10.0), Waiting(1, 30.0)], 2) == 40
    assert seconds_left([Waiting(100_000, 10.0)], 100) == pytest.approx(10_000, rel=0.01)


def test_the_bar_counts_what_earlier_sessions_did_but_the_rate_does_not():
    session = Session(cells={name: GridCell("eta=0", f"S={name}", 20_000, 18_000) for name in ("a", "b")})
    session.join("w0")
    for number in range(2):
        session.give("w0", f"sample/a/{number}")
        session.did("w0", "shard", after=10)
    assert session.snapshot[1:4] == (38_000, 40_000, "network evaluations")
    assert session.snapshot.rate == pytest.approx(100)
    assert session.snapshot.images_rate == pytest.approx(10)


def test_copies_count_once_and_the_better_one_counts():
    session = Session()
    session.join("w0", "w1")
    session.give("w0", "sample/a/0")
    session.give("w1", "sample/a/0")
    session.beat("w0", 0.2)
    session.beat("w1", 0.5)
    assert session.snapshot.done == 500
    session.did("w1", "shard")
    assert session.snapshot.done == 1000
    session.did("w0", "shard")
    assert session.snapshot.done == 1000


def test_a_shard_that_is_given_back_has_the_rate_of_what_was_made():
    """30 of its images by one worker, 70 by the next. Planted once: each is taken for all."""
    session = Session(by_key(sampling("a"), sampling("b")))
    session.join("w0")
    for images, fraction, given_back in ((30, 0.15, {"given_back": True}), (70, 0.5, {})):
        session.give("w0", "sample/a/0")
        half, event = images / 20, {"images": images, "evaluations": 10 * images, "seconds": images / 10}
        session.beat("w0", fraction, after=half)
        session.did("w0", "shard", after=half, **event, **given_back)
    assert session.snapshot.images_rate == pytest.approx(10)
    assert session.snapshot.done == 1000


def test_a_lost_worker_takes_its_progress_with_it():
    session = Session()
    session.join("w0", "w1")
    session.give("w0", "sample/a/0")
    session.beat("w0", 0.9)
    session.tell("failed", worker="w0", task="sample/a/0", quarantined=False)
    session.tell("lost", worker="w0")
    assert session.snapshot.done == 0
    assert (session.state.workers.joined, session.state.workers.lost) == (1, 1)
    assert any("1 lost" in line for line in session.drawn())


def test_what_is_given_up_is_not_left_to_do():
    names = "abcd"
    cells = {name: GridCell("eta=0", f"S={name}", 1000) for name in names}
    session = Session(by_key(*map(sampling, names)), cells)
    session.join("w0")
    for name in "ab":
        session.give("w0", f"sample/{name}/0")
        session.did("w0", "shard", after=10)
    assert session.left == "20 s left"
    session.give("w0", "sample/c/0")
    session.tell("failed", worker="w0", task="sample/c/0", quarantined=True)
    assert session.left == "10 s left"
    session.give("w0", "sample/d/0")
    session.tell("failed", worker="w0", task="sample/d/0", quarantined=True)
    assert session.left == ""
    assert any("failed" in line for line in session.drawn())


def test_the_rate_of_a_stage_leaves_out_what_an_earlier_session_did():
    shown, clock, printed = a_progress()
    with shown:
        shown.begin("training", 1000, "steps", waits=True)
        clock.now += 100  # workers start
        shown.update(400, workers=2)
        for done in (410, 420):
            clock.now += 5
            shown.update(done, workers=2, note="loss 0.5")
    lines = printed.getvalue().splitlines()
    recorded(lines[0])
    assert " 4 min 50 s left" in lines[-1]
    assert "starting, 12 s" in drawn(None, Stage("training", 100, "steps", lambda: 0.0, waits=True), 12.0)[-1]


def test_plain_lines_come_seldom_and_not_before_work_starts():
    shown, clock, printed = a_progress()
    shown.begin("scoring", 10, "images", waits=True)
    for _ in range(5):
        clock.now += display.PLAIN_INTERVAL_SECONDS
        shown.tick()
    assert printed.getvalue() == ""
    for done in range(1, 9):
        clock.now += display.PLAIN_INTERVAL_SECONDS / 4
        shown.update(done, workers=1)
    assert printed.getvalue().count("\n") == 2
    shown.end()


def test_a_plain_line_says_that_workers_compile():
    """Patch: no `doing` in the line, which says "0 of 4,000" for minutes."""
    session = Session(tasks())
    for worker, task in (("w0", "sample/a/0"), ("w1", "sample/a/1")):
        session.join(worker)
        session.give(worker, task)
    session.state.heard(session.now, "w0", 0.0, "compiling")
    assert ", 2 workers (1 compiling), " in session.snapshot.line
    session.state.heard(session.now, "w1", 0.0, "compiling")
    assert ", 2 workers (compiling), " in session.snapshot.line
    session.state.heard(session.now, "w0", 0.1)
    session.state.heard(session.now, "w1", 0.1)
    assert "compiling" not in session.snapshot.line


def test_a_terminal_has_a_view_that_goes_away_and_messages_and_what_was_last_known_at_a_failure_stay():
    shown, _, printed = a_progress(live=True, width=40)
    with suppress(ZeroDivisionError), shown:
        shown.begin("judging [2]", 4, "cells")
        shown.say("x" * 100)
        shown.update(3)
        raise ZeroDivisionError
    said = printed.getvalue()
    assert said.count("x" * 100) == 1, "as one line, for the terminal to wrap"
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l"), "the cursor is shown again"
    assert "\x1b[2K" in said, "the view is erased"
    assert said.rstrip().endswith("judging [2]: 3 of 4 cells")


def test_a_quantity_has_three_digits_and_no_exponent():
    said = {9_999: "9,999", 12_345: "12.3k", 999_400: "999k", 999_600: "1M", 999.6e9: "1T", 1.5e15: "1,500T"}
    assert {value: quantity(value) for value in said} == said


def test_colours_in_a_log_make_no_live_view(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    printed = io.StringIO()
    with Progress(Console(file=printed)) as shown:
        shown.begin("judging", 4, "cells")
        shown.update(3)
    assert "\x1b" not in printed.getvalue(), "a live view hides the cursor"


def test_a_driver_that_ends_by_force_shows_the_cursor_again():
    """Ray's C++ may hold the main thread, so that no `with` block ends."""
    ours, its = pty.openpty()
    ends = [sys.executable, "-c", "from taugrid.orchestrator import ending; ending.leave()"]
    done = subprocess.run(ends, stderr=its, check=False)
    os.close(its)
    said = os.read(ours, 1000).decode()
    os.close(ours)
    assert done.returncode == Exit.INTERRUPTED
    assert "\n\x1b[?25htaugrid: " in said, "on a line of its own"
    assert "interrupted" in said


COMMAND = """
import os, signal, sys, threading
from taugrid.errors import RunFailed
from taugrid.orchestrator import ending
from taugrid.orchestrator.cli import main
ending.GRACE_SECONDS = 0.3
def command(**_):
    {ends}
main.cli.main = command
"""

ENDS = """
def again():  # who waits presses Ctrl-C again
    threading.main_thread().join()  # until it joins threads
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    threading.Event().wait(60)
threading.Thread(target=again).start()
main.main()
"""

GOES_ON = """
try:
    main.run_command()
except SystemExit as end:
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()
    print("goes on after", int(end.code))
"""


def run_python(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    return done.returncode, done.stdout, done.stderr


FAILS, INTERRUPTED = "raise RunFailed('planted')", "signal.raise_signal(signal.SIGINT)"


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        (FAILS, 1, "taugrid: planted"),
        (INTERRUPTED, 130, "taugrid: interrupted"),
        ("sys.exit(4)", 4, ""),
        ("raise OSError('a bug')", 1, "Traceback"),
    ],
)
def test_a_command_that_has_ended_waits_for_no_thread_and_says_why_once(ends, code, said):
    """Python joins threads at its exit. Planted once: `main` without its timer; it hears Ctrl-C again; `leave` without
    `_is_told`."""
    returned, _, told = run_python(COMMAND.format(ends=ends) + ENDS)
    assert returned == code
    assert told.startswith(said)
    assert told.count("taugrid: ") == said.startswith("taugrid"), "said once"
    assert "Exception ignored" not in told


@pytest.mark.parametrize(("ends", "code"), [(FAILS, 1), (INTERRUPTED, 130)])
def test_a_process_that_runs_a_command_of_many_goes_on(ends, code):
    """Tests do, and share Ray. Planted once: the timer in `end`, and `_interruptible` in `run_command`."""
    returned, told, _ = run_python(COMMAND.format(ends=ends) + GOES_ON)
    assert (returned, told.split()[-1]) == (0, str(code))


@pytest.mark.parametrize("module", ["click", "yaml"])
def test_ctrl_c_during_an_import_is_one_line(module, tmp_path):
    """Of the command line, which needs click, and of a command. Once a traceback; a status of -2, as of the signal."""
    (tmp_path / f"{module}.py").write_text("import signal\nexec('signal.raise_signal(signal.SIGINT)')\n")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    entry, _, name = project["scripts"]["taugrid"].partition(":")
    for program in (["-m", "taugrid"], ["-c", f"from {entry} import {name}; {name}()"]):
        done = subprocess.run(
            [sys.executable, *program, "plan", "digits"],
            env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (Exit.INTERRUPTED, "")
        assert done.stderr.strip() == f"taugrid: {ending.interrupted()}"


RAYS_IMPORT = """
import signal, sys
from taugrid.orchestrator.dispatch.address import import_ray
sys.path.insert(0, {folder!r})
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    import_ray()
except KeyboardInterrupt:
    print(sys.modules["ray"].is_whole)
try:
    signal.raise_signal(signal.{name})
except KeyboardInterrupt:
    print("as before")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_waits_for_the_end_of_rays_import(tmp_path, name):
    """Once: a Cython module of Ray printed the traceback of the KeyboardInterrupt that met its import."""
    (tmp_path / "ray.py").write_text(f"import signal\nsignal.raise_signal(signal.{name})\nis_whole = True\n")
    returned, told, _ = run_python(RAYS_IMPORT.format(folder=str(tmp_path), name=name))
    assert (returned, told.splitlines()) == (0, ["True", "as before"])


@pytest.mark.parametrize(("width", "height"), [(60, 30), (80, 30), (100, 30), (80, 4), (80, 13)])
def test_the_view_is_narrower_and_lower_than_the_terminal(width, height):
    """A line of its width takes two, and what is drawn next then erases messages above."""
    cells = {
        f"{r}-{c}": GridCell(f"checkpoint=digits/step-{r:06d} eta=0.{r}", f"S={10**c}", 1000)
        for r in range(12)
        for c in range(4)
    }
    session = Session(tasks(cells, 1), cells)
    workers = [f"worker-{number}" for number in range(12)]
    session.join(*workers)
    for worker, cell in zip(workers, cells, strict=False):
        session.give(worker, f"sample/{cell}/0")
        session.beat(worker, 0.25)
        session.beat(worker, 0.5)
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(frame(session.state, None, session.now, console, console.options))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert len(lines) < height
    assert max(map(len, lines)) < width
    assert any("%" in line for line in lines)
