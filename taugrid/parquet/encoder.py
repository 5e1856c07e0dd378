"""Encodes small images in a process of its own, where a network's launches need this one's Python."""

import os
import pickle
import subprocess
import sys
import threading

import numpy as np
from numpy.typing import NDArray

SERVE = "from taugrid.images import serve_encoding; serve_encoding()"


class EncodingProcess:
    """A process that encodes images as PNG. It starts with the first ones, imports no torch, and ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, images: NDArray[np.uint8]) -> list[bytes]:
        """The PNG bytes of a (B, C, H, W) batch. Threads take turns.

        Raises:
            BrokenPipeError: if the process is gone. The next call starts another.
        """
        with self._lock:
            try:
                answer = self._ask(images)
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                self.close()
                raise BrokenPipeError("the process that encodes images is gone, perhaps for lack of memory") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ask(self, images: NDArray[np.uint8]) -> list[bytes] | Exception:
        if self._process is None:
            path = os.pathsep.join(filter(None, sys.path))  # of a worker whose taugrid was sent to it, too
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(images, self._process.stdin, protocol=5)
        self._process.stdin.flush()
        answer: list[bytes] | Exception = pickle.load(self._process.stdout)
        return answer

    @property
    def pid(self) -> int | None:
        """The number of the process, if there is one."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the process, if there is one."""
        if (process := self._process) is not None:
            self._process = None
            process.kill()
            process.communicate()


encode_elsewhere = EncodingProcess()
"""This process's only one."""
