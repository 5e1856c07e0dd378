"""Plants the mutants of tools/mutants.txt, one at a time, in a copy of the tree, and prints which ones tests notice.

    python tools/mutants.py [WORD ...]      all mutants, or those with one of these words in file or text

A block of the list is a mutant: the file and the test files of tests/unit that should notice, then the old text behind
`- ` and the new text behind `+ `, each of one or more lines. The old text must be in the file exactly once.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LEAST_KILLED = 0.9


class Mutant(NamedTuple):
    """A small change that makes the code wrong, and the tests that should fail with it."""

    file: str
    tests: tuple[str, ...]
    old: str
    new: str


def read(text: str) -> list[Mutant]:
    """The mutants of a list."""
    found = []
    for block in text.strip().split("\n\n"):
        head, *lines = (line for line in block.splitlines() if not line.startswith("#"))
        file, tests = head.split(": ")
        old, new = ("\n".join(line[2:] for line in lines if line.startswith(sign)) for sign in ("- ", "+ "))
        found.append(Mutant(file, tuple(f"tests/unit/test_{name}.py" for name in tests.split()), old, new))
    return found


def planted(root: Path, mutant: Mutant) -> str:
    """The text of the mutant's file with the mutant in it; exits if it no longer fits the tree."""
    text = (root / mutant.file).read_text() if (root / mutant.file).is_file() else ""
    if (count := text.count(mutant.old)) != 1:
        sys.exit(f"mutants.txt: {mutant.file} has {mutant.old!r} {count} times, not once; correct the list")
    if absent := [test for test in mutant.tests if not (root / test).is_file()]:
        sys.exit(f"mutants.txt: there is no {absent[0]}; correct the list")
    return text.replace(mutant.old, mutant.new)


def copy_tree(target: Path) -> None:
    """Copy what git knows. Imports find all rooms below the copy's taugrid/, not the checkout's by its installation."""
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    name = ["-c", "user.name=taugrid", "-c", "user.email=taugrid@localhost"]
    for words in (["init", "--quiet"], ["add", "--all"], [*name, "commit", "--quiet", "--message", "a copy"]):
        subprocess.run(["git", *words], cwd=target, check=True)  # tests in the copy read its commit, or copy it again


def run_tests(root: Path, tests: Sequence[str], most: int) -> int:
    """Run test files of the copy until one fails; returns pytest's exit code. Exits if that is above `most`."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode > most:
        sys.exit(f"{done.stdout}{done.stderr}\npytest ended with {done.returncode}, so nothing can be said")
    return done.returncode


def is_killed(root: Path, number: int, mutant: Mutant) -> bool:
    """Whether a test fails with the mutant; exits if the tests could not even be run."""
    path = root / mutant.file
    original, before = path.read_text(), path.stat()
    path.write_text(planted(root, mutant))
    os.utime(path, (number, number))  # Python compiles a file again only if its size or its second of writing differs
    try:
        return run_tests(root, mutant.tests, most=1) == 1
    finally:
        path.write_text(original)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def main() -> None:
    """Plant the mutants, print what became of each, and exit with 1 if too many survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="plant only mutants with one of these words")
    words = parser.parse_args().words
    mutants = read(Path(__file__).with_name("mutants.txt").read_text())
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        root = Path(folder)
        copy_tree(root)
        for mutant in mutants:
            planted(root, mutant)
        chosen = [m for m in mutants if not words or any(word in f"{m.file}\n{m.old}\n{m.new}" for word in words)]
        run_tests(root, sorted({test for mutant in chosen for test in mutant.tests}), most=0)
        survivors = 0
        for number, mutant in enumerate(chosen, 1):
            killed = is_killed(root, number, mutant)
            survivors += not killed
            print("killed  " if killed else "SURVIVED", mutant.file, "|", mutant.old, "->", mutant.new, flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} killed")
    sys.exit(len(chosen) - survivors < LEAST_KILLED * len(chosen))


if __name__ == "__main__":
    main()
