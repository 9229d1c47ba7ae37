"""Weights from a file, in the place of those that were drawn."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cifartune.models.errors import UnfitNetwork
from cifartune.models.network import head_layers

WRAPPERS = ("state_dict", "network", "model")
"""Under which keys a checkpoint may keep the weights."""


def find_weights(path: str) -> Path:
    """The file at `path`.

    Raises:
        UnfitNetwork: There is none.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UnfitNetwork(f"model.weights: there is no file {file}")
    return file


def load_weights(network: nn.Module, path: str) -> None:
    """Reads the weights of `network` from a safetensors file or a weights-only checkpoint.

    Names may begin with `network.` or `module.`, as in what `save_classifier` and torch's
    parallel training write. The head and the first convolution stay as they are
    where the file has none or one of another shape; all else must be there.

    Raises:
        UnfitNetwork: There is no such file, it cannot be read, or its weights are another
            network's.
    """
    file = find_weights(path)
    try:
        found = _read(file)
    except Exception as error:  # safetensors, pickle and zip have an error each
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnfitNetwork(f"model.weights: {file} cannot be read ({reason})") from error
    own = network.state_dict()
    fitting = {
        name: value
        for name, value in found.items()
        if name in own and value.shape == own[name].shape
    }
    strange = sorted(own.keys() - fitting.keys() - _renewed(network, own))
    if strange:
        problem = "has another shape" if strange[0] in found else "is missing"
        raise UnfitNetwork(
            f"model.weights: {file} does not fit {type(network).__name__}: {strange[0]} {problem}"
            + (f", and {len(strange) - 1} more" if len(strange) > 1 else "")
        )
    network.load_state_dict(fitting, strict=False)


def _read(file: Path) -> dict[str, Tensor]:
    tree: Any
    if file.suffix == ".safetensors":
        tree = load_file(file)
    else:
        tree = torch.load(file, map_location="cpu", weights_only=True)
    for key in WRAPPERS:
        if isinstance(tree.get(key), dict):
            tree = tree[key]
    return {
        name.removeprefix("module.").removeprefix("network."): value
        for name, value in tree.items()
        if isinstance(value, Tensor)
    }


def _renewed(network: nn.Module, own: dict[str, Tensor]) -> set[str]:
    """The names of the tensors of the head and of the first convolution."""
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    layers = {*head_layers(network), *([first] if first else [])}
    prefixes = [f"{name}." for name, module in network.named_modules() if module in layers]
    return {name for name in own if name.startswith(tuple(prefixes))}
