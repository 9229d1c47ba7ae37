"""Augmentation: random changes of training images, a batch at once and each image in its own way.

Everything works on uint8 batches on the device of the images, and draws from one generator. What
is off in the recipe draws nothing.
"""

from cifartune.training.augment.distort import distort
from cifartune.training.augment.mix import mix
from cifartune.training.augment.policy import apply_policy
from cifartune.training.augment.shift import alternates, crop_and_flip, cutout_

__all__ = ["alternates", "apply_policy", "crop_and_flip", "cutout_", "distort", "mix"]
