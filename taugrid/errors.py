"""The exceptions that a user sees, and the exit codes."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from taugrid.words import with_urls


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REGRESSION = 3
    INCOMPLETE = 4
    NOT_JUDGED = 5
    INTERRUPTED = 130


class _Message(Exception):
    """An error whose text is shown to the user, with objects in a store as URLs."""

    def __str__(self) -> str:
        return with_urls(super().__str__())


class UserError(_Message):
    """Wrong usage, config or input: one line with the fault, the value and what to do. No traceback, exit 2."""


class MissingInput(UserError):
    """A file that a config names is not on this machine (yet). A run needs it; a plan can do without it."""


class WeightsChanged(UserError):
    """A file of weights is not the one that a plan, or a cell's images, were made with."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__("; ".join(filter(None, [what, fix])))
        self.fix = fix
        """How to fix it."""


class WorkerRefusal(UserError):
    """A node lacks what the driver has, such as its run directory, versions, weights, data or code, or has no device
    that computes: it gets no work. The run ends if every node refuses. It travels from a worker by its type, so its
    constructor must take only the message."""


class NotCommitted(WorkerRefusal):
    """A worker committed a file that the driver does not find: the worker's node has a different folder at the path."""


class CustomCodeError(ValueError):
    """A user's network or extractor can't be used: one line that says why and what to change."""


class FileConflict(_Message):
    """Another worker committed the file first, with other bytes than those made here, and no device explains it."""


class NotFinite(ValueError):
    """A network returned NaN or infinity. The same job gives the same again, so its cell fails without retries."""


class SamplerFault(ValueError):
    """A sampler did not do what it promised. The same job gives the same again, so its cell fails without retries."""


class Stopped(Exception):
    """Raised in a job that must end now, with what it can keep, because the driver ends."""


class DoesNotFit(_Message):
    """A job does not fit into its worker's memory, even with empty caches; the message says what to change."""


class BrokenAccelerator(RuntimeError):
    """A process has met an error after which it can't use its accelerator any more: it must be replaced."""


class RunFailed(_Message):
    """A stage could not go on, and not because of a bug in the driver: one line, exit 1; `logs/` has the details."""


class DamagedFile(_Message):
    """A file with wrong content; the message says why."""


# Classes of errno

TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

TRANSIENT = TOO_MANY_FILES | {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EHOSTDOWN}
"""Errors that may pass within seconds, of network file systems or of a process with many open files."""

FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})  # met again, until the user changes something

NOT_WRITABLE = FORBIDDEN | {errno.ENOTDIR, errno.EEXIST, errno.ENOENT}  # another folder may not have it

UNUSABLE = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.ESPIPE})
"""Errors of a path that can't be used, whatever is on the disk: its name is too long, its links go in a circle or out
of a run directory, it is too large to be read, or it is a pipe."""

_CONNECTION = {errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ENOLINK, errno.ESHUTDOWN, errno.EPROTO}
_NETWORK = {errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET}

ENVIRONMENT = TRANSIENT | FULL | FORBIDDEN | _CONNECTION | _NETWORK  # none is about a file's content


class StoreError(OSError):
    """A failed request to an object store. Its text says what is wrong and what to do; its file is a URL."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of reading or writing the file's name if it has none: those of open files do not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def is_of_content(error: OSError) -> bool:
    """Whether the bytes are wrong, and not the reading: Arrow raises errors without a number for those."""
    return error.errno in (None, errno.EISDIR, errno.EINVAL)


def in_one_line(error: OSError) -> str:
    """One line with the failure, the file and what to do."""
    file, again = error.filename or "a file", "run the same command again"
    if isinstance(error, IsADirectoryError):  # of a rename, the second is in the way
        return f"{error.filename2 or file} is a folder, but a file belongs there; move it away, then {again}"
    if isinstance(error, FileNotFoundError):
        return f"there is no {file} any more; put it back, then {again}"
    if isinstance(error, StoreError):
        return f"can't read or write {file}: {error.strerror}; then {again}"
    if error.errno in FULL:
        return f"the disk is full: can't write {file}; free some space and {again}"
    fix = f"make it readable and writable, then {again}" if error.errno in FORBIDDEN else again
    return f"can't read or write {file}: {os.strerror(error.errno or 0)}; no file counts as damaged for this; {fix}"


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn an error of the disk into `RunFailed`: it is not a bug, and the user can do something about it. A path that
    can't exist is a `UserError`. A named file that is not found is such an error: commands look for what they need when
    they begin, so it has vanished since. And so is a folder that has the name of a file."""
    try:
        yield
    except OSError as error:
        if error.errno in UNUSABLE:
            text = f"{error.filename or 'a path'} can't be used: {error.strerror}; give a different one"
            raise UserError(text) from None
        of_name = isinstance(error, FileNotFoundError | IsADirectoryError) and error.filename is not None
        if error.errno is None or not (of_name or is_environment_error(error)):
            raise
        raise RunFailed(in_one_line(error)) from error


