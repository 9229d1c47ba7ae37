"""The recipe of a file as one would write it out without cifartune: the least that it can cost.

`time_to_accuracy.py` takes from it the rate of a bare step, and `generator.py` holds the trainer's
generator against it. It knows only what the speed recipe uses.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifartune.config import Recipe
from cifartune.schedule import lr_factor
from cifartune.training import SplitImages, Trainer
from cifartune.training.device import autocast


class BareLoop:
    """The same network, data and optimiser as a trainer's, without the trainer.

    Args:
        recipe: With nothing but crop and flip by chance, label smoothing, and its schedule.
        split: The images.
        device: Where they are.
    """

    def __init__(self, recipe: Recipe, split: SplitImages, device: torch.device) -> None:
        made = Trainer(recipe, split, device=device)
        if made.recipe.precision == "fp16" or made.recipe.micro_batch:
            raise ValueError("it neither scales losses nor makes steps in parts")
        self.recipe, self.split, self.device = made.recipe, made.split, device
        self.network, self.optimizer = made.network, made.optimizer
        self.mean, self.deviation = made.classifier.mean, made.classifier.deviation
        self.call: Callable[[Tensor], Tensor] = self.network
        self.replays = self.recipe.compile == "graphs"
        if self.recipe.compile != "never":
            mode = "reduce-overhead" if self.replays else None
            self.call = torch.compile(self.network, dynamic=False, mode=mode)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.total_steps = made.total_steps
        self.steps = 0

    def epoch(self) -> float:
        """One epoch over the training images; returns the mean loss."""
        self.network.train()
        size = self.recipe.batch_size
        order = self.split.train[torch.randperm(len(self.split.train), device=self.device)]
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        for indices in order.split(size):
            images, labels = self.split.images[indices], self.split.labels[indices]
            loss, right = self.step(crop_and_flip(images, self.recipe.augment.crop), labels)
            loss_sum += loss * len(indices)
            correct += right
        return loss_sum.item() / len(order)

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step on uint8 images; returns the loss and how many were classified rightly."""
        factor = lr_factor(self.recipe.schedule, self.steps / self.total_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        x = (images.float() / 255 - self.mean) / self.deviation
        if self.replays:
            torch.compiler.cudagraph_mark_step_begin()
        # A last batch that is smaller would have to be compiled by itself.
        call = self.call if len(x) == self.recipe.batch_size else self.network
        with autocast(self.device, self.recipe.precision):
            logits = call(x)
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return loss.detach(), (logits.argmax(1) == labels).sum()


def crop_and_flip(images: Tensor, padding: int) -> Tensor:
    """Random crops of reflected borders and random mirror images, a batch at once."""
    count, _, height, width = images.shape
    padded = nn.functional.pad(images.float(), (padding,) * 4, "reflect").to(torch.uint8)
    rows, columns = torch.randint(0, 2 * padding + 1, (2, count, 1, 1), device=images.device)
    y = torch.arange(height, device=images.device)[:, None] + rows
    x = torch.arange(width, device=images.device)
    mirrored = torch.rand(count, 1, 1, device=images.device) < 0.5
    x = torch.where(mirrored, x.flip(0), x) + columns
    return padded[torch.arange(count, device=images.device)[:, None, None], :, y, x].permute(
        0, 3, 1, 2
    )
