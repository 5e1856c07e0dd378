"""Plants the mutants of tools/mutants.txt, one at a time, in copies of the tree, and prints which ones tests notice.

    python tools/mutants.py [WORD ...]      all mutants, or those with one of these words in file or text

A block of the list is a mutant: the file and the test files that should notice (`x`: tests/unit/test_x.py,
`integration/x`: tests/integration/test_x.py), then the old text behind `- ` and the new text behind `+ `, each of one
or more lines. The old text must be in the file exactly once. Tests run as `make test` runs them, without those marked
`long`; behind the test files, the word `long` says that only such a test notices the mutant, and runs them too.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT, LIST = Path(__file__).parents[1], Path(__file__).with_name("mutants.txt")
LEAST_KILLED = 0.9
ROOMS = {
    "taugrid/grids.py": "plan",
    "orchestrator/nightly": "nights",
    "eval/nights.py": "nights",
    "eval/gate": "nights",
}
"""Folder or file -> its room in the table, if that is not its folder's name."""

FAST = ("-m", "not long")
SPREAD = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--max-worker-restart", "1")
FITS = "tests/unit/test_architecture.py::test_the_mutants_fit_the_code"
"""It fails with every mutant, because the old text is gone."""
ALL = (*FAST, *SPREAD)  # what `make test` gives to pytest

KILLED = (1, 2)  # what pytest exits with after a failed test, and a test file that can't be imported


class Mutant(NamedTuple):
    """A small change that makes the code wrong, and the tests that should fail with it."""

    file: str
    tests: tuple[str, ...]
    is_long: bool
    old: str
    new: str

    @property
    def room(self) -> str:
        layer, place, *_ = self.file.split("/")
        return ROOMS.get(f"{layer}/{place}", layer if place.endswith(".py") else place)


class Outcome(NamedTuple):
    """What became of a mutant."""

    code: int  # pytest's: 0 is a survivor, one of `KILLED` is not, and others are no answer
    test: str
    seconds: float
    said: str


def read(text: str) -> list[Mutant]:
    """The mutants of a list."""
    found = []
    for block in text.strip().split("\n\n"):
        head, *lines = (line for line in block.splitlines() if not line.startswith("#"))
        file, words = head.split(": ")
        names = [name for name in words.split() if name != "long"]
        tests = tuple("tests/{}/test_{}.py".format(*["unit", *name.split("/")][-2:]) for name in names)
        old, new = ("\n".join(line[2:] for line in lines if line.startswith(sign)) for sign in ("- ", "+ "))
        found.append(Mutant(file, tests, "long" in words.split(), old, new))
    return found


def misfit(root: Path, mutant: Mutant) -> str:
    """Why a mutant does not fit a tree; empty if it does."""
    text = (root / mutant.file).read_text() if (root / mutant.file).is_file() else ""
    if (count := text.count(mutant.old)) != 1:
        return f"{mutant.file} has {mutant.old!r} {count} times, not once"
    if mutant.file.endswith(".py"):
        compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")  # one that can't be read proves nothing
    return next((f"there is no {test}" for test in mutant.tests if not (root / test).is_file()), "")


def copy_tree(target: Path, source: Path = ROOT) -> None:
    """Copy what git knows. Imports find all rooms below the copy's taugrid/, not the checkout's by its installation."""
    listed = subprocess.check_output(["git", "ls-files"], cwd=source, text=True).splitlines()
    for name in (name for name in listed if (source / name).exists() or (source / name).is_symlink()):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name, follow_symlinks=False)
    name = ["-c", "user.name=taugrid", "-c", "user.email=taugrid@localhost"]
    for words in (["init", "--quiet"], ["add", "--all"], [*name, "commit", "--quiet", "--message", "a copy"]):
        subprocess.run(["git", *words], cwd=target, check=True)  # tests in the copy read its commit, or copy it again


