import pytest
import torch
from torch import nn

from cifartune.config import Recipe
from cifartune.config.recipe import ModelRecipe, Trainable
from cifartune.models import build_model
from cifartune.models.freezing import set_training
from cifartune.training import SplitImages
from cifartune.training.trainer import Trainer


def trained_parts(name: str, trainable: Trainable) -> set[str]:
    network = build_model(ModelRecipe(name=name, trainable=trainable))
    return {key.rpartition(".")[0] for key, w in network.named_parameters() if w.requires_grad}


def test_the_last_stages_are_those_before_the_head() -> None:
    assert trained_parts("resnet18", "head") == {"fc"}
    last: list[Trainable] = ["last_1", "last_2", "last_3"]
    for count, trainable in enumerate(last, start=1):
        parts = {part.split(".")[0] for part in trained_parts("resnet18", trainable)}
        assert parts == {"fc", *(f"layer{5 - index}" for index in range(1, count + 1))}
    parts = {
        ".".join(part.split(".")[:2]) for part in trained_parts("vit_tiny_patch16_224", "last_2")
    }
    assert parts == {"blocks.10", "blocks.11", "norm", "head"}


def test_a_vggs_stages_end_at_the_pooling() -> None:
    layers = {f"features.{index}" for index in (16, 18)}
    assert trained_parts("vgg11", "last_1") == layers | {
        "pre_logits.fc1",
        "pre_logits.fc2",
        "head.fc",
    }


def test_what_is_frozen_by_design_stays_so() -> None:
    assert trained_parts("speednet_small", "last_1") == {
        "stages.2.conv1",
        "stages.2.conv2",
        "stages.2.norm1",
        "stages.2.norm2",
        "head",
    }
    network = build_model(ModelRecipe(name="speednet_small", trainable="last_3"))
    assert not network.get_parameter("whitening.weight").requires_grad
    assert not network.get_parameter("stages.2.norm1.weight").requires_grad


def test_frozen_parts_evaluate_while_the_rest_trains() -> None:
    network = build_model(
        ModelRecipe(name="resnet18", trainable="last_1", block_dropout=0.2, dropout=0.2)
    )
    network.eval()
    set_training(network)
    modes = {name: module.training for name, module in network.named_modules()}
    assert network.training
    assert not any(modes[name] for name in ("bn1", "layer1", "layer3.1.bn2", "layer3.1.act1.1"))
    assert all(modes[name] for name in ("layer4", "layer4.0.bn1", "layer4.1.act1.1", "fc"))


@pytest.mark.parametrize("trainable", ["head", "last_1"])
def test_frozen_parts_do_not_move_in_training(
    recipe: Recipe, split: SplitImages, trainable: Trainable
) -> None:
    trainer = Trainer(
        recipe.with_values({"model.trainable": trainable, "epochs": 1}),
        split,
        device=torch.device("cpu"),
    )
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.train_on([split.train[:32], split.train[32:64]])
    after = trainer.network.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    parts = {name.rpartition(".")[0] for name in moved}
    assert "head" in parts
    if trainable == "head":
        assert moved == {"head.weight"}
    else:
        assert parts == {
            "head",
            *(f"stages.2.{part}" for part in ("conv1", "conv2", "norm1", "norm2")),
        }
    optimised = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert optimised == sum(weight.requires_grad for weight in trainer.network.parameters())


def test_random_features_may_be_frozen() -> None:
    """The init reaches what is frozen afterwards."""
    network = build_model(
        ModelRecipe(name="resnet18", trainable="head", init="constant", init_gain=1.0)
    )
    conv = network.get_submodule("layer1.0.conv1")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.weight == 1 / conv.weight[0].numel()).all()
