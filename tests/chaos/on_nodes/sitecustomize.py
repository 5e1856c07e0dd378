"""Makes calls of the file system fail on one node, as a bad disk or a full table of files would.

Every Python process of a cluster imports this file, because its folder is on PYTHONPATH. In the folder TG_FAULTS there
is a file for each node (TG_NODE) with its faults, so that a test can plant them and take them away in mid-run. A line
is `EVENT PATTERN EFFECT`. EVENT is an audit event of Python (`open`, `os.link`), and PATTERN a regular expression for
its path, which lies in TG_SHARED. EFFECT is an errno's name, `KILL` for this process, or seconds to sleep.

TG_CLOCK is how many seconds a node's `time.time` is ahead; libfaketime ends Ray's actors with concurrency groups.
"""

import errno
import os
import re
import signal
import sys
import time
from pathlib import Path

EVENTS = ("open", "os.link")
NODE, FAULTS, SHARED = (os.environ.get(name, "") for name in ("TG_NODE", "TG_FAULTS", "TG_SHARED"))


def faults() -> list[list[str]]:
    try:
        return [line.split() for line in Path(FAULTS, NODE).read_text().splitlines()]
    except FileNotFoundError:
        return []


def hook(event: str, arguments: tuple[object, ...]) -> None:
    if event not in EVENTS or not isinstance(arguments[0], (str, bytes, os.PathLike)):
        return
    path = os.fsdecode(arguments[0])
    if not path.startswith(SHARED):
        return
    for of, pattern, effect in faults():
        if of == event and re.search(pattern, path):
            if effect == "KILL":
                os.kill(os.getpid(), signal.SIGKILL)
            elif effect.startswith("E"):
                number = getattr(errno, effect)
                raise OSError(number, os.strerror(number), path)
            else:
                time.sleep(float(effect))


if NODE and FAULTS and SHARED:
    sys.addaudithook(hook)

right = time.time
if ahead := float(os.environ.get("TG_CLOCK", "0")):
    time.time = lambda: right() + ahead
