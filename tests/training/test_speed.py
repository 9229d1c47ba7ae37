"""The parts of the speed recipe: each does what its name says, and can be switched alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cifartune.config import Recipe
from cifartune.config.recipe import AugmentRecipe, ModelRecipe, OptimizerRecipe
from cifartune.models import build_model
from cifartune.models.facts import UnfitNetwork, network_facts
from cifartune.training import SplitImages, Trainer
from cifartune.training.augment import alternates
from cifartune.training.classifier import predict
from cifartune.training.device import MEMORY_FORMATS
from cifartune.training.optim import build_optimizer

CPU = torch.device("cpu")


@pytest.mark.parametrize("flip", [0.5, 0.2])
def test_an_alternating_flip_mirrors_every_other_epoch(flip: float) -> None:
    coins = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    recipe = AugmentRecipe(flip=flip, flip_mode="alternate")
    first, second, third = (alternates(coins, recipe, epoch) for epoch in range(3))
    assert torch.equal(first, third)
    assert not (first & second).any()
    assert (first | second).float().mean() == pytest.approx(2 * flip, abs=0.02)
    for mirrored in (first, second):
        assert mirrored.float().mean() == pytest.approx(flip, abs=0.02)
    assert not alternates(coins, AugmentRecipe(flip=flip, strength=0.0), 1).any()


def test_two_epochs_show_each_image_and_its_mirror_image(
    recipe: Recipe, split: SplitImages
) -> None:
    values = {"augment.crop": 0, "augment.flip_mode": "alternate", "epochs": 3}
    trainer = Trainer(recipe.with_values(values), split, device=CPU)
    seen = []
    for _ in trainer:
        seen.append(trainer._augmented(split.train)[0])
    plain = trainer.feed.inputs(split.train)
    torch.testing.assert_close(seen[0], seen[1].flip(3))
    assert torch.equal(seen[0], seen[2])
    mirrored = (seen[0] != plain).any(1).any(1).any(1)
    assert 100 < mirrored.sum() < 200  # of 300
    other = Trainer(recipe.with_values(values | {"seed": 1}), split, device=CPU)
    assert not torch.equal(other.feed._coins, trainer.feed._coins)


def test_six_views_are_weighed(recipe: Recipe, split: SplitImages) -> None:
    trainer = Trainer(recipe.with_values({"tta": "six_views"}), split, device=CPU)
    images = split.images[:40]
    got = trainer.predict(images)
    assert trainer.recipe.views == 6
    network = trainer.classifier.network.eval()
    x = trainer.classifier.prepare(images)
    expected = torch.zeros(40, 10)
    for down, right, weight in ((0, 0, 1 / 2), (1, 1, 1 / 4), (-1, -1, 1 / 4)):
        # The view that begins a pixel up and to the left shows the image moved down and right.
        moved = F.pad(x, (1, 1, 1, 1), "reflect")[..., 1 - down : 17 - down, 1 - right : 17 - right]
        for view in (moved, moved.flip(3)):
            with torch.inference_mode():
                expected += network(view) * weight / 2
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    plain = trainer.recipe.with_values({"tta": "none"})
    trainer.classifier.recipe = plain
    assert not torch.allclose(predict(trainer.classifier, images), got, atol=1e-3)


def test_images_are_small_in_the_first_part(recipe: Recipe, split: SplitImages) -> None:
    values = {"data.small_side": 12, "data.small_share": 0.6, "epochs": 2}
    trainer = Trainer(recipe.with_values(values), split, device=CPU)
    sides: list[int] = []

    def look(network: nn.Module, inputs: tuple[Tensor]) -> None:
        if network.training:
            sides.append(inputs[0].shape[-1])
        else:
            assert inputs[0].shape[-1] == 16

    trainer.network.register_forward_pre_hook(look)
    results = list(trainer)
    assert sides == [12] * 6 + [16] * 4  # of ten steps
    assert results[-1].val_loss < 3


def test_small_images_are_those_of_another_resize(recipe: Recipe, split: SplitImages) -> None:
    """Pillow's, which knows bilinear interpolation with antialiasing from elsewhere."""
    values = {"data.small_side": 12, "augment.strength": 0.0}
    trainer = Trainer(recipe.with_values(values), split, device=CPU)
    seen: list[Tensor] = []
    hook = trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = split.train[:8]
    trainer.train_on([batch])
    hook.remove()
    expected = [
        [
            np.asarray(Image.fromarray(channel.numpy()).resize((12, 12), Image.Resampling.BILINEAR))
            for channel in image
        ]
        for image in trainer.feed.inputs(batch)
    ]
    torch.testing.assert_close(seen[0], torch.tensor(np.array(expected)), atol=1e-4, rtol=0)


