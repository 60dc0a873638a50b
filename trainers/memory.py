"""Memory that runs out ends in a sentence that names the setting to change, on a GPU as on a CPU."""

import ctypes
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from configs.errors import InputError

# mallopt(3): the GNU C library's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, in bytes; usual is where it ends up by itself.
TRIM, MMAP = -1, -3
KEEP, USUAL = {TRIM: 2**31 - 1, MMAP: 2**30}, {TRIM: 64 * 2**20, MMAP: 32 * 2**20}
# Of torch's allocators (CUDA, MPS, CPU) and of the libraries that allocate for themselves.
WORDS = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")


class OutOfMemory(InputError):
    """A batch does not fit in memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is an allocation that failed: only CUDA's has a type of its own.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."))
    True
    >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)


@contextmanager
def told(what: str, remedy: str) -> Iterator[None]:
    """Turn an allocation that fails in the block into OutOfMemory: what was being done, and what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = textwrap.shorten(str(error), 160, placeholder=" ...") or "no more could be allocated"
        raise OutOfMemory(f"{what}: memory ran out ({reason}); {remedy}") from error


@contextmanager
def keeping_freed() -> Iterator[None]:
    """Let the process keep the memory that it frees, for forward passes on a CPU; afterwards it is given back.

    The GNU C library returns every block of more than 32 MB to the system and gets it anew, cleared page by page: half
    of the time of a network whose activations are that large. Elsewhere nothing changes.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    try:
        for parameter, value in KEEP.items():
            libc.mallopt(parameter, value)
        yield
    finally:
        for parameter, value in USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)