def run_tests(root: Path, options: Sequence[str]) -> Outcome:
    """Run tests of a copy until one fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--deselect", FITS, *options]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    began = time.monotonic()
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    test = failed[1] if failed else ""
    return Outcome(done.returncode, test, time.monotonic() - began, f"{done.stdout}{done.stderr}")


def plant(copies: "SimpleQueue[Path]", number: int, mutant: Mutant, tiers: Iterable[Sequence[str]]) -> Outcome:
    """Run tests of the next free copy with the mutant in it, tier by tier until one fails."""
    root = copies.get()
    path = root / mutant.file
    original, before = path.read_text(), path.stat()
    path.write_text(original.replace(mutant.old, mutant.new))
    os.utime(path, (number, number))  # Python compiles a file again only if its size or its second of writing differs
    try:
        for options in tiers:
            outcome = run_tests(root, options)
            if outcome.code in KILLED:
                break
        return outcome
    finally:
        path.write_text(original)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        copies.put(root)


def tell(outcomes: Iterable[tuple[Mutant, Outcome]], is_whole: bool) -> float:
    """Print what became of each mutant, and a table of rooms; returns the share that fast tests killed."""
    rooms: dict[str, Counter[str]] = {}
    for mutant, (code, test, seconds, said) in outcomes:
        fate = "killed" if code in KILLED else "NO ANSWER" if code else "SURVIVED"
        tier = "by long" if mutant.is_long and not is_whole else "by fast"
        rooms.setdefault(mutant.room, Counter())[tier if fate == "killed" else "survivors"] += 1
        by = test if code in (0, *KILLED) else f"pytest ended with {code}: {said[-300:]}"
        print(f"{fate:9}{seconds:4.0f} s ", mutant.file, "|", mutant.old, "->", mutant.new, "|", by, flush=True)
    every = sum(rooms.values(), Counter[str]())
    print(f"{'room':16}mutants   killed by fast   by long   survivors")
    for room, found in [*sorted(rooms.items()), ("all", every)]:
        print(f"{room:16}{found.total():7}{found['by fast']:17}{found['by long']:10}{found['survivors']:12}")
    return every["by fast"] / max(1, every.total())


def main() -> None:
    """Plant the mutants, print what became of each, and exit with 1 if fast tests miss too many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="plant only mutants with one of these words")
    parser.add_argument("--list", type=Path, default=LIST, help="another list")
    parser.add_argument("--tree", type=Path, default=ROOT, help="another checkout; what does not fit it is left out")
    parser.add_argument("--whole", type=int, metavar="N", help="draw N mutants: their own tests, then `make test`")
    parser.add_argument("--seed", type=int, default=0, help="of what --whole draws")
    given = parser.parse_args()
    chosen = []
    for mutant in read(given.list.read_text()):
        if reason := misfit(given.tree, mutant):
            if given.tree == ROOT:
                sys.exit(f"{given.list.name}: {reason}; correct the list")
            print("left out", mutant.file, "|", mutant.old, "->", mutant.new, "|", reason)
        elif not given.words or any(word in f"{mutant.file}\n{mutant.old}\n{mutant.new}" for word in given.words):
            chosen.append(mutant)
    if given.whole:
        chosen = random.Random(given.seed).sample(chosen, given.whole)
    tests = {m: [m.tests if m.is_long and not given.whole else (*FAST, *m.tests)] for m in chosen}
    for tiers in tests.values() if given.whole else ():
        tiers.append(ALL)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(2) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for name in ("one",) if given.whole else ("one", "two"):
            copy_tree(Path(folder, name), given.tree)
            copies.put(Path(folder, name))
        for tier in (FAST, ()) if not given.whole else ():
            files = sorted({file for m in chosen if m.is_long == (tier != FAST) for file in m.tests})
            if files and (before := run_tests(Path(folder, "one"), (*tier, *SPREAD, *files))).code:
                sys.exit(f"{before.said}\nwithout a mutant, pytest ends with {before.code}, so nothing can be said")
        found = {pool.submit(plant, copies, n, mutant, tests[mutant]): mutant for n, mutant in enumerate(chosen, 1)}
        try:
            killed = tell(((found[future], future.result()) for future in as_completed(found)), bool(given.whole))
        finally:
            pool.shutdown(cancel_futures=True)
    sys.exit(killed < LEAST_KILLED)


if __name__ == "__main__":
    main()
