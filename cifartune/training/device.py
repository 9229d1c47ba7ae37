"""Which device trains, and in which arithmetic."""

import resource
import sys

import torch


def choose_device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(wanted: str, device: torch.device) -> str:
    """`fp32` or `bf16`: `wanted`, or for `auto` bf16 where the device computes it natively.

    On a CPU without AVX-512 or AMX bf16, emulated bf16 would be slower than fp32.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _cpu_has_bf16() else "fp32"


def most_memory(device: torch.device) -> int:
    """The most bytes that this process ever used: of the GPU, or else of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cpu_has_bf16() -> bool:
    # torch keeps these two behind an underscore, but has no public name for either.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)
