"""What every network must do, ours and timm's, whatever the recipe asks of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from cifartune.config import Recipe
from cifartune.config.effects import EFFECTS
from cifartune.config.networks import networks
from cifartune.config.recipe import ModelRecipe
from cifartune.models import build_model
from cifartune.models.activations import _OLD
from cifartune.models.network import head_layers
from cifartune.training.classifier import Classifier, load_classifier, predict, save_classifier
from cifartune.training.images import Normalization

NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"resolution": 16},
    "tutorial_net": {},
    "lenet": {"resolution": 16},
    "vgg10": {"resolution": 16},
    "wideresnet": {"depth": 10, "width": 1, "squeeze_excite": True, "resolution": 16},
    "resnet_channels": {"channels": "8/8/16", "resolution": 16},
    "mixture": {"channels": "8/8/16/16", "resolution": 16},
    "speednet_small": {"resolution": 16},
    "speednet_large": {"resolution": 16},
    "resnet18": {"resolution": 16},
    "resnet34": {"resolution": 16},
    "resnet50": {"resolution": 16},
    "efficientnet_b0": {},
    "efficientnet_b1": {},
    "mobilenetv2_100": {},
    "vgg16_bn": {},
    "swin_tiny_patch4_window7_224": {},
    "swin_small_patch4_window7_224": {},
    "vit_tiny_patch16_224": {},
}
"""Networks of the sources, each with what makes it small; the resolution is 32 where not given."""

LARGE = {
    *("resnet34", "resnet50", "efficientnet_b1", "vgg16_bn"),
    *("swin_small_patch4_window7_224", "speednet_large"),
}
"""What is larger, and of the same family as another."""

EVERY = [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in NETWORKS]

HAVE_BLOCKS = [n for n in NETWORKS if n.startswith(("wideresnet", "resnet", "swin", "vit"))]

HAVE_DROP_PATH = [n for n in NETWORKS if "drop_path_rate" in networks()[n].takes]

FIELDS_OF_SOME = ["block_dropout", "drop_path", "depth", "width", "squeeze_excite", "channels"]
"""Fields that act with some networks only."""


def build(name: str, **values: Any) -> nn.Module:
    """The network at a small size, the same at each call."""
    torch.manual_seed(0)
    return build_model(ModelRecipe.model_validate({"name": name, **NETWORKS[name], **values}))


def two_images(name: str) -> Tensor:
    side = NETWORKS[name].get("resolution", 32)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, side, side, generator=generator)


@torch.no_grad()
def twice(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of two passes, which draw different random numbers."""
    torch.manual_seed(1)
    return network(images), network(images)


@pytest.mark.parametrize("name", EVERY)
def test_it_learns_in_every_precision(name: str) -> None:
    images = two_images(name).to(memory_format=torch.channels_last)
    for dtype in (torch.float32, torch.bfloat16):
        network = build(name).to(memory_format=torch.channels_last).train()
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            logits = network(images)
        logits.float().square().sum().backward()
        assert logits.shape == (2, 10)
        assert logits.isfinite().all()
        for key, weight in network.named_parameters():
            assert (weight.grad is not None) == weight.requires_grad, key
            assert weight.grad is None or weight.grad.isfinite().all(), key


@pytest.mark.parametrize("name", EVERY)
def test_it_is_the_same_under_the_same_seed(name: str) -> None:
    first, second = build(name), build(name)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    images = two_images(name)
    assert torch.equal(*twice(first.train(), images))  # nothing is dropped that was not asked for


