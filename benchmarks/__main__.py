"""Runs the benchmarks whose figures RESULTS.md has, and writes what each printed into its section there.

    python -m benchmarks [NAME ...] [--results FILE]

Without names it runs all, which takes hours. A benchmark that fails leaves its section as it is, the others go on, and
the exit code is 1.
"""

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

COMMANDS: dict[str, Sequence[str]] = {
    "overhead": (),
    "evaluation": (),
    "gate": (),
    "scale": (),
    "restart": (),
    "buckets": (),
    "grids": (),
    "ray_data": ("--short", "--only", "a1,d1,d2,f"),
    "device": (),
}
"""Benchmark -> its options."""

RESULTS = Path(__file__).with_name("RESULTS.md")
TITLE = """# Results

Each section is what one command printed. `make bench` runs them all, `make bench ONLY="restart grids"` some; each
replaces its section. A benchmark without a section has not been run since this page began.
"""


def machine() -> str:
    """Cores, CPU model, and how many processes wanted a core in the last minute."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists() and (named := re.search(r"model name\s*: (.*)", information.read_text())):
        model = named[1]
    return f"{os.cpu_count()} cores ({model}), load {os.getloadavg()[0]:.1f}"


def output_of(name: str) -> str | None:
    """What a benchmark prints, which is also printed here; None if it fails."""
    lines = []
    with subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{name}", *COMMANDS[name]], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return "".join(lines) if process.returncode == 0 else None


def section(name: str, where: str, output: str) -> str:
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *COMMANDS[name]])
    return f"## {name}\n\n`{command}`, {time.strftime('%Y-%m-%d')}, {where}:\n\n```text\n{output.rstrip()}\n```\n"


def write(results: Path, name: str, new: str) -> None:
    """Put a benchmark's section in place of its old one; sections are in the order of `COMMANDS`."""
    page = results.read_text() if results.exists() else TITLE
    parts = re.split(r"^## ", page, flags=re.M)[1:]
    sections = {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in parts}
    sections[name] = new
    ordered = [sections[each] for each in COMMANDS if each in sections]
    results.write_text("\n".join([TITLE, *ordered]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all if none is named: {', '.join(COMMANDS)}")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - COMMANDS.keys()):
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(COMMANDS)}")
    failed = []
    for name in arguments.names or COMMANDS:
        print(f"== {name}", flush=True)
        where = machine()
        output = output_of(name)
        if output is None:
            failed.append(name)
        else:
            write(arguments.results, name, section(name, where, output))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
