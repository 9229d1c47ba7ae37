from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifartune.data.splits import Splits, make_splits
from cifartune.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10, dtype=np.uint8), 500))


def draw(**changes: Any) -> Splits:
    values = {"validation": 500, "train_subset": 1500, "folds": 5, "seed": 0}
    return make_splits(LABELS, **(values | changes))


def assert_stratified(indices: np.ndarray[Any, Any]) -> None:
    counts = np.bincount(LABELS[indices], minlength=10)
    assert counts.max() - counts.min() <= 2


def test_parts_have_the_sizes_asked_for_and_do_not_meet() -> None:
    splits = draw(stand_in=300)
    parts = {"stand_in": 300, "validation": 500, "train": 1500}
    for name, size in parts.items():
        indices = getattr(splits, name)
        assert len(np.unique(indices)) == size
        assert np.array_equal(indices, np.sort(indices))
        assert_stratified(indices)
    for one, other in combinations(parts, 2):
        assert not np.intersect1d(getattr(splits, one), getattr(splits, other)).size


def test_all_that_is_left_trains_by_default() -> None:
    splits = draw(train_subset=None)
    assert np.array_equal(np.union1d(splits.train, splits.validation), np.arange(5000))


@pytest.mark.parametrize("folds", [2, 3, 5, 7])
def test_folds_hold_out_every_image_once(folds: int) -> None:
    splits = draw(folds=folds)
    held_out = [splits.held_out(fold) for fold in range(folds)]
    assert np.array_equal(np.sort(np.concatenate([held for _, held in held_out])), np.arange(5000))
    for train, held in held_out:
        assert np.array_equal(np.union1d(train, held), np.arange(5000))
        assert not np.intersect1d(train, held).size
        assert_stratified(held)
        assert abs(len(held) - 5000 / folds) <= 10


def test_a_smoke_refit_sees_what_the_search_saw() -> None:
    splits = draw(stand_in=300, folds=2)
    pool = np.union1d(splits.train, splits.validation)
    for fold in (0, 1):
        assert np.array_equal(np.union1d(*splits.held_out(fold)), pool)
    assert (splits.fold[splits.stand_in] == -1).all()


def test_splits_follow_the_seed() -> None:
    one, same, other = draw(), draw(), draw(seed=1)
    for name in ("train", "validation", "fold"):
        assert np.array_equal(getattr(one, name), getattr(same, name))
        assert not np.array_equal(getattr(one, name), getattr(other, name))


def test_splits_are_the_same_with_every_version_of_every_library() -> None:
    splits = draw(stand_in=10)
    assert splits.stand_in[:3].tolist() == [1403, 1435, 1609]
    assert splits.fold[splits.train[:8]].tolist() == [0, 0, 4, 4, 4, 1, 3, 4]


def test_a_small_budget_is_a_part_of_a_large_one() -> None:
    small, large = draw(train_subset=100), draw(train_subset=4000)
    assert np.array_equal(small.validation, large.validation)
    assert np.isin(small.train, large.train).all()


def test_folds_have_nothing_to_do_with_the_search_split() -> None:
    splits = draw()
    shares = np.bincount(splits.fold[splits.validation], minlength=5) / len(splits.validation)
    assert (abs(shares - 0.2) < 0.06).all()


@given(
    st.integers(10, 4990), st.none() | st.integers(10, 4990), st.integers(2, 20), st.integers(0, 99)
)
def test_any_sizes_that_fit_are_served(
    validation: int, train_subset: int | None, folds: int, seed: int
) -> None:
    sizes = {"validation": validation, "train_subset": train_subset, "folds": folds, "seed": seed}
    if validation + (train_subset or 1) > 5000:
        with pytest.raises(ValueError, match="cannot be taken from 5000"):
            draw(**sizes)
        return
    splits = draw(**sizes)
    assert len(splits.validation) == validation
    assert len(splits.train) == (train_subset or 5000 - validation)
    assert_stratified(splits.train)
    assert_stratified(splits.validation)


def test_splits_survive_a_file(tmp_path: Path) -> None:
    splits = draw(stand_in=100)
    splits.save(tmp_path / "splits.npz")
    loaded = Splits.load(tmp_path / "splits.npz")
    for name, array in vars(splits).items():
        assert np.array_equal(getattr(loaded, name), array)
        assert getattr(loaded, name).dtype == array.dtype


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04half of it"])
def test_a_file_of_splits_that_is_damaged_is_one_line(
    content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "splits.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"splits\.npz: cannot be read: .*; remove it, and"):
        Splits.load(path)
