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
from taugrid.orchestrator.progress.state import Busy, GridCell, KindProgress, SessionSnapshot, SessionState
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


def work(known, done=0):
    """The work by kind; of network evaluations, some are `done`."""
    found = {}
    for name, kind in KINDS.items():
        costs = [1 if kind.finished_noun else task.cost for task in known.values() if task.kind == name]
        if costs:
            before = done if name == "sample" else 0
            found[name] = KindProgress(kind, before + sum(costs), before, len(costs))
    return found


class Session:
    """A session that is shown, and what its workers do, each some seconds after the one before."""

    def __init__(self, known=None, cells=None, lost=0):
        self.progress, self.clock, _ = a_progress()
        self.known, self.busy, self.lost = tasks() if known is None else known, {}, lost
        self.done, self.given_up = set(), set()
        before = sum(cell.done for cell in (cells or {}).values())
        self.progress.session_started(None, "", ["evaluate", "report", "sample", "train"])
        self.progress.show(SessionState(work(self.known, before), cells or {}, "FID", dict(self.known)))

    def look(self, after=1.0):
        self.clock.now += after
        self.progress.tick(lambda: SessionSnapshot(self.done, self.given_up, list(self.busy.values()), lost=self.lost))

    def beat(self, worker, task, fraction, after=1.0, doing=""):
        self.busy[worker] = Busy(self.known[task], fraction, doing)
        self.look(after)

    def did(self, worker, task, after=1.0):
        self.busy.pop(worker, None)
        self.done.add(task)
        self.look(after)

    @property
    def left(self):
        return next((part for part in self.progress.line.split(", ") if " left" in part), "")

    @property
    def bar(self):
        return self.progress._bars.tasks[1]  # the first counts images

    def drawn(self):
        return drawn(self.progress)


def drawn(progress, width=80, height=30):
    """The lines of a terminal."""
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(progress)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_there_is_no_remaining_time_before_a_rate_is_known():
    session = Session()
    assert session.progress.line == "", "no worker has begun"
    session.beat("w0", "sample/a/0", 0.0, after=5)  # loading
    session.beat("w0", "sample/a/0", 0.1)
    assert session.left == "", "one heartbeat is no rate"
    session.beat("w0", "sample/a/0", 0.2, after=2)
    assert session.left.startswith("1 min 16 s left"), "0.05 a second, and 3.8 shards to do"
    recorded(session.left, "extracting")


def test_the_bar_counts_what_earlier_sessions_did_but_the_rate_does_not():
    session = Session(cells={name: GridCell("eta=0", f"S={name}", 20_000, 18_000) for name in ("a", "b")})
    for number in range(2):
        session.did("w0", f"sample/a/{number}", after=10)
    assert (session.bar.completed, session.bar.total) == (38_000, 40_000)
    assert ", 100/s, 10 images/s, 20 s left" in session.progress.line
    assert [cell.done for cell in session.progress.state.cells.values()] == [20_000, 18_000]


def test_copies_count_once_and_the_better_one_counts():
    session = Session()
    session.beat("w0", "sample/a/0", 0.2)
    session.beat("w1", "sample/a/0", 0.5)
    assert session.bar.completed == 500
    session.did("w1", "sample/a/0")
    assert session.bar.completed == 1000
    session.did("w0", "sample/a/0")
    assert session.bar.completed == 1000


def test_a_lost_worker_takes_its_progress_with_it():
    session = Session()
    session.beat("w0", "sample/a/0", 0.9)
    assert session.bar.completed == 900
    session.busy.clear()
    session.lost = 1
    session.look()
    assert session.bar.completed == 0
    assert any("1 lost" in line for line in session.drawn())


def test_what_is_given_up_is_not_left_to_do():
    names = "abcd"
    cells = {name: GridCell("eta=0", f"S={name}", 1000) for name in names}
    session = Session(by_key(*map(sampling, names)), cells)
    for name in "ab":
        session.did("w0", f"sample/{name}/0", after=10)
    assert session.left == "20 s left"
    session.given_up.add("sample/c/0")
    session.look()
    assert (session.bar.completed, session.bar.total) == (2000, 3000)
    session.given_up |= {"sample/d/0", "score/other"}
    session.look()
    assert session.progress.line == "", "nothing is left"
    assert any("failed" in line for line in session.drawn())


def test_the_view_counts_workers_by_what_they_do():
    session = Session()
    session.beat("w0", "sample/a/0", 0.5)
    session.beat("w1", "sample/a/1", 0.0, doing="compiling")
    busy = list(session.busy.values())
    session.clock.now += 1
    session.progress.tick(lambda: SessionSnapshot(busy=busy, idle=3, cooling_down=1, starting=2, waited=12.0))
    recorded(drawn(session.progress, width=100)[-1])


def test_the_rate_of_a_stage_leaves_out_what_an_earlier_session_did():
    shown, clock, printed = a_progress()
    with shown:
        shown.begin("training", 1000, "steps", waits=True)
        clock.now += 12  # workers start
        assert "starting, 12 s" in drawn(shown)[-1]
        shown.update(400, workers=2)
        for done in (410, 420):
            clock.now += 5
            shown.update(done, workers=2, note="loss 0.5")
    lines = printed.getvalue().splitlines()
    recorded(lines[0])
    assert " 4 min 50 s left" in lines[-1]


def test_plain_lines_come_seldom_and_not_before_work_starts():
    shown, clock, printed = a_progress()
    shown.begin("scoring", 10, "images", waits=True)
    for _ in range(5):
        clock.now += display.PLAIN_INTERVAL_SECONDS
        shown.tick(SessionSnapshot)
    assert printed.getvalue() == ""
    for done in range(1, 9):
        clock.now += display.PLAIN_INTERVAL_SECONDS / 4
        shown.update(done, workers=1)
    assert printed.getvalue().count("\n") == 2
    shown.end()


def test_a_plain_line_says_that_workers_compile():
    """Patch: no `doing` in the line, which says "0 of 4,000" for minutes."""
    session = Session()
    session.beat("w1", "sample/a/1", 0.0)
    session.beat("w0", "sample/a/0", 0.0, doing="compiling")
    assert ", 2 workers (1 compiling), " in session.progress.line
    session.beat("w1", "sample/a/1", 0.0, doing="compiling")
    assert ", 2 workers (compiling), " in session.progress.line
    session.beat("w0", "sample/a/0", 0.1)
    session.beat("w1", "sample/a/1", 0.1)
    assert "compiling" not in session.progress.line


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
from taugrid.orchestrator.dispatch.cluster import import_ray
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
    for number, cell in enumerate([*cells][:12]):
        session.beat(f"worker-{number}", f"sample/{cell}/0", 0.25)
        session.beat(f"worker-{number}", f"sample/{cell}/0", 0.5)
    lines = drawn(session.progress, width, height)
    assert len(lines) < height
    assert max(map(len, lines)) < width
    assert any("%" in line for line in lines)
