"""Every file in search_spaces/: valid, readable, planned; smoke-run in the slow tests."""

import json
from pathlib import Path

import pytest
from searches import QUICK, cifartune

from cifartune.config import load_space

SPACES = sorted(QUICK.parent.glob("*.yaml"))
each_space = pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)


@each_space
def test_a_space_is_valid_and_means_what_it_says(path: Path) -> None:
    assert load_space(path).notes() == []


@each_space
def test_a_space_opens_with_its_command_and_its_cost(path: Path) -> None:
    first, *others = path.read_text().splitlines()
    assert first.startswith(f"# cifartune search search_spaces/{path.name}")
    comment = "\n".join(line for line in others[:12] if line.startswith("#"))
    assert any(unit in comment for unit in ("minute", "hour", " min ", "day"))


@each_space
def test_a_space_is_planned(path: Path, data_root: Path, tmp_path: Path) -> None:
    result = cifartune(
        "plan", path, "--json", cwd=tmp_path, CIFARTUNE_DATA=str(data_root), timeout=280
    )
    assert result.returncode == 0, result.stderr
    plan, space = json.loads(result.stdout), load_space(path)
    assert plan["trials"] == space.search.num_trials
    # The first trial goes to its end, and all get the grace period at least.
    grace = space.scheduler.grace_period
    assert plan["epochs"] >= (plan["trials"] - 1) * grace + space.max_epochs
    assert plan["epochs"] < plan["trials"] * space.max_epochs
    assert plan["reaching"]["1"] == plan["trials"]
    folds = space.refit.folds * space.refit.top_k
    assert plan["refit_epochs"] == folds * (space.refit.epochs or space.base.epochs)
    slowest = min(plan["rates"].values())
    fastest = max(plan["rates"].values())
    for stage, images in (("search", plan["images"]), ("refit", plan["refit_images"])):
        seconds = plan[stage] * plan["slots"]
        assert images / fastest < seconds < 2 * images / slowest
    assert plan["memory"] > 3e8 and plan["disk"] > 1e6
    assert list(tmp_path.iterdir()) == []  # a plan leaves nothing


@pytest.mark.slow
@each_space
def test_a_space_runs(path: Path, data_root: Path, tmp_path: Path) -> None:
    result = cifartune(
        "search", path, "--smoke", cwd=tmp_path, CIFARTUNE_DATA=str(data_root), timeout=280
    )
    assert result.returncode == 0, result.stderr
    assert "Winner" in result.stdout