# Whose fault an error is

_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")  # in errors of libraries in Rust, such as safetensors

_ACCELERATOR = re.compile(
    r"\b(CUDA|HIP|cuDNN|MIOpen|NCCL|NVML)\b(?! Frontend).{0,20}\berror|CUBLAS_STATUS_|CUDNN_STATUS_|CUSOLVER_STATUS_"
    r"|Triton Error"
)
_OUT_OF_MEMORY = re.compile(
    r"out[ _]of[ _]memory|OutOfMemory|(can't|cannot) allocate memory|not enough memory|memory not available|bad_alloc"
    r"|_?ALLOC(ATION)?_?FAILED|failed to allocate (memory|workspace)|(memory|workspace) allocation failed"
    r"|Invalid buffer size: [\d.]+ [KMGTP]i?B"
    r"|NVML_SUCCESS == .{0,80}INTERNAL ASSERT FAILED at .{0,80}CUDACachingAllocator",
    re.IGNORECASE,
)
_PERHAPS_OUT_OF_MEMORY = re.compile(
    r"unable to find an engine to execute this computation|Unable to find a valid cuDNN algorithm"
    r"|(CUBLAS|HIPBLAS|CUDNN)_STATUS_NOT_INITIALIZED|miopenStatus(Unknown|Internal)Error"
)
"""Texts that lack of memory hides behind, and other faults too: torch drops each engine of cuDNN that raises, handles
of cuBLAS and cuDNN need memory outside of torch's, and MIOpen has one status for everything unexpected.
tests/unit/test_memory_texts.py names the source of each text here and above."""

_TORCHS_ADVICE = re.compile(
    r"Search for `|(CUDA|HIP) kernel errors might|For (debugging|more detailed error)|Compile with `TORCH_|"
    r"Device-side assertion|GPU device may be out of range|Set TORCH(DYNAMO_VERBOSE|_LOGS)"
)
"""How the lines begin that torch adds to each error of CUDA (c10/cuda/CUDAMiscFunctions.cpp, CUDAException.cpp), and of
its compiler (torch/_dynamo/exc.py)."""


def is_environment_error(error: BaseException) -> bool:
    """Whether a worker's error is its node's fault (disk, mount, network, accelerator) and not the task's. A
    `WorkerRefusal` is one: the node lacks what the driver has. Being out of memory is not: tasks differ in size."""
    if isinstance(error, WorkerRefusal | ConnectionError | TimeoutError):
        return True
    quoted = _RUST_ERRNO.search(str(error))
    number = error.errno if isinstance(error, OSError) else None
    if number is None and quoted is not None:
        number = int(quoted[1])
    return is_accelerator_error(error) if number is None else number in ENVIRONMENT


def is_accelerator_error(error: BaseException) -> bool:
    """Whether an error is an accelerator's, other than out of memory: its process can't use the accelerator any more.
    torch is not imported here, so its errors are recognised by the names of their types and by their texts. Those of
    which memory is only one cause count: a caller that can make its job smaller asks `is_out_of_memory` first. Causes
    are not checked: see `accelerator_error_in`."""
    if isinstance(error, BrokenAccelerator):
        return True
    is_cudas = isinstance(error, RuntimeError) and _ACCELERATOR.search(str(error)) is not None
    return (is_cudas or type(error).__name__ == "AcceleratorError") and not _is_surely_out_of_memory(error)


def accelerator_error_in(error: BaseException) -> BaseException | None:
    """The error of an accelerator (`is_accelerator_error`) that `error` is or came from, if any."""
    cause: BaseException | None = error
    while cause is not None and not is_accelerator_error(cause):
        cause = cause.__cause__ or cause.__context__
    return cause


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that an accelerator's or the machine's memory is used up, or often means it and can mean
    something else (`_PERHAPS_OUT_OF_MEMORY`), such as a type that the device lacks."""
    is_perhaps = isinstance(error, RuntimeError) and _PERHAPS_OUT_OF_MEMORY.search(str(error)) is not None
    return is_perhaps or _is_surely_out_of_memory(error)


def _is_surely_out_of_memory(error: BaseException) -> bool:
    said = f"{type(error).__name__} {error}"
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(said) is not None


def joined_lines(error: BaseException) -> str:
    """An error's text without line breaks."""
    return " ".join(str(error).split())


def last_line(error: BaseException) -> str:
    """The last non-empty line of an error's text (in a traceback, the error itself), or else the error's type. Lines of
    general advice that torch adds to errors of CUDA and of its compiler do not count."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not _TORCHS_ADVICE.match(line)] or lines
    return said[-1] if said else type(error).__name__
