import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifartune.config import Recipe, SearchSpace
from cifartune.config.effects import FIXED, UNSEARCHED
from cifartune.config.recipe import Section, recipe_fields
from cifartune.models import build as models_build
from cifartune.training import NonFiniteLoss, SplitImages, canary, classifier, device, feed, optim
from cifartune.training import trainer as training
from cifartune.training.augment import crop_and_flip, cutout_
from cifartune.training.canary import fingerprint, idle_parameters
from cifartune.training.classifier import Classifier
from cifartune.training.images import Normalization
from cifartune.training.trainer import Trainer

Cut = Callable[[pytest.MonkeyPatch], None]

SEARCHED: dict[str, dict[str, Any]] = {
    "model.name": {"values": ["speednet_small", "resnet18", "wideresnet", "resnet_channels"]},
    "model.depth": {"values": [10, 16], "when": {"model.name": "wideresnet"}},
    "model.width": {"values": [1, 2], "when": {"model.name": "wideresnet"}},
    "model.squeeze_excite": {"values": [False, True], "when": {"model.name": "wideresnet"}},
    "model.channels": {"values": ["8/8/16", "8/16"], "when": {"model.name": "resnet_channels"}},
    "model.weights": {"values": ["none", "imagenet"], "when": {"model.name": "resnet18"}},
    "model.stem": {"values": ["cifar", "native"], "when": {"model.name": "resnet18"}},
    "model.trainable": {"values": ["all", "last_1"]},
    "model.activation": {"values": ["default", "relu"]},
    "model.dropout": {"values": [0.0, 0.5]},
    "model.block_dropout": {"values": [0.0, 0.5], "when": {"model.name": "wideresnet"}},
    "model.drop_path": {"values": [0.0, 0.5], "when": {"model.name": "wideresnet"}},
    "model.init": {"values": ["default", "orthogonal"]},
    "model.init_gain": {"values": [1.0, 0.5], "when": {"model.init": "orthogonal"}},
    "model.head_std": {"values": [0.0, 0.1]},
    "model.norm_momentum": {"values": [0.1, 0.5]},
    "model.whitening": {"values": [True, False]},
    "model.resolution": {"values": [16, 24]},
    "data.normalize": {"values": ["split", "half"]},
    "data.small_side": {"values": [14, 15]},
    "data.small_share": {"values": [0.5, 0.4]},
    "augment.strength": {"values": [1.0, 0.5]},
    "augment.crop": {"values": [4, 2]},
    "augment.flip": {"values": [0.5, 0.0]},
    "augment.flip_mode": {"values": ["random", "alternate"]},
    "augment.cutout": {"values": [8, 0]},
    "augment.copies": {"values": [1, 0]},
    "augment.padding": {"values": ["zero", "reflect"]},
    "augment.policy": {"values": ["randaugment", "none"]},
    "augment.policy_probability": {"values": [1.0, 0.5]},
    "augment.randaugment_ops": {"values": [2, 1]},
    "augment.randaugment_magnitude": {"values": [9, 5]},
    "augment.group_probability": {"values": [0.9, 0.5]},
    "augment.jitter_probability": {"values": [0.9, 0.5]},
    "augment.brightness": {"values": [0.4, 0.2]},
    "augment.contrast": {"values": [0.4, 0.2]},
    "augment.saturation": {"values": [0.4, 0.2]},
    "augment.hue": {"values": [0.1, 0.2]},
    "augment.rotation": {"values": [30.0, 10.0]},
    "augment.rotation_probability": {"values": [0.9, 0.5]},
    "augment.translate_x": {"values": [0.1, 0.0]},
    "augment.translate_y": {"values": [0.1, 0.0]},
    "augment.scale_from": {"values": [0.8, 0.7]},
    "augment.scale_to": {"values": [1.2, 1.1]},
    "augment.shear": {"values": [10.0, 5.0]},
    "augment.affine_probability": {"values": [0.9, 0.5]},
    "augment.perspective": {"values": [0.3, 0.1]},
    "augment.perspective_probability": {"values": [0.9, 0.5]},
    "augment.elastic": {"values": [50.0, 30.0]},
    "augment.elastic_probability": {"values": [0.9, 0.5]},
    "augment.solarize": {"values": [64, 128]},
    "augment.solarize_probability": {"values": [0.9, 0.5]},
    "augment.invert": {"values": [0.5, 0.3]},
    "augment.mixup": {"values": [0.5, 0.3]},
    "augment.mixup_alpha": {"values": [1.0, 0.5]},
    "augment.cutmix": {"values": [0.5, 0.3]},
    "augment.cutmix_alpha": {"values": [1.0, 0.5]},
    "optimizer.name": {"values": ["sgd", "adamw"]},
    "optimizer.lr": {"values": [0.1, 0.01]},
    "optimizer.momentum": {"values": [0.9, 0.5]},
    "optimizer.bias_lr_scale": {"values": [1.0, 8.0]},
    "optimizer.weight_decay": {"values": [5e-4, 1e-6]},
    "optimizer.clip_norm": {"values": [0.0, 0.5]},
    "optimizer.sam_rho": {"values": [0.0, 0.05]},
    "optimizer.ema_decay": {"values": [0.0, 0.1]},
    "schedule.name": {"values": ["one_cycle", "cosine", "restarts", "step", "plateau"]},
    "schedule.cycles": {"values": [3, 2], "when": {"schedule.name": "restarts"}},
    "schedule.cycle_growth": {"values": [1.0, 2.0], "when": {"schedule.name": "restarts"}},
    "schedule.drops": {"values": [2, 1], "when": {"schedule.name": "step"}},
    "schedule.gamma": {"values": [0.1, 0.5], "when": {"schedule.name": ["step", "plateau"]}},
    "schedule.patience": {"values": [3, 2], "when": {"schedule.name": "plateau"}},
    "schedule.warmup": {"values": [0.2, 0.1]},
    "stopping.metric": {"values": ["train_loss", "train_accuracy", "val_loss", "none"]},
    "stopping.patience": {"values": [4, 3]},
    "stopping.min_delta": {"values": [0.0, 0.01]},
    "stopping.keep": {"values": ["last", "best"]},
    "stopping.epoch": {"values": [0, 10]},
    "epochs": {"values": [12, 9]},
    "batch_size": {"values": [64, 48]},
    "label_smoothing": {"values": [0.0, 0.1]},
    "hard_examples": {"values": [1.0, 0.5]},
    "tta": {"values": ["none", "flip"]},
    "precision": {"values": ["fp32", "bf16"]},
    "micro_batch": {"values": [0, 16]},
}
"""Two values of every recipe field, the first that of the baseline."""


