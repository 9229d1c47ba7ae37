"""What holds for every search space: nothing is lost or illegal, and no slip is missed."""

import copy
import re
from collections.abc import Mapping
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from spaces import ALIASES, FIELDS, Tree, holds, texts, valid_spaces

from cifartune.config import Recipe, SearchSpace
from cifartune.config.fields import all_fields
from cifartune.config.load import dump_space, parse_space
from cifartune.config.recipe import Section
from cifartune.config.space import Bound, Objective
from cifartune.errors import UserError
from cifartune.tuning.proposals import Proposer, distribution

slow_to_draw = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.fixture(autouse=True, scope="module")
def _no_log_of_each_study() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def parsed(text: str) -> SearchSpace:
    return parse_space(text, source="f.yaml")


def messages(text: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parsed(text)
    return str(caught.value).splitlines()


# ---- Round trip


@settings(slow_to_draw, max_examples=100)
@given(texts(valid_spaces()))
def test_a_valid_file_says_what_it_says_and_survives_its_dump(case: tuple[str, Tree]) -> None:
    text, data = case
    space = parsed(text)
    assert space.base.flat() == Recipe.model_validate(data["base"]).flat()
    assert list(space.parameters) == list(data.get("parameters", {}))
    for name, entry in data.get("parameters", {}).items():
        read = space.parameters[name].model_dump(exclude_unset=True, exclude={"when"})
        assert read == {key: value for key, value in entry.items() if key != "when"}
    assert space.points == data["points"]
    assert space.search.num_trials == data["search"]["num_trials"]
    again = parsed(dump_space(space))
    assert again == space
    # Numbers keep their types: 1, 1.0 and true are equal in Python.
    assert again.model_dump_json() == space.model_dump_json()
    assert {n: distribution(n, p) for n, p in again.parameters.items()} == {
        n: distribution(n, p) for n, p in space.parameters.items()
    }


@settings(slow_to_draw, max_examples=60)
@given(texts(valid_spaces("random")), st.data())
def test_what_optuna_draws_is_a_recipe_that_survives_its_dump(
    case: tuple[str, Tree], data: st.DataObject
) -> None:
    text, tree = case
    space = parsed(text)
    values = {n: data.draw(drawn(distribution(n, p))) for n, p in space.parameters.items()}
    check_point(space, tree, space.point(values))


def drawn(form: Any) -> st.SearchStrategy[Any]:
    """The values of one of Optuna's distributions."""
    if isinstance(form, CategoricalDistribution):
        return st.sampled_from(form.choices)
    if isinstance(form, IntDistribution):
        step = form.step
        return st.integers(0, (form.high - form.low) // step).map(lambda i: form.low + i * step)
    assert isinstance(form, FloatDistribution)
    if form.step is None:
        return st.floats(form.low, form.high)
    low, high, width = form.low, form.high, form.step
    return st.integers(0, round((high - low) / width)).map(lambda i: min(low + i * width, high))


def check_point(space: SearchSpace, data: Tree, point: Mapping[str, Any]) -> None:
    """The point lies in the space, and is a recipe."""
    parameters = data.get("parameters", {})
    assert point.keys() == {name for name in parameters if holds(name, point, parameters)}
    for name, value in point.items():
        assert space.parameters[name].contains(value)
        assert FIELDS[name].check(value) is None
    recipe = space.base.with_values(point)
    assert recipe.flat() == {**space.base.flat(), **point}
    again = Recipe.model_validate(yaml.safe_load(yaml.safe_dump(recipe.model_dump())))
    assert again == recipe
    assert again.id == recipe.id


# ---- Samplers


EXAMPLES = {"random": 15, "tpe": 20, "qmc": 15, "grid": 15, "cmaes": 15, "gp": 4}


@pytest.mark.parametrize("sampler", EXAMPLES)
def test_every_sampler_stays_in_the_space(sampler: str) -> None:
    @settings(slow_to_draw, max_examples=EXAMPLES[sampler])
    @given(valid_spaces(sampler, most_parameters=5 if sampler in ("grid", "gp") else 10))
    def stays_in_the_space(data: Tree) -> None:
        data["search"]["num_trials"] = 4 + len(data["points"])  # four at random, then the model
        space = parsed(yaml.safe_dump(data))
        proposer, trials = Proposer(space), list[FrozenTrial]()
        for _ in range(8 + len(space.points)):
            trial = proposer.propose(trials)
            if trial is None:
                break
            check_point(space, data, trial.params)
            trials.append(finished(trial, space))
        assert trials[0].params == space.point(space.base.flat())
        for given_values, trial in zip(space.points, trials[1:], strict=False):
            assert trial.params == space.point({**space.base.flat(), **given_values})

    stays_in_the_space()


def finished(trial: FrozenTrial, space: SearchSpace) -> FrozenTrial:
    """The trial with a value for each objective."""
    score = len(str(sorted(trial.params.items()))) / 100
    return create_trial(
        state=TrialState.COMPLETE,
        params=trial.params,
        distributions=trial.distributions,
        values=[score for _ in space.targets],
    )


# ---- Slips

Path = tuple[Any, ...]

PARAMETER_KEYS = {"values", "min", "max", "log", "step", "when", *ALIASES["min"], *ALIASES["max"]}


def key_paths(tree: Any, path: Path = ()) -> list[Path]:
    """The path of every key, also of sections in lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found: list[Path] = []
    for key, value in items:
        if isinstance(key, str):
            found.append((*path, key))
        if isinstance(value, dict | list):
            found += key_paths(value, (*path, key))
    return found


def valid_keys(section: Path) -> set[str]:
    """The keys that a section can have."""
    if section[:1] == ("parameters",):
        return [{*all_fields()}, PARAMETER_KEYS, {*FIELDS}][len(section) - 1]
    if section[:1] == ("points",):
        return {*FIELDS}
    if section[:1] == ("objectives",):
        return {*Objective.model_fields}
    if section[:1] == ("constraints",):
        return {*Bound.model_fields} if len(section) > 1 else {"params", "flops"}
    if section == ("objective",):
        return {*Objective.model_fields}
    model: Any = SearchSpace
    for part in section:
        model = model.model_fields[part].annotation
    assert issubclass(model, Section)
    return {*model.model_fields, "num_samples", "max_trials"}


def at(tree: Any, path: Path) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def renamed(tree: Tree, path: Path, key: str) -> Tree:
    """A copy with one key renamed, in its place."""
    copied = copy.deepcopy(tree)
    section = at(copied, path[:-1])
    items = [(key if name == path[-1] else name, value) for name, value in section.items()]
    section.clear()
    section.update(items)
    return copied


LETTERS = st.sampled_from("abcdefghijklmnopqrstuvwxyzABCXYZ0189_.-")


@st.composite
def one_edit(draw: st.DrawFn, key: str) -> str:
    """The key with a letter inserted, deleted or replaced, or two neighbours swapped."""
    i, letter = draw(st.integers(0, len(key) - 1)), draw(LETTERS)
    edits = [
        key[:i] + letter + key[i:],
        key + letter,
        key[:i] + key[i + 1 :],
        key[:i] + letter + key[i + 1 :],
        key[:i] + key[i + 1 : i + 2] + key[i] + key[i + 2 :],
    ]
    return draw(st.sampled_from(edits))


@st.composite
def slips(draw: st.DrawFn, tree: Tree, paths: list[Path]) -> tuple[Path, str]:
    """A key of at least four letters with one edit that makes it no valid key."""
    path = draw(st.sampled_from([path for path in paths if len(path[-1]) >= 4]))
    wrong = draw(one_edit(path[-1]))
    assume(wrong not in valid_keys(path[:-1]) and wrong not in at(tree, path[:-1]))
    return path, wrong


def check_unknown(message: str, text: str, path: Path, wrong: str) -> None:
    """The message has the key's line and place, and suggests what was meant."""
    found = re.fullmatch(r"f\.yaml:(\d+): (.*): ([^:]*); did you mean (.*)\?", message)
    assert found, message
    line, place, _, meant = found.groups()
    assert place.partition(": ")[0] == ".".join(map(str, (*path[:-1], wrong)))
    assert path[-1] in meant.split(" or ")
    key = text.splitlines()[int(line) - 1].strip().removeprefix("- ").partition(":")[0]
    assert key.strip("'") == wrong


@settings(slow_to_draw, max_examples=200)
@given(texts(valid_spaces()), st.data())
def test_any_one_slip_in_any_key_is_told_with_what_was_meant(
    case: tuple[str, Tree], data: st.DataObject
) -> None:
    tree = yaml.safe_load(case[0])
    path, wrong = data.draw(slips(tree, key_paths(tree)))
    text = yaml.safe_dump(renamed(tree, path, wrong), sort_keys=False)
    (message,) = messages(text)
    check_unknown(message, text, path, wrong)


@st.composite
def corruptions(draw: st.DrawFn, tree: Tree) -> dict[Path, str | None]:
    """Places that do not touch each other, each with a wrong key, or None for a wrong value."""
    paths = [path for path in key_paths(tree) if path != ("parameters",)]
    count = draw(st.integers(2, 6))
    found: dict[Path, str | None] = {}
    for path in draw(st.permutations(paths)):
        if len(found) == count:
            break
        if any(unit(path) == unit(p) or nest(path, p) for p in found):
            continue
        is_open = path[0] == "points" or "when" in path or path == ("name",)
        is_scalar = not isinstance(at(tree, path), dict | list)
        if is_scalar and not is_open and draw(st.booleans()):
            found[path] = None
        elif len(path[-1]) >= 4:
            wrong = draw(one_edit(path[-1]))
            if wrong not in valid_keys(path[:-1]) and wrong not in at(tree, path[:-1]):
                found[path] = wrong
    return found


def unit(path: Path) -> Path:
    """What is put aside as a whole where a part of it is wrong."""
    return path[:2] if path[0] in ("parameters", "points") else path


def nest(path: Path, other: Path) -> bool:
    """Whether one lies in the other."""
    return path[: len(other)] == other or other[: len(path)] == path


@settings(slow_to_draw, max_examples=100)
@given(texts(valid_spaces()), st.data())
def test_all_mistakes_are_told_at_once_and_nothing_else(
    case: tuple[str, Tree], data: st.DataObject
) -> None:
    tree = yaml.safe_load(case[0])
    wrong = data.draw(corruptions(tree))
    assume(wrong)
    expected = {}
    for number, (path, key) in enumerate(wrong.items()):
        if key is None:
            at(tree, path[:-1])[path[-1]] = f"not-{number}"
            expected[".".join(map(str, path))] = f"not-{number}"
        else:
            tree = renamed(tree, path, key)
            expected[".".join(map(str, (*path[:-1], key)))] = f"{key}:"
    text = yaml.safe_dump(tree, sort_keys=False)
    told = {}
    lines = []
    for message in messages(text):
        _, line, place, _ = re.split(":", message, maxsplit=3)
        lines.append(int(line))
        told[place.strip()] = text.splitlines()[int(line) - 1].replace("'", "")
    assert told.keys() == expected.keys()
    assert all(expected[place] in told[place] for place in told)
    assert lines == sorted(lines)
