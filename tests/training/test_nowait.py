"""Within an epoch nothing waits for a GPU; and images that are not picked out come out the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operations import OFF, OPERATIONS, generator, made
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cifartune.config import Recipe
from cifartune.config.recipe import AugmentRecipe
from cifartune.data import LabelledImages
from cifartune.report.contact_sheet import augmented
from cifartune.training import SplitImages, Trainer
from cifartune.training.augment import nowait

CPU = torch.device("cpu")

READS = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2"}
"""Operations of which the host needs the result, or its size."""


class Waits(TorchDispatchMode):
    """Notes what would wait for a GPU if it were done there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        # `lift_fresh` is torch.tensor, and `where` sends a plain number: both copy from the host.
        waits = name in READS or name == "lift_fresh"
        waits |= name == "where" and any(part.ndim == 0 for part in args[1:3])
        if name in ("index", "index_put", "index_put_"):
            is_mask = any(part is not None and part.dtype == torch.bool for part in args[1])
            is_filled = name != "index" and args[2].ndim == 0  # with one number, left on the host
            if is_filled and self.seen[-1:] == ["lift_fresh"]:
                self.seen.pop()
            waits |= is_mask and not is_filled
        if waits:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 1),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        lambda x: x.index_put_((x > 0,), torch.ones(3)),
        lambda x: torch.tensor([1.0, 2.0]),
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: torch.where(x > 0, 1.0, 0.0),
    ],
)
def test_what_waits_is_seen(wait: Callable[[Tensor], object]) -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    with Waits() as waits:
        wait(x)
    assert len(waits.seen) == 1


def test_what_does_not_wait_is_not_seen() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    with Waits() as waits:
        torch.where(x > 1, x, -x).masked_fill_(x > 2, 0.5)[torch.arange(2)].sum()
        x[x > 1] = 0.0
    assert waits.seen == []


CASES = OPERATIONS | {
    "alternate": {"flip": 0.5, "flip_mode": "alternate"},
    "copies": {"flip": 0.5, "copies": 1, "mixup": 0.5},
    "weaker": {
        **{"strength": 0.5, "policy": "randaugment", "policy_probability": 0.5},
        **{"randaugment_ops": 3, "randaugment_magnitude": 15, "mixup": 0.5, "mixup_alpha": 0.4},
        **{"cutmix": 0.5, "cutmix_alpha": 0.4},
    },
    "rarer": {
        **{"brightness": 0.5, "jitter_probability": 0.5, "rotation": 30.0},
        **{"rotation_probability": 0.5, "translate_x": 0.1, "affine_probability": 0.5},
        **{"elastic": 50.0, "elastic_probability": 0.5},
    },
}


def test_no_field_of_the_augmentation_is_left_out() -> None:
    assert {name for values in CASES.values() for name in values} == {*AugmentRecipe.model_fields}


STEPS: list[dict[str, Any]] = [
    {},
    {"precision": "bf16", "micro_batch": 24, "label_smoothing": 0.1, "hard_examples": 0.5},
    {"data.small_side": 12, "optimizer.bias_lr_scale": 8.0, "optimizer.clip_norm": 1.0},
    {"optimizer.name": "adam", "optimizer.ema_decay": 0.9, "optimizer.sam_rho": 0.05},
    {"optimizer.name": "adamw", "optimizer.lr": 0.01, "model.dropout": 0.1},
    {"optimizer.name": "lion", "optimizer.lr": 0.001},
]


@pytest.mark.parametrize(
    "values",
    [
        *(
            {f"augment.{name}": value for name, value in (OFF | case).items()}
            for case in CASES.values()
        ),
        *STEPS,
    ],
    ids=[*CASES, *("-".join(map(str, step.values())) for step in STEPS)],
)
def test_an_epoch_is_waited_for_at_its_end(
    recipe: Recipe, split: SplitImages, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    monkeypatch.setattr(nowait, "picks_out", lambda device: False)
    # On a CPU, where nothing waits, each loss is looked at.
    monkeypatch.setattr(torch, "isfinite", lambda loss: True)
    trainer = Trainer(recipe.with_values(values), split, device=CPU)
    trainer.train_on(trainer.batches()[:1])  # sends the constants
    batches = trainer.batches()[1:3]
    with Waits() as waits:
        trainer._make_steps(batches)
    assert waits.seen == ["_local_scalar_dense"] * 2  # the mean loss, and the accuracy


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU is waited for")
@pytest.mark.parametrize(
    "values", [*CASES.values(), {"copies": 2, "policy": "autoaugment", "cutmix": 0.5}]
)
def test_a_gpu_is_not_waited_for(
    recipe: Recipe, split: SplitImages, values: dict[str, Any]
) -> None:
    augment = {f"augment.{name}": value for name, value in (OFF | values).items()}
    trainer = Trainer(recipe.with_values({"optimizer.name": "muon", **augment}), split)
    trainer.train_on(trainer.batches()[:2])
    indices = trainer.batches()[0]
    torch.cuda.set_sync_debug_mode("error")
    try:
        x, targets = trainer._augmented(indices)
        trainer._backward(x, targets)
        trainer.apply_gradients(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def both(cifar: LabelledImages, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Tensor]]:
    """Augments images as a CPU does it, and then as a GPU."""
    images = torch.from_numpy(cifar.images[:64])

    def run(recipe: AugmentRecipe) -> list[Tensor]:
        found = [images]
        for picks in (True, False):
            monkeypatch.setattr(nowait, "picks_out", lambda device, picks=picks: picks)
            found.append(augmented(images, recipe, generator(3)))
        return found

    return run


@pytest.mark.parametrize("values", OPERATIONS.values(), ids=OPERATIONS)
def test_all_images_are_computed_where_none_is_picked_out(
    both: Callable[..., list[Tensor]], values: dict[str, Any]
) -> None:
    if "group_probability" in values:
        values = values | {"elastic": 0.0}  # draws as many numbers as images get it
    images, picked, whole = both(made(values))
    assert not torch.equal(picked, images)
    assert torch.equal(picked, whole)


def test_the_same_images_are_displaced(both: Callable[..., list[Tensor]]) -> None:
    images, picked, whole = both(made({"elastic": 100.0, "elastic_probability": 0.5}))
    changed = [(found != images).flatten(1).any(1) for found in (picked, whole)]
    assert torch.equal(*changed) and 20 < changed[0].sum() < 44
