"""The documents that are made from measurements, and the loop that the trainer is held against."""

import sys
from pathlib import Path

import pytest
import torch

from cifartune.config import Recipe
from cifartune.training import SplitImages

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


def test_the_documents_say_what_was_measured() -> None:
    from performance import HEAD, sections
    from sources import table

    performance = "\n".join([HEAD, *sections(), ""])
    assert (ROOT / "docs" / "PERFORMANCE.md").read_text() == performance
    assert (ROOT / "docs" / "SOURCES.md").read_text() == table()


def test_the_best_schedule_of_jobs_is_found() -> None:
    from quick_search import best_end

    assert best_end([3, 3, 2, 2, 2], 2) == 6  # the longest first would end at 7
    assert best_end([5.0] * 15, 2) == 40
    assert best_end([9, 1, 1], 3) == 9
    assert best_end([9, 1, 1], 4) == 9 and best_end([1] * 8, 4) == 2


def test_the_bare_loop_learns(recipe: Recipe, split: SplitImages) -> None:
    from bare_loop import BareLoop

    loop = BareLoop(recipe.with_values({"epochs": 4}), split, torch.device("cpu"))
    losses = [loop.epoch() for _ in range(4)]
    assert loop.steps == loop.total_steps == 20
    assert losses[-1] < losses[0] < 3


def test_a_bare_crop_shows_parts_of_the_image_or_its_mirror_image() -> None:
    from bare_loop import crop_and_flip

    image = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(1, 3, 8, 8).expand(200, -1, -1, -1)
    torch.manual_seed(0)
    found = crop_and_flip(image, 1)
    assert (found.shape, found.dtype) == (image.shape, torch.uint8)
    padded = torch.nn.functional.pad(image[:1].float(), (1,) * 4, "reflect").to(torch.uint8)[0]
    windows = [padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    seen = [
        index
        for one in found
        for index, window in enumerate([*windows, *(w.flip(2) for w in windows)])
        if torch.equal(one, window)
    ]
    assert len(seen) == 200 and len(set(seen)) == 18
