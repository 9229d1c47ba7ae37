"""`--set`: single keys of a file, changed on the command line."""

from pathlib import Path
from typing import Any

import pytest

from cifartune.config import load_space
from cifartune.errors import UserError

FILE = """\
name: a
base:
  model: {name: speednet}
  epochs: 30
parameters:
  optimizer.name: {values: [sgd, adamw, muon]}
  optimizer.lr: {lower: 0.01, upper: 1.0, log: true}
  optimizer.momentum: {min: 0.8, max: 0.98, when: {optimizer.name: sgd}}
search: {num_samples: 20}
points: [{optimizer.lr: 0.2}]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "f.yaml"
    file.write_text(FILE)
    return file


def told(path: Path, *overrides: str) -> list[str]:
    """The messages, with the file's folder left out."""
    with pytest.raises(UserError) as caught:
        load_space(path, overrides)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("name=b", "name", "b"),
        ("base.epochs=12", "base.epochs", 12),
        ("base.optimizer.lr=3e-1", "base.optimizer.lr", 0.3),
        ("base.tta = flip", "base.tta", "flip"),
        ("refit.epochs=null", "refit.epochs", None),
        ("search.num_trials=8", "search.num_trials", 8),
        ("search.max_trials=8", "search.num_trials", 8),
        ("search.num_samples=8", "search.num_trials", 8),
        ("search.time_budget=90s", "search.time_budget", 90.0),
        ("resources.gpus=0.5", "resources.gpus", 0.5),
        ("points=[]", "points", []),
        ("constraints.params.max=1e6", "constraints.params.max", 1e6),
    ],
)
def test_any_key_can_be_set(path: Path, override: str, place: str, value: Any) -> None:
    found: Any = load_space(path, [override])
    for part in place.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "name", "attribute", "value"),
    [
        ("parameters.optimizer.lr.max=0.5", "optimizer.lr", "max", 0.5),
        ("parameters.optimizer.lr.upper=0.5", "optimizer.lr", "max", 0.5),
        ("parameters.optimizer.lr.minval=0.05", "optimizer.lr", "min", 0.05),
        ("parameters.optimizer.lr.log=false", "optimizer.lr", "log", False),
        (
            "parameters.optimizer.name.values=[sgd, muon]",
            "optimizer.name",
            "values",
            ["sgd", "muon"],
        ),
        (
            "parameters.optimizer.momentum.when.optimizer.name=[sgd, muon]",
            "optimizer.momentum",
            "when",
            {"optimizer.name": ["sgd", "muon"]},
        ),
        ("parameters.optimizer.momentum.when={}", "optimizer.momentum", "when", {}),
        ("parameters.epochs={min: 10, max: 40}", "epochs", "max", 40),
        ("parameters.augment.crop.values=[2, 4]", "augment.crop", "values", [2, 4]),
    ],
)
def test_any_key_of_a_parameter_can_be_set(
    path: Path, override: str, name: str, attribute: str, value: Any
) -> None:
    found = getattr(load_space(path, [override]).parameters[name], attribute)
    assert found == value


def test_null_takes_a_parameter_out_of_the_search(path: Path) -> None:
    space = load_space(path, ["parameters.optimizer.momentum=null"])
    assert list(space.parameters) == ["optimizer.name", "optimizer.lr"]
    assert load_space(path, ["parameters.epochs=null"]) == load_space(path)
    with pytest.raises(UserError, match=r"--set parameters\.lr=null: lr: .* optimizer\.lr"):
        load_space(path, ["parameters.lr=null"])


