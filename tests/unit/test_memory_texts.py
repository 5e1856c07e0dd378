"""Each way in which torch and its libraries say "no memory", with the source of its text.

Defect 3: put back by deleting `_PERHAPS_OUT_OF_MEMORY` from taugrid/errors.py.
"""

import errno
import os

import pytest
from cards import NO_ENGINE, STICKY, AcceleratorError, OutOfMemoryError

from taugrid.errors import is_accelerator_error, is_environment_error, is_out_of_memory

SURELY = {
    "c10/cuda/CUDACachingAllocator.cpp": OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "the same on ROCm, whose sources are made from CUDA's": OutOfMemoryError("HIP out of memory. Tried to allocate"),
    "cudnn/Conv_v8.cpp, a workspace of over 1 TiB": OutOfMemoryError("Not enough memory for workspace!"),
    "aten/src/ATen/mps/MPSAllocator.mm": RuntimeError("MPS backend out of memory (MPS allocated: 7.64 GiB, ...)"),
    "Metal's largest buffer, which the same allocator reports": RuntimeError("Invalid buffer size: 9.02 GB"),
    "what CUDA's allocator says of a full card where NVML fails (MIG, a new driver); pytorch#112377": RuntimeError(
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":1154, please report a'
    ),
    "the same, where NVML can't start": RuntimeError(
        "NVML_SUCCESS == DriverAPI::get()->nvmlInit_v2_() INTERNAL ASSERT FAILED at "
        '"../c10/cuda/CUDACachingAllocator.cpp":963, please report a bug to PyTorch.'
    ),
    "cuda.h's name of it, in CuPy and Numba": RuntimeError("Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY"),
    "C10_CUDA_CHECK of cudaErrorMemoryAllocation": AcceleratorError("CUDA error: out of memory"),
    "C10_CUDA_CHECK of hipErrorOutOfMemory": AcceleratorError("HIP error: out of memory"),
    "aten/src/ATen/cuda/Exceptions.h, TORCH_CUDABLAS_CHECK": RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "the same on ROCm": RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    "aten/src/ATen/cuda/Exceptions.h, TORCH_CUSOLVER_CHECK": RuntimeError(
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"
    ),
    "cuDNN 8": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9, cudnnGetErrorString": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cuDNN 9, of the host": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    "aten/src/ATen/miopen/Exceptions.h, MIOPEN_CHECK": RuntimeError("miopenStatusAllocFailed"),
    "MIOpen through hipDNN": RuntimeError("hipDNN workspace allocation failed"),
    "MIOpen, src/hip/handlehip.cpp": RuntimeError("Memory not available to allocate buffer: 655360000"),
    "Triton's driver.c: Triton Error [CUDA]": RuntimeError("Triton Error [CUDA]: out of memory"),
    "NCCL, quoted by torch/csrc/distributed/c10d/NCCLUtils.cpp": RuntimeError(
        "NCCL error in: NCCLUtils.cpp:77, unhandled cuda error (run with NCCL_DEBUG=INFO for details)\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
    ),
    "torch._inductor.exc.InductorError": RuntimeError("InductorError: OutOfMemoryError: CUDA out of memory. Tried"),
    "c10/core/impl/alloc_cpu.cpp": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    "c10/core/impl/alloc_cpu.cpp, on Windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to"),
    "C++": RuntimeError("std::bad_alloc"),
    "Python, and NumPy's subclass": MemoryError("Unable to allocate 105. MiB for an array"),
    "the kernel": OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
}

PERHAPS = {
    "Conv_v8.cpp, run_single_conv; pytorch#108645": RuntimeError(NO_ENGINE),
    "Conv_v8.cpp, try_plans": RuntimeError("FIND was unable to find an engine to execute this computation"),
    "Conv_v7.cpp; XPixelGroup/DiffBIR#59": RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    "cublasCreate; EleutherAI/lm-evaluation-harness#1689": RuntimeError(
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
    ),
    "hipblasCreate": RuntimeError("CUDA error: HIPBLAS_STATUS_NOT_INITIALIZED when calling `hipblasCreate(handle)`"),
    "cudnnCreate; haotian-liu/LLaVA#392": RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    "MIOpen's status for all that is unexpected; ROCm/MIOpen#47": RuntimeError("miopenStatusUnknownError"),
}

NOT_AT_ALL = {
    "CUDA, sticky": AcceleratorError(STICKY),
    "Triton's shared memory, which no smaller batch changes": RuntimeError(
        "out of resource: shared memory, Required: 262144, Hardware limit: 232448. Reducing block sizes or `num_stages`"
    ),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "ECC": AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    "expandable segments where NVML is broken": RuntimeError(
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/PeerToPeerAccess.cpp":61, please report a bug'
    ),
    "another resource": ValueError("failed to allocate a port"),
    "a bug": RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    "a text that only quotes one": ValueError(NO_ENGINE),
}


@pytest.mark.parametrize("error", SURELY.values(), ids=SURELY)
def test_what_surely_means_that_memory_is_used_up(error):
    assert is_out_of_memory(error)
    assert not is_accelerator_error(error), "the process can go on"
    assert not is_environment_error(error), "tasks differ in size"


@pytest.mark.parametrize("error", PERHAPS.values(), ids=PERHAPS)
def test_what_lack_of_memory_hides_behind_and_other_faults_too(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", NOT_AT_ALL.values(), ids=NOT_AT_ALL)
def test_what_is_not_about_memory(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("words", ["No execution plans support the graph.", "No valid execution plans built"])
def test_a_graph_that_cudnn_can_not_build_is_no_broken_card(words):
    """Nothing was launched, and another call works (diffusers#9704). Patch: `_ACCELERATOR` without `(?! Frontend)`."""
    error = RuntimeError(f"cuDNN Frontend error: [cudnn_frontend] Error: {words}")
    assert not is_accelerator_error(error)
    assert not is_out_of_memory(error)
    assert is_accelerator_error(NOT_AT_ALL["cuDNN"])
