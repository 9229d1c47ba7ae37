from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cifartune.config.recipe import ModelRecipe
from cifartune.models import build_model
from cifartune.models.errors import UnfitNetwork
from cifartune.models.weights import load_weights


def build(weights: str = "none", seed: int = 0, **values: Any) -> nn.Module:
    torch.manual_seed(seed)
    recipe = {"name": "speednet_small", "weights": weights, **values}
    return build_model(ModelRecipe.model_validate(recipe))


@pytest.fixture
def source() -> dict[str, Tensor]:
    """Weights that no seed of the tests draws."""
    return {key: value.clone() for key, value in build(seed=5).state_dict().items()}


@pytest.mark.parametrize(
    ("suffix", "prefix", "wrapper"),
    [
        (".safetensors", "", None),
        (".safetensors", "network.", None),
        (".pt", "", None),
        (".pth", "module.", "state_dict"),
        (".pt", "", "network"),
    ],
)
def test_weights_come_from_a_file(
    tmp_path: Path, source: dict[str, Tensor], suffix: str, prefix: str, wrapper: str | None
) -> None:
    path = tmp_path / f"weights{suffix}"
    tensors = {prefix + key: value for key, value in source.items()}
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({wrapper: tensors, "epoch": 3} if wrapper else tensors, path)
    network = build(str(path), init="orthogonal")
    for key, value in network.state_dict().items():
        assert torch.equal(value, source[key]), key


def test_the_head_and_the_first_convolution_may_be_anothers(tmp_path: Path) -> None:
    path = tmp_path / "imagenet.safetensors"
    imagenet = timm.create_model("resnet18", num_classes=20)
    save_file(imagenet.state_dict(), path)
    network = build_model(ModelRecipe(name="resnet18", weights=str(path)))
    own, given = network.state_dict(), imagenet.state_dict()
    differ = {k for k in own if own[k].shape != given[k].shape or not torch.equal(own[k], given[k])}
    assert differ == {"conv1.weight", "fc.weight", "fc.bias"}


def test_the_head_is_drawn_anew_on_request(tmp_path: Path, source: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.pt"
    torch.save(source, path)
    own = build(str(path), head_std=0.1).state_dict()
    assert {key for key in own if not torch.equal(own[key], source[key])} == {"head.weight"}


def test_another_networks_weights_are_refused(tmp_path: Path, source: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.pt"
    torch.save(source, path)
    with pytest.raises(
        UnfitNetwork, match=r"does not fit ResNet: bn1.bias is missing, and \d+ more"
    ):
        load_weights(timm.create_model("resnet18", num_classes=10), str(path))
    source["stages.1.norm1.bias"] = torch.zeros(3)
    torch.save(source, path)
    with pytest.raises(UnfitNetwork, match=r"stages.1.norm1.bias has another shape$"):
        build(str(path))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(UnfitNetwork, match=r"^model.weights: there is no file"):
        build(str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(UnfitNetwork, match=r"^model.weights: .* cannot be read \("):
        build(str(path))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(build(), path)  # a whole module, which only pickle can bring back
    with pytest.raises(UnfitNetwork, match="cannot be read"):
        build(str(path))
