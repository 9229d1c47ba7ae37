"""Use from Python: the page of examples, run from top to bottom, and what is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cifartune import load, search, train
from cifartune.config.load import make_recipe, make_space
from cifartune.errors import UserError

PAGE = Path(__file__).parent.parent / "docs" / "PYTHON.md"


def blocks(*, with_search: bool) -> str:
    """The page's code, with or without what runs a search."""
    found = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert sum("found = search(" in block for block in found) == 1
    return "".join(block for block in found if with_search or "found = search(" not in block)


def run_page(code: str, folder: Path, smoke_run: Path, data_root: Path) -> str:
    (folder / "runs").mkdir()
    (folder / "runs" / smoke_run.name).symlink_to(smoke_run)
    environment = {"CIFARTUNE_DATA": str(data_root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:cifartune", "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_of_examples(tmp_path: Path, smoke_run: Path, data_root: Path) -> None:
    told = run_page(blocks(with_search=False), tmp_path, smoke_run, data_root)
    assert re.search(r"^1 \d+\.\d% \d+\.\d s$", told, re.MULTILINE)
    assert re.search(r"% of 1,024 images are wrong, 2 folds$", told, re.MULTILINE)
    assert "2 networks, or 1" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.safetensors", "runs"]


@pytest.mark.slow
def test_the_page_with_its_search(tmp_path: Path, smoke_run: Path, data_root: Path) -> None:
    run_page(blocks(with_search=True), tmp_path, smoke_run, data_root)
    found = load("rates-smoke", runs=tmp_path / "runs")
    assert found.is_finished and len(found.trials()) == 2


def test_a_seed_is_the_trainings_own_and_no_spaces() -> None:
    recipe = make_recipe({"epochs": 3, "seed": 5}, source="recipe")
    assert (recipe.epochs, recipe.seed) == (3, 5)
    assert make_space({"name": "next", "base": recipe}, source="space").base.seed == 0
    for seed in (-1, 2**63, "5", True):
        with pytest.raises(UserError, match=r"^recipe: seed: must be a whole number from 0"):
            make_recipe({"seed": seed}, source="recipe")


def test_what_is_imported_is_the_function_whatever_was_imported_before() -> None:
    code = """
import sys
import cifartune, cifartune.api, cifartune.results
from cifartune import load, search, train
assert not {"torch", "ray", "pandas", "mlflow"} & sys.modules.keys()
import cifartune.stages, cifartune.training_run, cifartune.tuning.search
from cifartune import search
assert callable(search) and callable(cifartune.search) and "search" in dir(cifartune)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


BASE: dict[str, Any] = {"model": {"name": "speednet_small"}, "epochs": 1}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"epoch": 3}, r"^recipe: epoch: unknown key; did you mean epochs\?$"),
        ({"optimizer": {"lr": 30}}, r"^recipe: optimizer\.lr: must be at most 10, got 30$"),
        (
            {"epochs": 0, "tta": "flop"},
            r"^recipe: epochs: .*\nrecipe: tta: must be none, .*mean flip\?$",
        ),
        ("none.yaml", r"^none\.yaml: no such file"),
    ],
)
def test_a_recipe_that_breaks_rules(recipe: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(recipe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 49_000}, "images=49000, validation=5000: .*there are 50,000 images for both"),
        ({"images": 1}, "two training images are needed"),
        ({"validation": -1}, "two training images are needed"),
        ({"seed": -1}, r"^train: seed=-1: must be between 0 and "),
        ({"device": "gpu"}, "^train: device=gpu: .*device"),
    ],
)
def test_options_that_are_refused(
    options: dict[str, Any], message: str, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFARTUNE_DATA", str(data_root))
    with pytest.raises(UserError, match=message):
        train(BASE, **options)


def test_training_on_all_images_listens_to_none(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFARTUNE_DATA", str(data_root))
    with pytest.raises(UserError, match="listens to validation images, and validation is 0"):
        train({**BASE, "stopping": {"keep": "best"}}, validation=0)
    assert train(BASE, validation=0).history == []


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"name": "a", "base": BASE, "serch": {}}, r"^space: serch: unknown key; .*search\?$"),
        ({"base": BASE}, r"^space: name: is required$"),
        (
            {"name": "a", "base": BASE, "parameters": {"optimizer.lr": {"min": 1, "max": 0.1}}},
            r"^space: parameters\.optimizer\.lr: .*min",
        ),
        ("none.yaml", r"^none\.yaml: no such file"),
    ],
)
def test_a_space_that_breaks_rules(space: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        search(space, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_folders_where_no_run_can_be_kept(tmp_path: Path) -> None:
    for folder, sign in (("what?", r"\?"), ("a%20b", "%20"), ("{x}", "{")):
        with pytest.raises(UserError, match=f"a database cannot have '{sign}' in its path$"):
            search({"name": "a", "base": BASE}, runs=tmp_path / folder / "runs")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"--runs s3:/bucket/runs: .*not at an address"):
        search({"name": "a", "base": BASE}, runs="s3://bucket/runs")
