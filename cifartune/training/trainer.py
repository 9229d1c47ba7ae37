"""The trainer: one recipe on one split, an epoch at a time."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F

from cifartune.config.effects import repeats_inputs
from cifartune.config.recipe import Recipe
from cifartune.models import build_model
from cifartune.models.freezing import set_training
from cifartune.models.speednet import SpeedNet
from cifartune.schedule import lr_factor
from cifartune.training.averaging import WeightAverage
from cifartune.training.classifier import Classifier, eval_batch, predict
from cifartune.training.cut import Tail
from cifartune.training.device import MEMORY_FORMATS, autocast, choose_device, resolve
from cifartune.training.failures import NonFiniteLoss
from cifartune.training.features import FrozenFeatures
from cifartune.training.feed import Feed, shrink
from cifartune.training.history import EpochResult, has_ended, kept_epoch, listens, plateaus
from cifartune.training.images import Normalization, SplitImages
from cifartune.training.optim import build_optimizer
from cifartune.training.random_state import get_random_state, own_random_state, set_random_state
from cifartune.training.sharpness import climb
from cifartune.training.targets import Targets, hardest
from cifartune.training.workers import Workers

WHITENING_IMAGES = 5000
Network = nn.Module | Tail  # or the end of one, where what comes before is kept


def train(
    recipe: Recipe, split: SplitImages, *, device: torch.device | None = None
) -> Iterator[EpochResult]:
    """Trains `recipe` on `split` and yields one result an epoch; to stop, ask for no further one.

    Raises:
        NonFiniteLoss: The loss became infinite or not a number.
    """
    yield from Trainer(recipe, split, device=device)


class Trainer:
    """Trains one recipe; an iterator over its epochs whose state can be saved between any two.

    On the CPU the same recipe, split and number of threads give the same weights, bit for bit,
    also across `state_dict` and `load_state_dict`. Two trainers in one process do not disturb
    each other's random numbers.

    Args:
        recipe: What to train. What it leaves to `auto` becomes what is fast in most cases;
            `cifartune.tuning.modes` measures.
        split: Images and indices; moved to `device` if they are elsewhere.
        device: Default: the GPU where there is one.
        workers: Who train it together, each by a trainer like this. Default: this one alone.

    Attributes:
        network: What is trained.
        recipe: With nothing left to `auto`.
        classifier: What is evaluated and kept: `network`, or the moving average of its weights,
            with everything around it. After the last epoch, as in the epoch that is kept.
        history: The results of all epochs so far.
        scaler: Scales losses up where the precision is fp16, whose small gradients would vanish.

    Raises:
        ValueError: There are too few training images, or no validation images to listen to.
    """

    def __init__(
        self,
        recipe: Recipe,
        split: SplitImages,
        *,
        device: torch.device | None = None,
        workers: Workers | None = None,
    ) -> None:
        if len(split.train) < 2 or (listens(recipe.stopping) and not len(split.validation)):
            raise ValueError("two training images are needed at least, or one to listen to")
        self.device = device or choose_device()
        self.workers = workers or Workers()
        self.recipe = recipe = resolve(recipe, self.device)
        self.split = split.to(self.device)
        self.history: list[EpochResult] = []
        with own_random_state(self.device):
            torch.manual_seed(recipe.seed)
            self.network = build_model(recipe.model)
            self._random_state = get_random_state(self.device)
        normalization = Normalization.make(recipe.data.normalize, self.split)
        self.classifier = Classifier(self.network, recipe, normalization)
        self.feed = Feed(recipe, self.split, self.classifier.prepare)
        if isinstance(self.network, SpeedNet) and self.network.whitens:
            some = self.feed.inputs(self.split.train[:WHITENING_IMAGES])
            self.network.init_from_images(some.cpu())
        self.network.to(self.device).to(memory_format=MEMORY_FORMATS[recipe.memory_format])
        self.scaler = GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.optimizer = build_optimizer(self.network, recipe.optimizer, self.scaler)
        self._peak_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self._average: WeightAverage | None = None
        if recipe.optimizer.ema_decay:
            self._average = WeightAverage(self.network, recipe.optimizer.ema_decay)
            self.classifier.network = self._average.network
        self._best: dict[str, Tensor] = {}  # the weights of the best epoch, where that is kept
        self._trained: Network = self.workers.wrap(self.network)
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._evaluated: Network = self.classifier.network
        self._features = self._keep_features()
        if self._features:
            self._trained = self._features.tail(self.network)
            self._evaluated = self._features.tail(self.classifier.network)
        if recipe.compile != "never":
            from cifartune.training.compiling import CompiledNetwork  # two seconds to import

            graphs = recipe.compile == "graphs" and not recipe.micro_batch
            self._compiled = CompiledNetwork(self._trained, graphs=graphs)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left: all are done, or the recipe's stopping ends the run."""
        is_done = self.epoch * self.steps_per_epoch >= self.total_steps
        return is_done or has_ended(self.recipe.stopping, self.history)

    @property
    def keeps_features(self) -> bool:
        """Whether what a frozen part makes of an image is computed in the first epoch alone."""
        return self._features is not None

    @property
    def kept_epoch(self) -> int:
        """The epoch, of those so far, whose weights and values count."""
        return kept_epoch(self.recipe.stopping, self.history)

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch. The last batch may be smaller; one of a single image is left out."""
        whole, rest = divmod(len(self.split.train), self.recipe.batch_size)
        return whole + (rest > 1)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, if nothing ends it before."""
        return self.recipe.epochs * self.steps_per_epoch

    def __iter__(self) -> Iterator[EpochResult]:
        while not self.is_over:
            yield self._run_epoch()

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that is needed to go on: a tree of tensors and plain values.

        It can be written by `torch.save` and read by `torch.load` with `weights_only=True`.
        """
        return copy.deepcopy(
            {
                "recipe": self.recipe.model_dump(),
                "history": [asdict(result) for result in self.history],
                "network": self.network.state_dict(),
                "average": self._average.network.state_dict() if self._average else {},
                "best": self._best,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "generator": self.feed.generator.get_state(),
                "random_state": self._random_state,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state`, of the same recipe, which should lie on the CPU.

        The optimiser's counters stay where they are: on a GPU, each step would wait to read them.

        Raises:
            ValueError: The state belongs to another recipe.
        """
        if state["recipe"] != self.recipe.model_dump():
            raise ValueError("the checkpoint belongs to another recipe")
        self.history = [EpochResult(**result) for result in state["history"]]
        self.network.load_state_dict(state["network"])
        if self._average:
            self._average.network.load_state_dict(state["average"])
        self._best = {name: tensor.to(self.device) for name, tensor in state["best"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.feed.generator.set_state(state["generator"].cpu())
        self._random_state = [part.cpu() for part in state["random_state"]]
        if self._features:
            self._features.forget()

    def predict(self, images: Tensor) -> Tensor:
        """Logits, float32 (N, 10) on the trainer's device, of uint8 images (N, 3, 32, 32).

        Averages over the recipe's test-time augmentation.
        """
        return predict(self.classifier, images, precision=self.recipe.precision)

    def batches(self) -> Sequence[Tensor]:
        """The training images in a new order: int64 indices, a batch for each step of an epoch."""
        batches: Sequence[Tensor] = self.feed.order().split(self.recipe.batch_size)
        return batches[: self.steps_per_epoch]

    def train_on(self, batches: Sequence[Tensor]) -> tuple[float, float]:
        """Makes one step on each batch of indices, from the first step of the coming epoch on.

        Returns:
            Mean loss and accuracy over the images of `batches`, each as its step saw it.

        Raises:
            NonFiniteLoss: On the CPU, at the step whose loss was not finite.
        """
        with own_random_state(self.device):
            set_random_state(self._random_state, self.device)
            self.workers.reseed(self.recipe.seed, self.epoch)
            loss, accuracy = self._make_steps(batches)
            self._random_state = get_random_state(self.device)
        return loss, accuracy

    def set_lr(self, step: int) -> None:
        """Gives the optimiser the learning rates of `step`, counted from the run's start."""
        factor = lr_factor(self.recipe.schedule, step / self.total_steps, self._plateaus())
        for group, peak in zip(self.optimizer.param_groups, self._peak_lrs, strict=True):
            group["lr"] = peak * factor

    def _plateaus(self) -> int:
        """How often the training loss has stopped falling since the warm-up."""
        schedule = self.recipe.schedule
        if schedule.name != "plateau":
            return 0
        warm = math.ceil(schedule.warmup * self.recipe.epochs)
        return plateaus((r.train_loss for r in self.history[warm:]), schedule.patience)

    def apply_gradients(self, step: int) -> None:
        """Moves the weights along the gradients that they hold, in `step` of the run."""
        if clip_norm := self.recipe.optimizer.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._average:
            self._average.update(step + 1)

    def _run_epoch(self) -> EpochResult:
        start = time.perf_counter()
        loss, accuracy = self.train_on(self.batches())
        trained = time.perf_counter()
        val_loss, val_accuracy = self.evaluate(self.split.validation)
        result = EpochResult(
            epoch=self.epoch + 1,
            train_loss=loss,
            train_accuracy=accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            lr=self.optimizer.param_groups[0]["lr"],
            images_per_second=len(self.split.train) / (trained - start),
            seconds=time.perf_counter() - start,
        )
        if not result.is_finite:
            raise NonFiniteLoss(result.epoch)
        self.history.append(result)
        if self.recipe.stopping.keep == "best":
            self._keep_best()
        return result

    def _keep_best(self) -> None:
        """Keeps the weights if they are the best so far; puts the best in place at the end."""
        weights = self.classifier.network.state_dict()
        if self.kept_epoch == self.epoch:
            self._best = copy.deepcopy(weights)
        if self.is_over:
            self.classifier.network.load_state_dict(self._best)

    def _make_steps(self, batches: Sequence[Tensor]) -> tuple[float, float]:
        """Sums stay on the device until the end."""
        set_training(self.network)
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device, dtype=torch.float64)
        seen = 0
        for step, indices in enumerate(batches, start=self.epoch * self.steps_per_epoch):
            self.set_lr(step)
            x, targets = self._augmented(indices)
            x = shrink(x, self.small_side(step))
            self.optimizer.zero_grad(set_to_none=True)
            logits, losses = self._backward(x, targets)
            if rho := self.recipe.optimizer.sam_rho:
                climb(self.network, rho, partial(self._backward, x, targets))
            self.apply_gradients(step)
            own, weight = self.workers.share(len(x))
            loss = losses.sum() * weight
            loss_sum += loss
            correct += targets.part(own).correct(logits) * weight
            seen += len(x)
            # On a GPU looking would wait for it, and workers must agree: there an epoch is ended.
            if self.device.type == "cpu" and self.workers.is_alone and not torch.isfinite(loss):
                raise NonFiniteLoss(self.epoch + 1)
        self.workers.add_up(loss_sum, correct)
        return loss_sum.item() / seen, correct.item() / seen

    def _backward(self, x: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Adds the gradients of a batch.

        Returns:
            Logits and loss of each image of this worker's share.
        """
        whole, (own, weight) = len(x), self.workers.share(len(x))
        x, targets = x[own], targets.part(own)
        weight *= self.workers.count  # gradients will be averaged, and are to be added up
        sizes = self.part_sizes(len(x), whole)
        logits, losses = [], []
        for index, (part, aim) in enumerate(zip(x.split(sizes), targets.split(sizes), strict=True)):
            with self.workers.averaging(self._trained, is_last=index == len(sizes) - 1):
                with self.workers.norms():
                    out = self._forward(self._compiled_for(part) or self._trained, part)
                loss = aim.losses(out, self.recipe.label_smoothing)
                mean = hardest(loss, self.recipe.hard_examples).mean()
                self.scaler.scale(mean * (len(part) / whole * weight)).backward()
            logits.append(out.detach())
            losses.append(loss.detach())
        return torch.cat(logits), torch.cat(losses)

    def _compiled_for(self, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        """For the last batch of an epoch, which may be smaller, compiling anew does not pay."""
        batch = min(self.recipe.batch_size, len(self.split.train))
        usual = self.part_sizes(batch * (1 + self.recipe.augment.copies))
        return self._compiled if len(x) in usual else None

    def part_sizes(self, images: int, whole: int | None = None) -> list[int]:
        """The parts in which a step of so many images is made: alike, and none of one image.

        Workers make as many, although their shares of the `whole` batch may differ.
        """
        least, most = self.workers.bounds(whole or images)
        wanted = math.ceil(most / (self.recipe.micro_batch or most))
        parts = max(1, min(wanted, least // 2))
        return [images // parts + (part < images % parts) for part in range(parts)]

    @torch.inference_mode()
    def evaluate(self, images: Tensor) -> tuple[float, float]:
        """Mean loss and accuracy over the images at `images`, int64 indices.

        In evaluation mode, without label smoothing and test-time augmentation; of none not numbers.
        """
        if not len(images):
            return math.nan, math.nan
        self.classifier.network.eval()
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for indices in self.workers.every(images).split(eval_batch(self.recipe)):
            labels = self.split.labels[indices]
            logits = self._forward(self._evaluated, self._fixed_inputs(indices))
            loss_sum += F.cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
        self.workers.add_up(loss_sum, correct)
        return loss_sum.item() / len(images), correct.item() / len(images)

    def _keep_features(self) -> FrozenFeatures | None:
        """Keeps what the frozen part makes of an image, where that is the same in each epoch."""
        if not repeats_inputs(self.recipe) or not self.workers.is_alone:
            return None
        images = torch.cat([self.split.train, self.split.validation])
        with self._autocast():
            return FrozenFeatures.make(self.network, self.feed.inputs(images[:4]), images.unique())

    def _fixed_inputs(self, indices: Tensor) -> Tensor:
        """What the network gets of images that nothing changes, or what its trained part gets."""
        if self._features is None:
            return self.feed.inputs(indices)
        with self._autocast():
            return self._features.features(indices, self.feed.inputs)

    def _augmented(self, indices: Tensor) -> tuple[Tensor, Targets]:
        """The network's input, or what its trained part gets, and what to learn from it."""
        if self._features:
            return self._fixed_inputs(indices), Targets(self.split.labels[indices])
        return self.feed.augmented(indices, self.epoch)

    def small_side(self, step: int) -> int:
        """The side in pixels to which images are shrunk in `step` of the run; 0: they are not."""
        data = self.recipe.data
        return data.small_side if step < data.small_share * self.total_steps else 0

    def _forward(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with self._autocast():
            logits: Tensor = network(x)
        return logits.float()

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.recipe.precision)