def test_small_images_are_never_enlarged(recipe: Recipe, split: SplitImages) -> None:
    few = SplitImages(split.images, split.labels, split.train[:64], split.validation[:10])
    plain = next(iter(Trainer(recipe, few, device=CPU)))
    larger = next(iter(Trainer(recipe.with_values({"data.small_side": 20}), few, device=CPU)))
    assert larger.train_loss == plain.train_loss


def test_a_network_for_one_size_refuses_small_images() -> None:
    vit = ModelRecipe(name="vit_tiny_patch16_224", resolution=32)
    network_facts(vit)
    with pytest.raises(UnfitNetwork, match=r"16 x 16 .* made for 32: set data.small_side to 0"):
        network_facts(vit, 16)
    assert network_facts(ModelRecipe(), 16).flops < network_facts(ModelRecipe()).flops / 3


@pytest.mark.parametrize("name", ["sgd", "muon", "adamw"])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_biases_learn_at_a_rate_of_their_own(name: str, weight_decay: float) -> None:
    network = build_model(ModelRecipe(name="resnet18"))
    values = {"name": name, "lr": 0.01, "weight_decay": weight_decay}
    plain = build_optimizer(network, OptimizerRecipe.model_validate(values))
    scaled = build_optimizer(
        network, OptimizerRecipe.model_validate(values | {"bias_lr_scale": 64.0})
    )

    def settings(optimizer: torch.optim.Optimizer) -> dict[int, tuple[float, float]]:
        return {
            id(weight): (group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for weight in group["params"]
        }

    before, after = settings(plain), settings(scaled)
    assert before.keys() == after.keys() == {id(weight) for weight in network.parameters()}
    for weight in network.parameters():
        lr, decay = before[id(weight)]
        assert after[id(weight)] == (lr * (64 if weight.ndim < 2 else 1), decay)
    assert scaled.param_groups[0]["lr"] == 0.01, "the rate that is reported"


def test_the_statistics_of_norms_follow_faster() -> None:
    def momenta(value: float) -> set[float | None]:
        network = build_model(ModelRecipe(name="resnet18", norm_momentum=value))
        return {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)}

    assert (momenta(0.0), momenta(0.4)) == ({0.1}, {0.4})


def test_without_whitening_the_first_layer_is_learned(recipe: Recipe, split: SplitImages) -> None:
    def first_layer(whitening: bool) -> tuple[Tensor, Tensor]:
        trainer = Trainer(recipe.with_values({"model.whitening": whitening}), split, device=CPU)
        weight = trainer.network.get_parameter("whitening.weight")
        before = weight.detach().clone()
        next(iter(trainer))
        return before, weight.detach()

    before, after = first_layer(True)
    assert torch.equal(before, after)
    torch.testing.assert_close(before[:12], -before[12:])
    before, after = first_layer(False)
    assert not torch.equal(before, after)
    assert before.std() < 0.3  # as torch draws it


def test_a_memory_format_changes_how_a_network_is_computed_and_not_what(
    recipe: Recipe, split: SplitImages
) -> None:
    losses = {}
    for name, memory_format in MEMORY_FORMATS.items():
        trainer = Trainer(recipe.with_values({"memory_format": name, "epochs": 2}), split)
        seen = list[Tensor]()
        for module in trainer.network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda module, x, y, seen=seen: seen.append(y))
        trainer.train_on(trainer.batches()[:1])
        square = [y for y in seen if min(y.shape[1:]) > 1]  # others are both
        assert square
        assert all(y.is_contiguous(memory_format=memory_format) for y in square)
        losses[name] = [result.train_loss for result in trainer]
    assert losses["contiguous"] == pytest.approx(losses["channels_last"], rel=1e-3)
