"""The exceptions that a user sees, and the exit codes."""

import errno
import re
from enum import IntEnum

from taugrid.words import with_urls


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REGRESSION = 3
    INCOMPLETE = 4
    INTERRUPTED = 130


class _Told(Exception):
    """An error whose text is for people: names of objects are URLs in it."""

    def __str__(self) -> str:
        return with_urls(super().__str__())


class UserError(_Told):
    """Wrong usage, config or input: one line with the fault, the value and the ways out. No traceback, exit 2."""


class NotHere(UserError):
    """A file that a config names is not on this machine (yet). A run needs it; a plan can do without it."""


class OtherWeights(UserError):
    """A file of weights is not the one that a plan, or a cell's images, were made with."""

    def __init__(self, what: str, way_out: str = "") -> None:
        super().__init__("; ".join(filter(None, [what, way_out])))
        self.way_out = way_out
        """What to do about it."""


class WorkerRefusal(UserError):
    """A node lacks what the driver has: it gets no work. The run ends if every node refuses.

    It travels from a worker by its type, so its constructor must take only the message.
    """


class RunDirectoryNotSeen(WorkerRefusal):
    """A node can't see the driver's run directory."""


class NotCommitted(WorkerRefusal):
    """A worker says that it committed a file that the driver does not see: its node has another folder there."""


class WrongWeights(WorkerRefusal):
    """The weights do not fit the network next to them. Every worker that opens them would fail in the same way."""


class OtherContent(WorkerRefusal):
    """A node holds other weights, data or code than the driver planned with, or none."""


class OtherVersions(WorkerRefusal):
    """A node has other versions of the software than the driver: its files could differ from those of other nodes."""


class DeviceUnusable(WorkerRefusal):
    """A worker can't compute on the device that it was given."""


class CustomCodeError(ValueError):
    """A user's network or extractor can't be used: one line that says why and what to change."""


class OtherBytes(_Told):
    """A file that only one content can have was made twice, and differs."""


class NotFinite(ValueError):
    """A network returned NaN or infinity. The same job gives the same again, so its cell fails without retries."""


class Stopped(Exception):
    """The driver ends, and a job is to end with what it can keep."""


class DoesNotFit(_Told):
    """A job does not fit into its worker's memory, even with nothing else there; the message says what would."""


class BrokenAccelerator(RuntimeError):
    """A process has met an error after which it can't use its accelerator any more: it must be replaced."""


class RunFailed(_Told):
    """A stage could not go on, and not because of a bug in the driver: one line, exit 1; `logs/` has the details."""


class DamagedFile(_Told):
    """A file whose content is not what it should be; the message says why."""


_SURROUNDINGS = frozenset(
    (
        *(errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY),
        *(errno.ENOSPC, errno.EDQUOT, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ENOLINK, errno.ESHUTDOWN),
        *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
        *(errno.EAGAIN, errno.EPROTO),
    )
)
"""Errors of disks, mounts, networks, permissions and exhausted resources: none of them is about a file's content."""

_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust, such as safetensors, quote an errno in errors of their own types."""

_ACCELERATOR = re.compile(
    r"\b(CUDA|HIP|cuDNN|MIOpen|NCCL|NVML)\b.{0,20}\berror|CUBLAS_STATUS_|CUDNN_STATUS_|CUSOLVER_STATUS_|Triton Error"
)
_OUT_OF_MEMORY = re.compile(
    r"out of memory|_ALLOC(ATION)?_FAILED|OutOfMemory|can't allocate memory|bad_alloc", re.IGNORECASE
)
"""cuBLAS says `_ALLOC_FAILED`, cuDNN since its version 9 `_DEVICE_ALLOCATION_FAILED`."""


def of_the_surroundings(error: BaseException) -> bool:
    """Whether a worker's error tells of its node (disk, mount, network, accelerator) and not of the task that met it.

    A `WorkerRefusal` is one: the node lacks what the driver has. Running out of memory is none: tasks differ in size.
    """
    if isinstance(error, WorkerRefusal | ConnectionError | TimeoutError):
        return True
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _SURROUNDINGS
    if (quoted := _RUST_ERRNO.search(text)) is not None:
        return int(quoted.group(1)) in _SURROUNDINGS
    return of_the_accelerator(error)


def of_the_accelerator(error: BaseException) -> bool:
    """Whether an error is an accelerator's, other than out of memory: its process can't use the accelerator any more.

    torch is not imported here, so its errors are known by the names of their types and by their texts. Nor is the error
    that this one came from looked at, because Ray does not pass it on: see `accelerators_fault`.
    """
    if isinstance(error, BrokenAccelerator):
        return True
    if of_memory(error):
        return False
    is_cudas = isinstance(error, RuntimeError) and _ACCELERATOR.search(str(error)) is not None
    return type(error).__name__ == "AcceleratorError" or is_cudas


def accelerators_fault(error: BaseException) -> BaseException | None:
    """The error of an accelerator (`of_the_accelerator`) that `error` is or came from, if any."""
    cause: BaseException | None = error
    while cause is not None:
        if of_the_accelerator(cause):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, an accelerator's or the machine's."""
    name = type(error).__name__
    return isinstance(error, MemoryError) or any(_OUT_OF_MEMORY.search(text) for text in (name, str(error)))


def last_line(error: BaseException) -> str:
    """The last non-empty line of an error's text (in a traceback, the error itself), or else the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
