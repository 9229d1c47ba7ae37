"""The recipe's augmentation."""

from typing import Literal

from pydantic import Field

from cifartune.config.section import Section


class AugmentRecipe(Section):
    """Random changes of each training image, drawn anew for each image; `strength` scales all.

    Strength multiplies a magnitude where an operation has one, else its probability; a range of
    scales shrinks towards 1. The order is: crop and flip, policy, the group (jitter to invert),
    mixup and CutMix, cutout.
    """

    strength: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Multiplies every magnitude below, and the probability of what has none; "
        "0 is none.",
    )
    copies: int = Field(
        0,
        ge=0,
        le=8,
        description="Augmented copies of each image that are added to the original in its batch; "
        "0 puts one in its place. A step then sees 1 + copies times batch_size images, and an "
        "epoch has as many steps as before and costs 1 + copies times as much.",
    )
    padding: Literal["reflect", "zero"] = Field(
        "reflect",
        description="What a crop, a rotation and the like bring in from beyond the border: "
        "the image reflected, or black.",
    )
    crop: int = Field(
        4, ge=0, le=16, description="Largest shift in pixels, in each direction, of a random crop."
    )
    flip: float = Field(0.5, ge=0, le=0.5, description="Probability of a horizontal flip.")
    flip_mode: Literal["random", "alternate"] = Field(
        "random",
        description="Each time by chance, or every other epoch, the first by chance: two epochs "
        "then show an image and its mirror image once each "
        "(https://arxiv.org/abs/2404.00498).",
    )
    cutout: int = Field(
        0, ge=0, le=32, description="Side in pixels of a square that is blanked out; 0 is none."
    )
    policy: Literal["none", "randaugment", "trivialaugment", "autoaugment"] = Field(
        "none",
        description="A published set of operations from which each image draws: RandAugment, "
        "TrivialAugment (wide), or AutoAugment's policy for CIFAR-10.",
    )
    policy_probability: float = Field(
        1.0, ge=0, le=1, description="Probability that an image goes through the policy."
    )
    randaugment_ops: int = Field(
        2, ge=1, le=8, description="Operations of RandAugment an image, one after the other."
    )
    randaugment_magnitude: int = Field(
        9, ge=0, le=30, description="Magnitude of RandAugment's operations."
    )
    group_probability: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Probability that an image goes through the group: jitter, rotation, affine, "
        "perspective, elastic, solarize and invert. Each then has its own probability besides.",
    )
    jitter_probability: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Probability that brightness, contrast, saturation and hue are changed.",
    )
    brightness: float = Field(
        0.0, ge=0, le=1, description="Largest change of the brightness, as a share of it."
    )
    contrast: float = Field(
        0.0, ge=0, le=1, description="Largest change of the contrast, as a share of it."
    )
    saturation: float = Field(
        0.0, ge=0, le=1, description="Largest change of the saturation, as a share of it."
    )
    hue: float = Field(
        0.0, ge=0, le=0.5, description="Largest shift of the hue, in turns of the colour circle."
    )
    rotation: float = Field(
        0.0, ge=0, le=180, description="Largest angle in degrees of a rotation to either side."
    )
    rotation_probability: float = Field(1.0, ge=0, le=1, description="Probability of a rotation.")
    translate_x: float = Field(
        0.0, ge=0, le=1, description="Largest shift to either side, as a share of the width."
    )
    translate_y: float = Field(
        0.0, ge=0, le=1, description="Largest shift up or down, as a share of the height."
    )
    scale_from: float = Field(
        1.0, ge=0.1, le=4, description="One end of the range from which an image's scale is drawn."
    )
    scale_to: float = Field(1.0, ge=0.1, le=4, description="The other end of that range.")
    shear: float = Field(
        0.0, ge=0, le=60, description="Largest angle in degrees of a horizontal shear."
    )
    affine_probability: float = Field(
        1.0, ge=0, le=1, description="Probability of shift, scale and shear, which come together."
    )
    perspective: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="Largest distance that a corner moves inwards, as a share of half the side.",
    )
    perspective_probability: float = Field(
        1.0, ge=0, le=1, description="Probability of a change of perspective."
    )
    elastic: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Size of a smooth random displacement of all pixels: torchvision's alpha, "
        "with a sigma of 5 pixels; at 250 a pixel moves by about 6.",
    )
    elastic_probability: float = Field(
        1.0, ge=0, le=1, description="Probability of an elastic displacement."
    )
    solarize: int = Field(
        0, ge=0, le=256, description="How many of the brightest grey levels are inverted."
    )
    solarize_probability: float = Field(
        1.0, ge=0, le=1, description="Probability that an image is solarised."
    )
    invert: float = Field(0.0, ge=0, le=1, description="Probability that all levels are inverted.")
    mixup: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Probability that an image is blended with another of its batch, and its "
        "label likewise.",
    )
    mixup_alpha: float = Field(
        1.0,
        gt=0,
        le=10,
        description="The share of an image in its blend is drawn from Beta(alpha, alpha).",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Probability that a rectangle of an image is taken from another of its batch, "
        "and its label in proportion. Where mixup falls on the same image, a fair coin decides.",
    )
    cutmix_alpha: float = Field(
        1.0,
        gt=0,
        le=10,
        description="The share that an image keeps is drawn from Beta(alpha, alpha).",
    )