def test_the_last_of_several_counts(path: Path) -> None:
    space = load_space(path, ["search.num_trials=8", "base.epochs=3", "search.num_trials=9"])
    assert (space.search.num_trials, space.base.epochs) == (9, 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("base.epochs=0", "base.epochs: must be at least 1, got 0"),
        ("base.epochs='12'", "base.epochs: must be a whole number, got '12'"),
        (
            "base.tta=flop",
            "base.tta: must be none, flip or six_views, got 'flop'; did you mean flip?",
        ),
        ("base.epoch=3", "base.epoch: unknown key; did you mean epochs?"),
        ("bas.epochs=3", "bas: unknown key; did you mean base?"),
        ("base.optimzer.lr=0.3", "base.optimzer: unknown key; did you mean optimizer?"),
        ("num_trials=3", "num_trials: unknown key; did you mean search.num_trials?"),
        ("search.num_trails=3", "search.num_trails: unknown key; did you mean num_trials?"),
        (
            "parameters.model.drop.max=0.3",
            "parameters.model.drop: unknown key; did you mean model.dropout?",
        ),
        (
            "parameters.lr.max=0.3",
            "parameters.lr: unknown key; did you mean optimizer.lr?",
        ),
        (
            "parameters.optimizer.momentum.mx=0.3",
            "parameters.optimizer.momentum.mx: unknown key; did you mean max?",
        ),
        (
            "parameters.optimizer.momentum.max=0.3",
            "parameters.optimizer.momentum: min must be less than max, got 0.8 and 0.3",
        ),
        (
            "parameters.optimizer.momentum.when.optimizer.nam=sgd",
            "parameters.optimizer.momentum.when.optimizer.nam: unknown key; "
            "did you mean optimizer.name?",
        ),
        (
            "parameters.optimizer.momentum.when.optimizer.name=adam",
            "parameters.optimizer.momentum.when.optimizer.name: can never be 'adam': "
            "optimizer.name is one of sgd, adamw, muon",
        ),
        (
            "constraints.parms.max=3",
            "constraints.parms: must be params or flops, got 'parms'; did ",
        ),
        ("scheduler.grace_period=31", "scheduler.grace_period: must be at most the 30 epochs of "),
        ("points=[{optimizer.lrs: 1}]", "points.0.optimizer.lrs: unknown key; did you mean optim"),
        ("search=tpe", "search: must be a section, {key: value}, got 'tpe'"),
        ("base.name=!!python/object:os.system a", "base.name: unknown key"),
    ],
)
def test_what_is_wrong_is_told_with_the_option(path: Path, override: str, message: str) -> None:
    (line,) = told(path, override)
    assert line.startswith(f"--set {override}: {message}")


@pytest.mark.parametrize("override", ["search.num_trials", "", "=3", "base.=3", "base..epochs=3"])
def test_an_option_is_key_and_value(path: Path, override: str) -> None:
    assert told(path, override) == [
        f"--set {override}: must be key=value, such as search.num_trials=8"
    ]


def test_a_list_is_set_as_a_whole(path: Path) -> None:
    assert told(path, "points.0.optimizer.lr=3") == [
        "--set points.0.optimizer.lr=3: set a list as a whole: --set 'points=[{optimizer.lr: 0.1}]'"
    ]


def test_a_value_has_no_keys(path: Path) -> None:
    assert told(path, "name.first=b") == ["--set name.first=b: first has no section to lie in"]


def test_the_other_mistakes_of_the_file_keep_their_lines(path: Path) -> None:
    path.write_text(FILE.replace("epochs: 30", "epochs: 0").replace("num_samples", "num_sample"))
    assert told(path, "base.tta=flop", "refit.fold=3") == [
        "--set base.tta=flop: base.tta: must be none, flip or six_views, got 'flop'; "
        "did you mean flip?",
        "--set refit.fold=3: refit.fold: unknown key; did you mean folds?",
        "f.yaml:4: base.epochs: must be at least 1, got 0",
        "f.yaml:9: search.num_sample: unknown key; did you mean num_samples?",
    ]


def test_an_option_repairs_the_file(path: Path) -> None:
    path.write_text(FILE.replace("epochs: 30", "epochs: 0"))
    assert load_space(path, ["base.epochs=3"]).base.epochs == 3
