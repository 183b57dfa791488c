"""Devices and number formats: which a name means, and whether a machine is fast at bfloat16."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from t2i.core.choices import dtype_name
from t2i.core.errors import OutOfMemoryError, UsageError, lacks_memory, quoted


def fast_bfloat16(device: torch.device) -> bool:
    """True for GPUs with bfloat16 units and for CPUs with AVX-512 BF16 or AMX instructions."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
        return bool((check and check()) or (tiles and tiles()))
    return False


def device_of(device: str | torch.device) -> torch.device:
    """A device that works on this machine; "auto" is a GPU if there is one. Raises UsageError, and OutOfMemoryError for
    a GPU that is full."""
    if not isinstance(device, str | torch.device):
        raise UsageError(f"a device is a name such as 'cpu', or a torch.device, got {quoted(device)}")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with memory_explained(f"device {str(device)!r}", "another one"):
            torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError, ValueError):  # unknown, not compiled in, no memory of its own
        there = "auto, cpu or cuda" if torch.cuda.is_available() else "auto or cpu"
        raise UsageError(f"torch has no device {quoted(str(device))} on this machine; use {there}") from None
    return torch.device(device)


def dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    """A dtype by name; "auto" is float32. Raises UsageError."""
    name = dtype_name(dtype)
    return torch.float32 if name == "auto" else getattr(torch, name)


def stored_as(dtype: str | torch.dtype) -> torch.dtype:
    """A dtype of stored weights by name. Raises UsageError."""
    found: torch.dtype = getattr(torch, dtype_name(dtype, stored=True))
    return found


def machine_memory() -> int:
    """Bytes of memory that this machine has; where the system does not say, as many as few have."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 2**40


@contextmanager
def memory_explained(what: str, instead: str) -> Iterator[None]:
    """Turn a lack of memory, of a GPU's or of the machine's, into OutOfMemoryError: `what` needed it, and what to try
    `instead`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        asked = re.search(r"allocate ([\d.]+ ?(?:[KMGT]iB|bytes))", str(error))
        size = f" ({asked[1]} more were asked for)" if asked else ""
        raise OutOfMemoryError(f"{what} needs more memory than there is{size}: try {instead}") from error
