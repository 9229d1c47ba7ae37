"""Which device trains, and how a network is computed there."""

import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch

from cifartune.config.recipe import Recipe


def choose_device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


AUTOMATIC = ("precision", "memory_format", "compile", "micro_batch")
"""The recipe's fields that say how a network is computed, and may be left open: `auto`, or 0."""

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}

MEMORY_FORMATS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}


def resolve(recipe: Recipe, device: torch.device) -> Recipe:
    """`recipe` with what is fast on `device` in most cases where it says `auto`."""
    precision = choose_precision(recipe.precision, device)
    usual = {"precision": precision, "memory_format": "channels_last", "compile": "never"}
    return settle(recipe, usual)


def settle(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """`recipe` with those of `values` that it leaves open."""
    left = {name: value for name, value in values.items() if getattr(recipe, name) in ("auto", 0)}
    return recipe.with_values(left) if left else recipe


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Has networks computed in `precision`, where that is safe."""
    dtype = HALF.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def choose_precision(wanted: str, device: torch.device) -> str:
    """`wanted`, or for `auto` bf16 where the device computes it natively.

    A GPU without, but with fp16, has that; on a CPU without AVX-512 or AMX bf16, emulated bf16
    would be slower than fp32.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        has_fp16 = torch.cuda.get_device_capability(device) >= (7, 0)  # with tensor cores
        return "fp16" if has_fp16 else "fp32"
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
