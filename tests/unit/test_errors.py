"""Whose fault an error on a worker is: the task's, or its surroundings'."""

import errno
import os
import pickle

import pytest

from taugrid.errors import (
    TRANSIENT,
    DamagedFile,
    WorkerRefusal,
    accelerator_error_in,
    is_environment_error,
)


class AcceleratorError(RuntimeError):
    """As torch names it."""


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class SafetensorError(Exception):
    pass


CUDA = "CUDA error: an illegal memory access was encountered"

SURROUNDINGS = [
    *(OSError(number, os.strerror(number)) for number in (errno.EIO, errno.ESTALE, errno.EMFILE, errno.EROFS)),
    *(OSError(number, os.strerror(number)) for number in (errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.ETIMEDOUT)),
    TimeoutError("timed out"), ConnectionResetError("reset"), WorkerRefusal("node n does not see d"),
    WorkerRefusal("other weights"), AcceleratorError("device unavailable"), RuntimeError(CUDA),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    SafetensorError("Error while reading: Input/output error (os error 5)"),
]  # fmt: skip

THE_TASKS = [
    FileNotFoundError(errno.ENOENT, "no such file"), IsADirectoryError(errno.EISDIR, "a folder"), MemoryError(),
    OSError("not a Parquet file"), DamagedFile("its seal is broken"), SafetensorError("No such file (os error 2)"),
    ValueError("CUDA error in the name of a cell"), RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
]  # fmt: skip


@pytest.mark.parametrize("error", SURROUNDINGS, ids=repr)
def test_disks_mounts_networks_accelerators_and_refusals_are_the_nodes_fault(error):
    assert is_environment_error(error)
    assert is_environment_error(pickle.loads(pickle.dumps(error))), "it travels from the worker to the driver"


@pytest.mark.parametrize("error", THE_TASKS, ids=repr)
def test_content_memory_and_bugs_are_the_tasks_fault(error):
    assert not is_environment_error(error)


def test_whatever_is_tried_again_is_the_surroundings_fault():
    assert {code for code in TRANSIENT if not is_environment_error(OSError(code, os.strerror(code)))} == set()


def test_what_pyarrow_and_torch_raise_at_a_disk_that_fails_is_understood():
    """Linux gives EIO for reads of a process's memory at address 0: a read error without a broken disk."""
    import pyarrow

    with pytest.raises(OSError) as error, pyarrow.OSFile("/proc/self/mem") as file:
        file.read_at(16, 0)
    assert is_environment_error(error.value)


def test_an_accelerators_fault_is_found_behind_an_error_that_was_raised_while_it_was_handled():
    fault = AcceleratorError("CUDA error: unspecified launch failure")
    later = KeyError("x")
    later.__context__ = fault
    assert accelerator_error_in(later) is fault
