"""What enters a network in training: batches of images, each image changed in its own way."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cifartune.config.recipe import Recipe
from cifartune.seeds import derive_seed
from cifartune.training.augment import (
    alternates,
    apply_policy,
    crop_and_flip,
    cutout_,
    distort,
    mix,
)
from cifartune.training.images import SplitImages
from cifartune.training.targets import Targets


class Feed:
    """The training images of a recipe, in a new order each epoch, augmented a batch at a time.

    Args:
        recipe: Gives the augmentation.
        split: The images, on the device that trains.
        prepare: uint8 (N, 3, 32, 32) -> the network's input, float32 (N, 3, side, side).

    Attributes:
        generator: Draws the order and all changes, on the device; its state is the feed's.
    """

    def __init__(
        self, recipe: Recipe, split: SplitImages, prepare: Callable[[Tensor], Tensor]
    ) -> None:
        self.recipe = recipe
        self.split = split
        self.prepare = prepare
        self.generator = Generator(split.images.device).manual_seed(recipe.seed)

    def order(self) -> Tensor:
        """The training images in a new order: int64 indices."""
        count, device = len(self.split.train), self.split.train.device
        return self.split.train[torch.randperm(count, generator=self.generator, device=device)]

    def inputs(self, indices: Tensor) -> Tensor:
        """The network's input for the images at `indices`, unchanged."""
        return self.prepare(self.split.images[indices])

    def augmented(self, indices: Tensor, epoch: int) -> tuple[Tensor, Targets]:
        """The network's input and what to learn from it; originals come before their copies.

        Args:
            indices: int64 (N,).
            epoch: Counted from 0.
        """
        recipe, generator = self.recipe.augment, self.generator
        changed = indices.repeat(self._copies) if self._copies else indices
        mirrored = None
        if recipe.flip_mode == "alternate":
            mirrored = alternates(self._coins[changed], recipe, epoch)
        images = crop_and_flip(self.split.images[changed], recipe, generator, mirrored)
        images = apply_policy(images, recipe, generator)
        images = distort(images, recipe, generator)
        images, targets = mix(images, self.split.labels[changed], recipe, generator)
        x = cutout_(self.prepare(images), recipe, generator)
        if self._copies:
            targets = targets.after(self.split.labels[indices])
            x = torch.cat([self.inputs(indices), x])
        return x, targets

    @property
    def _copies(self) -> int:
        return self.recipe.augment.copies

    @cached_property
    def _coins(self) -> Tensor:
        """One for each image, the same in all epochs, and no state: drawn from the seed alone."""
        device = self.split.images.device
        generator = Generator(device).manual_seed(derive_seed(self.recipe.seed, "flip"))
        return torch.rand(len(self.split.images), generator=generator, device=device)


def shrink(x: Tensor, side: int) -> Tensor:
    """Images (N, 3, H, W) at no more than `side` pixels a side; with 0 as they are."""
    if not 0 < side < x.shape[-1]:
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
