"""Several workers: they make the steps that one would make."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cifartune.config import Recipe
from cifartune.models.errors import UnfitNetwork
from cifartune.training import EpochResult, NonFiniteLoss, SplitImages, Trainer
from cifartune.training.workers import Workers

COUNT = 2


def test_shares_are_the_whole() -> None:
    for images in (2, 7, 8, 100):
        for count in (1, 2, 3, 5):
            shares = [Workers(rank, count).share(images) for rank in range(count)]
            taken = [i for own, _ in shares for i in range(*own.indices(images))]
            weights = sum(weight * (own.stop - own.start) for own, weight in shares)
            assert weights == pytest.approx(images)
            if images >= count:
                assert taken == list(range(images))
                sizes = {own.stop - own.start for own, _ in shares}
                assert max(sizes) - min(sizes) <= 1
            else:
                assert taken == list(range(images)) * count
    every = [Workers(rank, 3).every(torch.arange(7)).tolist() for rank in range(3)]
    assert sorted(i for own in every for i in own) == list(range(7))


def test_what_the_first_fails_of_all_fail_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the others would wait for an answer, and take the next for it."""
    sent: list[Any] = []

    def broadcast(said: list[Any], src: int, group: Any) -> None:
        if sent:
            said[:] = sent
        else:
            sent.extend(said)

    def ask() -> str:
        raise UnfitNetwork("too deep")

    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    for rank in range(COUNT):
        with pytest.raises(UnfitNetwork, match="too deep"):
            Workers(rank, COUNT).agree(ask)
    sent.clear()
    assert [Workers(rank, COUNT).agree(lambda: "yes") for rank in range(COUNT)] == ["yes"] * COUNT


@pytest.mark.parametrize(
    ("images", "count", "micro_batch"), [(457, 2, 228), (129, 2, 64), (100, 3, 33), (3, 4, 1)]
)
def test_all_make_as_many_parts(
    images: int, count: int, micro_batch: int, recipe: Recipe, split: SplitImages
) -> None:
    """Also where their shares differ by an image."""
    found = []
    for rank in range(count):
        trainer = Trainer(recipe.with_values({"micro_batch": micro_batch}), split)
        trainer.workers = Workers(rank, count)
        own, _ = trainer.workers.share(images)
        sizes = trainer.part_sizes(own.stop - own.start, images)
        assert sum(sizes) == own.stop - own.start and min(sizes) >= min(2, images)
        found.append(len(sizes))
    assert len(set(found)) == 1


def work(rank: int, folder: Path, recipe: Recipe, split: SplitImages, stop_after: int) -> None:
    """One worker: trains, from the checkpoint if there is one, and keeps what it ends with."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=COUNT
    )
    try:
        trainer = Trainer(recipe, split, workers=Workers(rank, COUNT))
        checkpoint = folder / "checkpoint.pt"
        if checkpoint.exists():
            trainer.load_state_dict(torch.load(checkpoint, weights_only=True))
        dist.barrier()
        results: list[EpochResult] = []
        failed = ""
        try:
            for result in trainer:
                results.append(result)
                if result.epoch == stop_after:
                    break
        except NonFiniteLoss as failure:
            failed = str(failure)
        state = trainer.state_dict()
        end = {"results": results, "state": state, "failed": failed}
        torch.save(end, folder / f"{rank}.pt")
        if rank == 0 and stop_after:
            torch.save(state, checkpoint)
    finally:
        dist.destroy_process_group()


def together(
    folder: Path, recipe: Recipe, split: SplitImages, stop_after: int = 0
) -> list[dict[str, Any]]:
    """What each of two workers ends with."""
    (folder / "rendezvous").unlink(missing_ok=True)
    spawn: Any = mp.get_context("spawn")
    processes = [
        spawn.Process(target=work, args=(rank, folder, recipe, split, stop_after))
        for rank in range(COUNT)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * COUNT
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(COUNT)]


def learned(results: list[EpochResult]) -> list[float]:
    return [
        value
        for r in results
        for value in (r.train_loss, r.train_accuracy, r.val_loss, r.val_accuracy)
    ]


PLAIN: dict[str, Any] = {"augment.crop": 2, "augment.flip": 0.5, "batch_size": 64, "epochs": 2}


@pytest.mark.parametrize(
    "values",
    [
        {},  # 300 images: the last batch of an epoch is smaller
        # And here it is one image for two, and left out.
        pytest.param({"batch_size": 299}, marks=pytest.mark.slow),
        pytest.param({"augment.cutmix": 0.5, "label_smoothing": 0.1}, marks=pytest.mark.slow),
        # Of a step in parts, batch norms would see others.
        pytest.param(
            {"model.name": "tutorial_net", "model.resolution": 32, "micro_batch": 20},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"optimizer.sam_rho": 0.05, "optimizer.clip_norm": 0.5, "optimizer.ema_decay": 0.9},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"model.name": "resnet18", "model.trainable": "last_1", "augment.copies": 1},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_learn_what_one_does(
    values: dict[str, Any], recipe: Recipe, split: SplitImages, tmp_path: Path
) -> None:
    recipe = recipe.with_values(PLAIN | values)
    alone = Trainer(recipe, split)
    expected = learned(list(alone))
    first, second = together(tmp_path, recipe, split)
    assert learned(first["results"]) == pytest.approx(expected, rel=2e-3, abs=2e-3)
    assert learned(first["results"]) == learned(second["results"])
    for name, value in alone.state_dict()["network"].items():
        for other in (first, second):
            torch.testing.assert_close(other["state"]["network"][name], value, rtol=1e-2, atol=2e-3)
            assert torch.equal(other["state"]["network"][name], first["state"]["network"][name])


@pytest.mark.slow
def test_they_go_on_bit_for_bit(recipe: Recipe, split: SplitImages, tmp_path: Path) -> None:
    """Also where each draws its own dropout."""
    recipe = recipe.with_values(PLAIN | {"model.dropout": 0.3, "epochs": 3})
    folders = [tmp_path / name for name in ("unbroken", "broken")]
    for folder in folders:
        folder.mkdir()
    unbroken = together(folders[0], recipe, split)[0]
    together(folders[1], recipe, split, stop_after=1)
    broken = together(folders[1], recipe, split)[1]
    assert learned(broken["results"]) == learned(unbroken["results"])[4:]
    for name, value in unbroken["state"]["network"].items():
        assert torch.equal(broken["state"]["network"][name], value)


def test_they_fail_together(recipe: Recipe, split: SplitImages, tmp_path: Path) -> None:
    diverges = {"optimizer.lr": 10.0, "optimizer.momentum": 0.999, "optimizer.weight_decay": 1.0}
    recipe = recipe.with_values({**diverges, "batch_size": 8, "schedule.warmup": 0.0})
    ends = together(tmp_path, recipe, split)
    assert [end["failed"] for end in ends] == ["the loss was not finite in epoch 1"] * 2