def reset(target: Any, *functions: str, **values: Any) -> Cut:
    """Cuts fields of the recipe that is handed to `functions` of `target`."""

    def cut(monkeypatch: pytest.MonkeyPatch) -> None:
        for function in functions:
            original = getattr(target, function)

            def deaf(*args: Any, original: Any = original) -> Any:
                known = (a.model_copy(update=values) if isinstance(a, Section) else a for a in args)
                return original(*known)

            monkeypatch.setattr(target, function, deaf)

    return cut


def replace(target: Any, name: str, make: Callable[[Any], Any]) -> Cut:
    """Puts what `make` makes of the original in the place of `target.name`."""
    return lambda monkeypatch: monkeypatch.setattr(target, name, make(getattr(target, name)))


def cut_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer asks for the size in two places."""
    monkeypatch.setattr(Trainer, "steps_per_epoch", 5)
    monkeypatch.setattr(Trainer, "batches", lambda trainer: trainer.split.train.split(64))


def ask_timm_for(**values: Any) -> Cut:
    """Whatever a recipe says, timm is asked for the network with these `values`."""

    def make(create_model: Any) -> Any:
        def create(*args: Any, **asked: Any) -> Any:
            return create_model(*args, **asked | {k: v for k, v in values.items() if k in asked})

        return create

    return replace(timm, "create_model", make)


def skip(function: str) -> Cut:
    """A step of the building of networks does nothing."""
    return replace(models_build, function, lambda _: lambda *args: None)


CUTS: dict[str, Cut] = {
    "model.name": replace(
        timm, "create_model", lambda f: lambda *_, **__: f("speednet_small", num_classes=10)
    ),
    "model.depth": ask_timm_for(depth=10),
    "model.width": ask_timm_for(width=1),
    "model.squeeze_excite": ask_timm_for(squeeze_excite=False),
    "model.channels": ask_timm_for(channels="8/8/16"),
    "model.weights": replace(
        timm, "create_model", lambda f: lambda *a, **kw: f(*a, **kw | {"pretrained": False})
    ),
    "model.trainable": skip("freeze"),
    "model.stem": skip("_use_cifar_stem"),
    "model.activation": skip("replace_activations"),
    "model.dropout": ask_timm_for(drop_rate=0.0),
    "model.block_dropout": ask_timm_for(proj_drop_rate=0.0),
    "model.drop_path": ask_timm_for(drop_path_rate=0.0),
    "model.init": skip("apply_init"),
    "model.init_gain": replace(models_build, "apply_init", lambda f: lambda n, s, _: f(n, s)),
    "model.head_std": skip("draw_head"),
    "model.norm_momentum": replace(
        models_build, "_set_norm_momentum", lambda f: lambda network, _: f(network, 0.1)
    ),
    "model.whitening": ask_timm_for(whitens=True),
    "model.resolution": replace(classifier, "resize", lambda f: lambda images, _: f(images, 16)),
    "data.normalize": replace(Normalization, "make", lambda f: lambda _, split: f("half", split)),
    "data.small_side": replace(Trainer, "small_side", lambda _: lambda *args: 14),
    "data.small_share": replace(
        Trainer, "small_side", lambda _: lambda t, step: 14 * (step < t.total_steps / 2)
    ),
    "augment.strength": reset(
        feed, "crop_and_flip", "apply_policy", "distort", "mix", "cutout_", strength=1.0
    ),
    "augment.crop": reset(feed, "crop_and_flip", crop=4),
    "augment.flip": reset(feed, "crop_and_flip", flip=0.5),
    "augment.flip_mode": replace(
        feed, "crop_and_flip", lambda f: lambda i, r, g, mirrored=None: f(i, r, g)
    ),
    "augment.cutout": reset(feed, "cutout_", cutout=8),
    "augment.copies": replace(feed.Feed, "_copies", lambda _: property(lambda t: 1)),
    "augment.padding": reset(feed, "crop_and_flip", "apply_policy", "distort", padding="zero"),
    "augment.policy": reset(feed, "apply_policy", policy="randaugment"),
    "augment.policy_probability": reset(feed, "apply_policy", policy_probability=1.0),
    "augment.randaugment_ops": reset(feed, "apply_policy", randaugment_ops=2),
    "augment.randaugment_magnitude": reset(feed, "apply_policy", randaugment_magnitude=9),
    "augment.group_probability": reset(feed, "distort", group_probability=0.9),
    "augment.jitter_probability": reset(feed, "distort", jitter_probability=0.9),
    "augment.brightness": reset(feed, "distort", brightness=0.4),
    "augment.contrast": reset(feed, "distort", contrast=0.4),
    "augment.saturation": reset(feed, "distort", saturation=0.4),
    "augment.hue": reset(feed, "distort", hue=0.1),
    "augment.rotation": reset(feed, "distort", rotation=30.0),
    "augment.rotation_probability": reset(feed, "distort", rotation_probability=0.9),
    "augment.translate_x": reset(feed, "distort", translate_x=0.1),
    "augment.translate_y": reset(feed, "distort", translate_y=0.1),
    "augment.scale_from": reset(feed, "distort", scale_from=0.8),
    "augment.scale_to": reset(feed, "distort", scale_to=1.2),
    "augment.shear": reset(feed, "distort", shear=10.0),
    "augment.affine_probability": reset(feed, "distort", affine_probability=0.9),
    "augment.perspective": reset(feed, "distort", perspective=0.3),
    "augment.perspective_probability": reset(feed, "distort", perspective_probability=0.9),
    "augment.elastic": reset(feed, "distort", elastic=50.0),
    "augment.elastic_probability": reset(feed, "distort", elastic_probability=0.9),
    "augment.solarize": reset(feed, "distort", solarize=64),
    "augment.solarize_probability": reset(feed, "distort", solarize_probability=0.9),
    "augment.invert": reset(feed, "distort", invert=0.5),
    "augment.mixup": reset(feed, "mix", mixup=0.5),
    "augment.mixup_alpha": reset(feed, "mix", mixup_alpha=1.0),
    "augment.cutmix": reset(feed, "mix", cutmix=0.5),
    "augment.cutmix_alpha": reset(feed, "mix", cutmix_alpha=1.0),
    "optimizer.name": reset(training, "build_optimizer", name="sgd"),
    "optimizer.lr": reset(training, "build_optimizer", lr=0.1),
    "optimizer.momentum": reset(training, "build_optimizer", momentum=0.9),
    "optimizer.bias_lr_scale": replace(optim, "_scale_bias_rates", lambda _: lambda *args: None),
    "optimizer.weight_decay": reset(training, "build_optimizer", weight_decay=5e-4),
    "optimizer.clip_norm": replace(nn.utils, "clip_grad_norm_", lambda _: lambda *args: None),
    "optimizer.sam_rho": replace(training, "climb", lambda _: lambda *args: None),
    "optimizer.ema_decay": replace(training, "WeightAverage", lambda f: lambda n, _: f(n, 0.0)),
    "schedule.name": reset(training, "lr_factor", name="cosine"),
    "schedule.cycles": reset(training, "lr_factor", cycles=3),
    "schedule.cycle_growth": reset(training, "lr_factor", cycle_growth=1.0),
    "schedule.drops": reset(training, "lr_factor", drops=2),
    "schedule.gamma": reset(training, "lr_factor", gamma=0.1),
    "schedule.patience": replace(training, "plateaus", lambda f: lambda losses, _: f(losses, 3)),
    "stopping.metric": reset(training, "has_ended", metric="train_loss"),
    "stopping.patience": reset(training, "has_ended", patience=4),
    "stopping.min_delta": reset(training, "has_ended", min_delta=0.0),
    "stopping.keep": reset(training, "kept_epoch", keep="last"),
    "stopping.epoch": reset(training, "has_ended", epoch=0),
    "hard_examples": replace(training, "hardest", lambda _: lambda losses, share: losses),
    "schedule.warmup": reset(training, "lr_factor", warmup=0.2),
    "epochs": replace(Trainer, "total_steps", lambda _: property(lambda t: 12 * t.steps_per_epoch)),
    "batch_size": cut_batch_size,
    "label_smoothing": replace(
        F, "cross_entropy", lambda f: lambda *a, label_smoothing=0.0, **kw: f(*a, **kw)
    ),
    "tta": replace(
        Classifier, "forward", lambda _: lambda self, images: self.network(self.prepare(images))
    ),
    "micro_batch": replace(
        training, "resolve", lambda f: lambda r, d: f(r.with_values({"micro_batch": 0}), d)
    ),
    "precision": replace(
        training,
        "resolve",
        lambda f: lambda r, device: f(r.with_values({"precision": "fp32"}), device),
    ),
}
"""How the wire of each field is cut, at the place that consumes it."""


def space(base: Recipe, parameters: dict[str, Any]) -> SearchSpace:
    return SearchSpace.model_validate({"name": "canary", "base": base, "parameters": parameters})


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for timm's hub: the same weights each time."""

    def load(network: nn.Module, **_: Any) -> None:
        for weight in network.parameters():
            nn.init.constant_(weight, 0.01)

    monkeypatch.setattr(models_build, "fetch_imagenet", lambda name: {})
    monkeypatch.setattr("timm.models._builder.load_pretrained", load)