@pytest.mark.parametrize("name", EVERY)
def test_dropout_acts_in_training_and_only_there(name: str) -> None:
    network, images = build(name, dropout=0.5), two_images(name)
    first, second = twice(network.train(), images)
    assert not torch.equal(first, second)
    assert torch.equal(*twice(network.eval(), images))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        pytest.param(name, field, marks=pytest.mark.slow if name in LARGE else ())
        for field, names in (("block_dropout", HAVE_BLOCKS), ("drop_path", HAVE_DROP_PATH))
        for name in names
    ],
)
def test_blocks_are_dropped_in_training_and_only_there(name: str, field: str) -> None:
    network = build(name, **{field: 0.5})
    images = two_images(name).repeat(4, 1, 1, 1)  # of two, all may be kept
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm's blocks begin as what bypasses them
    first, second = twice(network.train(), images)
    assert not torch.equal(first, second)
    assert torch.equal(*twice(network.eval(), images))


@pytest.mark.parametrize("name", EVERY)
def test_the_activation_is_replaced_everywhere(name: str) -> None:
    network, changed = build(name), build(name, activation="mish")
    before = [module for module in network.modules() if isinstance(module, _OLD)]
    after = [module for module in changed.modules() if isinstance(module, _OLD)]
    assert len(before) == len(after) > 0
    assert {type(module) for module in after} == {nn.Mish}
    for module in changed.modules():
        if isinstance(module, BatchNormAct2d):
            assert isinstance(module.act, nn.Mish | nn.Identity)
    images = two_images(name)
    with torch.no_grad():
        assert not torch.equal(network.eval()(images), changed.eval()(images))
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    assert {key: value.shape for key, value in changed.state_dict().items()} == shapes


@pytest.mark.parametrize("name", EVERY)
def test_the_init_reaches_every_trainable_layer(name: str) -> None:
    network = build(name, init="constant", init_gain=2.0, head_std=0.5)
    heads = head_layers(network)
    for module in network.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or not module.weight.requires_grad:
            continue
        if module in heads:
            assert module.weight.std().item() == pytest.approx(0.5, rel=0.15)
        else:
            assert (module.weight == 2 / module.weight[0].numel()).all()
        assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("name", EVERY)
def test_only_the_last_parts_are_trained(name: str) -> None:
    every = sum(weight.requires_grad for weight in build(name).parameters())
    counts = []
    for trainable in ("last_2", "last_1", "head"):
        network = build(name, trainable=trainable)
        assert all(w.requires_grad for layer in head_layers(network) for w in layer.parameters())
        counts.append(sum(weight.requires_grad for weight in network.parameters()))
    # The last two stages of the fully connected network are all of it.
    assert every >= counts[0] > counts[1] > counts[2]
    assert counts[2] in (1, 2)


@pytest.mark.parametrize("name", EVERY)
def test_a_classifier_survives_the_disk(name: str, tmp_path: Path) -> None:
    values = {"activation": "leaky_relu", "trainable": "head", "dropout": 0.1}
    recipe = Recipe(model=ModelRecipe.model_validate({"name": name, **NETWORKS[name], **values}))
    statistics = Normalization(torch.full((1, 3, 1, 1), 0.4), torch.full((1, 3, 1, 1), 0.2))
    classifier = Classifier(build(name, **values), recipe, statistics)
    classifier.to(memory_format=torch.channels_last)
    save_classifier(classifier, tmp_path / "weights.safetensors")
    restored = load_classifier(tmp_path / "weights.safetensors")
    assert restored.recipe == recipe
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(predict(restored, images), predict(classifier, images))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_effects_of_fields_are_known_without_torch(name: str) -> None:
    """The checks of a search space tell where a field acts; the networks themselves, here."""
    acts = {field: EFFECTS[f"model.{field}"][0].is_met_by(name) for field in FIELDS_OF_SOME}
    assert acts["block_dropout"] == (name in HAVE_BLOCKS)
    assert acts["drop_path"] == (
        name
        not in {"mlp", "tutorial_net", "lenet", "vgg10", "mixture", "vgg16_bn"}
        | {"speednet_small", "speednet_large"}
    )
    assert acts["depth"] == acts["width"] == acts["squeeze_excite"] == (name == "wideresnet")
    assert acts["channels"] == (name in {"resnet_channels", "mixture"})