@pytest.fixture
def base(recipe: Recipe) -> Recipe:
    """The first value of every field in `SEARCHED`."""
    return recipe.with_values({name: p["values"][0] for name, p in SEARCHED.items()})


def test_every_field_has_values_and_a_cut() -> None:
    assert SEARCHED.keys() == CUTS.keys() == recipe_fields().keys() - {*FIXED, *UNSEARCHED}


def test_intact_wires_are_not_reported(base: Recipe, split: SplitImages) -> None:
    assert idle_parameters(space(base, SEARCHED), split) == {}


@pytest.mark.parametrize("name", SEARCHED)
def test_a_cut_wire_is_reported_by_name(
    base: Recipe, split: SplitImages, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    needed = [
        *SEARCHED[name].get("when", {}),
        "tta" if name == "label_smoothing" else "label_smoothing",
    ]
    other = needed[0]
    searched = space(base, {key: SEARCHED[key] for key in (name, other)})
    CUTS[name](monkeypatch)  # the test above has it intact
    assert idle_parameters(searched, split) == {name: tuple(SEARCHED[name]["values"][:2])}


def draws_crops_in_vain(images: Tensor, *args: Any) -> Tensor:
    crop_and_flip(images, *args)
    return images


def draws_cutout_in_vain(x: Tensor, *args: Any) -> Tensor:
    cutout_(x.clone(), *args)
    return x


@pytest.mark.parametrize(
    ("name", "function", "stub"),
    [
        ("augment.crop", "crop_and_flip", draws_crops_in_vain),
        ("augment.flip", "crop_and_flip", draws_crops_in_vain),
        ("augment.cutout", "cutout_", draws_cutout_in_vain),
    ],
)
def test_random_numbers_drawn_in_vain_are_no_effect(
    base: Recipe,
    split: SplitImages,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    function: str,
    stub: Callable[..., Tensor],
) -> None:
    monkeypatch.setattr(feed, function, stub)
    searched = space(base, {key: SEARCHED[key] for key in (name, "tta")})
    assert idle_parameters(searched, split).keys() == {name}


def test_a_conditional_parameter_is_moved_where_it_exists(
    base: Recipe, split: SplitImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {
        "optimizer.momentum": {"min": 0.5, "max": 0.9, "when": {"optimizer.name": "sgd"}},
        "optimizer.name": {"values": ["adamw", "sgd"], "when": {"schedule.name": "cosine"}},
        "schedule.name": {"values": ["one_cycle", "cosine"]},
    }
    searched = space(base.with_values({"optimizer.name": "adamw"}), parameters)
    moved: list[Recipe] = []

    def spy(recipe: Recipe, split: SplitImages) -> str:
        moved.append(recipe)
        return fingerprint(recipe, split)

    monkeypatch.setattr(canary, "fingerprint", spy)
    assert idle_parameters(searched, split) == {}
    assert [(r.schedule.name, r.optimizer.name, r.optimizer.momentum) for r in moved[:2]] == [
        ("cosine", "sgd", 0.5),
        ("cosine", "sgd", 0.9),
    ]


def test_conditions_on_one_parameter_are_met_together(base: Recipe) -> None:
    parameters = {
        "augment.crop": {"values": [4, 2], "when": {"epochs": [3, 4, 5], "tta": "flip"}},
        "augment.cutout": {"values": [8, 0], "when": {"epochs": [4, 5], "augment.crop": [2]}},
        "tta": {"values": ["none", "flip"], "when": {"epochs": [5, 2, 3]}},
        "epochs": {"min": 2, "max": 5},
    }
    base = base.with_values({"epochs": 2})
    for point in canary._points(space(base, parameters), "augment.cutout"):
        assert (point.epochs, point.tta, point.augment.crop) == (5, "flip", 2)


def test_a_parameter_without_effect_at_the_baseline_is_tried_elsewhere(
    base: Recipe, split: SplitImages
) -> None:
    base = base.with_values({"augment.strength": 0.0})
    parameters = {
        "augment.crop": {"min": 0, "max": 4},
        "augment.strength": {"min": 0.0, "max": 1.0},
    }
    assert idle_parameters(space(base, parameters), split) == {}


@pytest.mark.parametrize(
    ("values", "name", "bounds"),
    [
        ({"augment.strength": 0.4}, "augment.crop", (0, 1)),  # 0.4 pixels are none
        ({"augment.strength": 0.0}, "augment.crop", (0, 4)),
        ({"optimizer.name": "adamw"}, "optimizer.momentum", (0.5, 0.9)),
    ],
)
def test_a_range_that_nothing_heeds_is_idle(
    base: Recipe, split: SplitImages, values: dict[str, Any], name: str, bounds: tuple[Any, Any]
) -> None:
    inside = base.with_values({name: bounds[0]})
    low, high = bounds
    searched = space(inside, {name: {"min": low, "max": high}, "tta": SEARCHED["tta"]})
    # A space may refuse some of these bases by rules of its own.
    searched = searched.model_copy(update={"base": inside.with_values(values)})
    idle = idle_parameters(searched, split)
    assert idle == {name: bounds}
    assert [type(value) for value in idle[name]] == [type(value) for value in bounds]


@pytest.mark.parametrize(
    ("epochs", "name", "values"),
    [
        (30, "optimizer.ema_decay", [0.95, 0.999]),
        (2, "optimizer.ema_decay", [0.99, 0.999]),
        (30, "stopping.patience", [15, 25]),
        (10, "stopping.patience", [2, 3]),
        (10, "stopping.min_delta", [5e-4, 3e-3]),
        (30, "stopping.min_delta", [0.0, 1e-4]),
        (2, "stopping.keep", ["last", "best"]),
        (10, "schedule.patience", [2, 3]),
    ],
)
def test_what_acts_late_is_seen(
    base: Recipe, split: SplitImages, epochs: int, name: str, values: list[Any]
) -> None:
    late = {"epochs": epochs, "stopping.patience": 2, "schedule.name": "plateau"}
    searched = space(base.with_values(late | {name: values[0]}), {name: {"values": values}})
    assert idle_parameters(searched, split) == {}


def test_patience_for_longer_than_a_run_is_idle(base: Recipe, split: SplitImages) -> None:
    parameters = {"stopping.patience": {"values": [12, 20]}}
    searched = space(base.with_values({"epochs": 12, "stopping.patience": 12}), parameters)
    assert idle_parameters(searched, split).keys() == {"stopping.patience"}


def test_one_value_is_no_choice(base: Recipe, split: SplitImages) -> None:
    parameters = {
        "tta": SEARCHED["tta"],
        "augment.crop": {"values": [4], "when": {"tta": "flip"}},
    }
    assert idle_parameters(space(base, parameters), split) == {}


def test_a_choice_is_idle_only_if_all_its_values_are_alike(
    base: Recipe, split: SplitImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant = {"auto": "fp32", "fp32": "fp32", "bf16": "bf16"}
    monkeypatch.setattr(device, "choose_precision", lambda wanted, device: meant[wanted])
    alike, different = ["auto", "fp32"], ["auto", "fp32", "bf16"]
    base = base.with_values({"precision": "auto"})
    assert idle_parameters(space(base, {"precision": {"values": alike}}), split) == {
        "precision": ("auto", "fp32")
    }
    assert idle_parameters(space(base, {"precision": {"values": different}}), split) == {}


def test_a_schedule_shows_in_a_single_epoch(base: Recipe, split: SplitImages) -> None:
    """In the two steps of 600 images it would not: both schedules start at 1 and go on at 0.5."""
    base = base.with_values({"epochs": 1, "schedule.warmup": 0.0, "batch_size": 300})
    split = dataclasses.replace(split, train=torch.arange(900))
    parameters = {"schedule.name": {"values": ["one_cycle", "cosine"]}}
    assert idle_parameters(space(base, parameters), split) == {}


def test_points_lie_in_the_space(base: Recipe) -> None:
    parameters = {
        "optimizer.lr": {"min": 1e-3, "max": 0.3, "log": True},
        "optimizer.momentum": {"min": 0.5, "max": 0.95, "step": 0.15},
        "batch_size": {"min": 32, "max": 256, "step": 32},
        "epochs": {"min": 1, "max": 100, "log": True},
        "model.init": {"values": ["default", "orthogonal"]},
    }
    base = base.with_values({"optimizer.momentum": 0.8})
    searched = space(base, parameters)
    points = [point for name in parameters for point in canary._points(searched, name)]
    assert points[0] == base
    assert len(set(points)) == 1 + canary.FURTHER_POINTS
    for point in points:
        for name, parameter in searched.parameters.items():
            assert parameter.contains(point.flat()[name]), name
    assert points == [point for name in parameters for point in canary._points(searched, name)]


def test_a_failure_of_the_recipe_is_a_result(
    base: Recipe, split: SplitImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    cross_entropy = F.cross_entropy

    def infinite(*args: Any, **kwargs: Any) -> Tensor:
        return cross_entropy(*args, **kwargs) * float("inf")

    monkeypatch.setattr(F, "cross_entropy", infinite)
    with pytest.raises(NonFiniteLoss):
        Trainer(base, split, device=canary.CPU).train_on([split.train[:32]])
    searched = space(base, {key: SEARCHED[key] for key in ("label_smoothing", "augment.crop")})
    # Where every loss is infinite, smoothing can change nothing; the crop still shows.
    assert idle_parameters(searched, split).keys() == {"label_smoothing"}


def test_a_defect_is_no_result(
    base: Recipe, split: SplitImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(trainer: Trainer, batches: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Trainer, "train_on", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        idle_parameters(space(base, {"tta": SEARCHED["tta"]}), split)


@pytest.mark.parametrize(("name", "optimizer"), [("speednet_small", "muon"), ("resnet18", "sgd")])
def test_the_same_recipe_has_the_same_fingerprint(
    base: Recipe, split: SplitImages, name: str, optimizer: str
) -> None:
    values = {"model.name": name, "model.dropout": 0.3, "optimizer.name": optimizer, "tta": "flip"}
    prints = [fingerprint(base.with_values(values | {"seed": seed}), split) for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("gradients", [True, False])
def test_torch_is_left_as_it_was(base: Recipe, split: SplitImages, gradients: bool) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    searched = space(base, {key: SEARCHED[key] for key in ("model.dropout", "tta")})
    with torch.set_grad_enabled(gradients):
        assert idle_parameters(searched, split) == {}
        assert torch.is_grad_enabled() == gradients
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
