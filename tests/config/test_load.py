import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cifartune.config import SearchSpace, load_space, smoke_space
from cifartune.config.load import dump_briefly, dump_space, parse_space
from cifartune.errors import UserError

MINIMAL = "name: a\nbase: {model: {name: speednet}}\n"
QUICK = Path(__file__).parents[2] / "search_spaces" / "quick.yaml"
FULL: dict[str, Any] = yaml.safe_load(QUICK.read_text())


def error(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_space(text, source="f.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # Unknown names
        ("serach: {}", "serach: unknown key; did you mean search?"),
        ("num_trials: 3", "num_trials: unknown key; did you mean search.num_trials?"),
        ("refit: {topk: 3}", "refit.topk: unknown key; did you mean top_k?"),
        ("zzzz: 3", "zzzz: unknown key"),
        (
            "refit: {folds: 3, fold: 3}",
            "refit.fold: unknown key; did you mean folds, which is given too?",
        ),
        (
            "parameters: {lr: {min: 0.1, max: 1}}",
            "parameters.lr: unknown key; did you mean optimizer.lr?",
        ),
        (
            "parameters: {model.dropout: {minn: 0, max: 0.5}}",
            "parameters.model.dropout.minn: unknown key; did you mean min?",
        ),
        # Wrong types
        ("search: tpe", "search: must be a section, {key: value}, got 'tpe'"),
        ("scheduler:", "scheduler: must be a section, {key: value}, got nothing"),
        ("parameters: [1]", "parameters: must be a section, {key: value}, got [1]"),
        (
            "parameters: {model.dropout: 3}",
            "parameters.model.dropout: must be {min: ..., max: ...} or {values: [...]}, got 3",
        ),
        (
            "parameters: {model.dropout: {min: '0', max: 0.5}}",
            "parameters.model.dropout.min: must be a number, got '0'",
        ),
        (
            "parameters: {model.dropout: {values: [0.1, [0.2]]}}",
            "parameters.model.dropout.values.1: "
            "must be true or false, a whole number, a number or text, got [0.2]",
        ),
        ("search: {num_trials: 2.5}", "search.num_trials: must be a whole number, got 2.5"),
        ("search: {num_trials: true}", "search.num_trials: must be a whole number, got true"),
        ("search: {num_trials: '8'}", "search.num_trials: must be a whole number, got '8'"),
        ("search: {num_trials: 1:30}", "search.num_trials: must be a whole number, got '1:30'"),
        ("search: {num_trials: 010}", "search.num_trials: must be a whole number, got '010'"),
        # Values out of their domain
        ("resources: {cpus: many}", "resources.cpus: must be auto or a number, got 'many'"),
        ("resources: {cpus: 0}", "resources.cpus: must be auto or above 0, got 0"),
        (
            "resources: {epoch_timeout: soon}",
            "resources.epoch_timeout: must be a time such as 90s, 30m, 2h or 1d, got 'soon'",
        ),
        (
            "resources: {epoch_timeout: 0}",
            "resources.epoch_timeout: must be auto or above 0, got 0",
        ),
        (
            "search: {max_concurrent: lots}",
            "search.max_concurrent: must be auto or a whole number, got 'lots'",
        ),
        ("search: {max_concurrent: 0}", "search.max_concurrent: must be auto or at least 1, got 0"),
        (
            "search: {num_trials: 200000}",
            "search.num_trials: must be at most 100,000, got 200000",
        ),
        (
            "search: {time_budget: 2 hours}",
            "search.time_budget: must be a time such as 90s, 30m, 2h or 1d, got '2 hours'",
        ),
        ("search: {time_budget: 0s}", "search.time_budget: must be above 0, got 0.0"),
        (
            "objective: {mode: maximize}",
            "objective.mode: must be max or min, got 'maximize'; did you mean max?",
        ),
        ("objective: {mode: min}", "objective.mode: must be max for val_accuracy, got min"),
        (
            "objective: {metric: [a]}",
            "objective.metric: must be val_accuracy, val_loss, train_accuracy, train_loss, params "
            "or flops, got ['a']",
        ),
        (
            "parameters: {epochs: {min: 1, max: .inf}}",
            "parameters.epochs.max: must be a finite number, got inf",
        ),
        (
            "parameters: {tta: {values: [no, flip]}}",
            "parameters.tta.values.0: must be none, flip or six_views, got 'no'; "
            "did you mean none?",
        ),
        (
            "parameters: {model.dropout: {values: []}}",
            "parameters.model.dropout.values: must be a list of at least one value, got []",
        ),
        ("parameters: {epochs: {min: 1}}", "parameters.epochs.max: is required"),
    ],
)
def test_a_mistake_is_one_message_with_line_key_and_rule(line: str, message: str) -> None:
    assert error(MINIMAL + line) == f"f.yaml:3: {message}"


def test_a_name_says_what_is_allowed() -> None:
    assert error("name: a b\nbase: {}") == (
        "f.yaml:1: name: must begin with a letter or digit and go on with letters, digits, dots, "
        "hyphens and underscores, 100 at the most, got 'a b'"
    )


def test_every_mistake_is_told_on_its_own_line() -> None:
    text = "nam: a\nbase:\n  epochs: 0\n  optimizer:\n    lr: 0.1\n    beta: 2\nsearch:\n- 1"
    assert error(text).splitlines() == [
        "f.yaml:1: nam: unknown key; did you mean name?",
        "f.yaml:3: base.epochs: must be at least 1, got 0",
        "f.yaml:6: base.optimizer.beta: unknown key",
        "f.yaml:7: search: must be a section, {key: value}, got [1]",
    ]


MANY = """\
name: a
base:
  model: {name: speednett}
  optimizer: {nme: sgd, lr: 20}
  epochs: 0
  seed: 3
parameters:
  optimizer: {momentum: {min: 0.8, max: 0.98}}
  model: {dropout: {min: 0, max: 0.5}}
  optimizer.lrr: {min: 0.3, max: 1}
  optimizer.weight_decay: {min: 1.0e-2, max: 1.0e-1, when: {optimizer.lr: 0.1, tta: flop}}
  tta: {values: [none, flip, flap]}
  epochs: {min: 10}
  augment.crop: {values: [4], when: {augment.flop: 0.5, epochs: 20}}
  augment.flip: {min: 0.2, max: 0.1}
  augment.cutout: {min: 8, max: 16}
  label_smoothing: {values: [0, 0.1], min: 0}
  schedule.warmup: {min: 0, max: 0.4, stp: 0.1}
objectives: [{metric: params}, {metric: valloss}, {metric: train_loss, mode: max}]
scheduler: {name: hyperbnd, metric: flops, grace_period: 50, brackets: 9}
points:
- {augment.cutout: 30}
- {augment.cutout: [8]}
- {optimizer.lr: 0.1, tta: flip}
- {augment.cutot: 8}
constraints: {parms: {max: 3}, params: {min: 3, max: 2}, flops: {max: many}}
data: {train_subset: 400, validatoin: 3}
search: {sampler: grid, num_trials: 2}
refit: {folds: 1, topk: 3}
resurces: {cpus: 2}
zzzz: 1
"""


def test_every_mistake_of_every_kind_is_told_and_none_that_follows_from_another() -> None:
    assert [message.removeprefix("f.yaml:") for message in error(MANY).splitlines()] == [
        "2: base.augment.cutout: is 0, but parameters.augment.cutout is between 8 and 16: "
        "the baseline is trial 0 and must lie in the space",
        "3: base.model.name: must be the name of a network of timm or cifartune, got "
        "'speednett'; did you mean speednet?",
        "4: base.optimizer.lr: must be at most 10, got 20",
        "4: base.optimizer.nme: unknown key; did you mean name?",
        "5: base.epochs: must be at least 1, got 0",
        "6: base.seed: is drawn for each trial from search.seed: set that instead",
        "8: parameters.optimizer: is a section of the recipe: write its fields as "
        "optimizer.momentum: ...",
        "9: parameters.model: is a section of the recipe: write its fields as model.dropout: ...",
        "10: parameters.optimizer.lrr: unknown key; did you mean optimizer.lr?",
        "11: parameters.optimizer.weight_decay: must have a step, or values, for the sampler grid",
        "12: parameters.tta.values.2: must be none, flip or six_views, got 'flap'; "
        "did you mean flip?",
        "13: parameters.epochs.max: is required",
        "14: parameters.augment.crop.when.augment.flop: unknown key; did you mean augment.flip?",
        "15: parameters.augment.flip: min must be less than max, got 0.2 and 0.1",
        "17: parameters.label_smoothing.min: excludes values: a parameter has one or the other",
        "18: parameters.schedule.warmup.stp: unknown key; did you mean step?",
        "19: objectives.1.metric: must be val_accuracy, val_loss, train_accuracy, "
        "train_loss, params or flops, got 'valloss'; did you mean val_loss?",
        "19: objectives.2.mode: must be min for train_loss, got max",
        "20: scheduler.metric: must be val_accuracy, val_loss, train_accuracy or train_loss, "
        "got 'flops'",
        "20: scheduler.name: must be asha, hyperband, median or none, got 'hyperbnd'; did "
        "you mean hyperband?",
        "22: points.0.augment.cutout: must be between 8 and 16, got 30",
        "23: points.1.augment.cutout: must be true or false, a whole number, a number or "
        "text, got [8]",
        "25: points.3.augment.cutot: unknown key; did you mean augment.cutout?",
        "26: constraints.flops.max: must be a number, got 'many'",
        "26: constraints.params: min must be at most max, got 3 and 2",
        "26: constraints.parms: must be params or flops, got 'parms'; did you mean params?",
        "27: data.validatoin: unknown key; did you mean validation?",
        "28: search.num_trials: must be at least 5: the baseline and the points come first, got 2",
        "29: refit.folds: must be at least 2, got 1",
        "29: refit.topk: unknown key; did you mean top_k?",
        "30: resurces: unknown key; did you mean resources?",
        "31: zzzz: unknown key",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml: the file is empty"),
        ("# nothing\n", "f.yaml: the file is empty"),
        ("- 1", "f.yaml:1: must be a section"),
        ("hello", "f.yaml:1: must be a section"),
        ("&a [*a]", "f.yaml:1: must be a section"),
        ("name: [a", "f.yaml:1: not valid YAML"),
        ("name: a\nbase:\n\tepochs: 3", "f.yaml:3: not valid YAML"),
        ("name: a\n---\nname: b", "f.yaml:2: not valid YAML"),
        ("name: a\0", "f.yaml: not valid YAML: unacceptable character #x0000"),
        ("[" * 500, "f.yaml: not valid YAML: nested too deeply"),
        ("name: a\nbase: {<<: 3}", "f.yaml:2: not valid YAML"),
        ("name: a\nbase: {}\nname: b", "f.yaml:3: name: is given twice"),
        ("3: a", "f.yaml:1: a key must be text, got 3"),
        ("null: a", "f.yaml:1: a key must be text, got null"),
        ("? [1, 2]\n: 3", "f.yaml:1: a key must be text, got a list or section"),
        ("name: !!python/object:os.system a", "f.yaml:1: the tag tag:yaml.org,2002:python/"),
        ("name: a\nbase: &b {model: *b}", "f.yaml:2: base.model.model: unknown key"),
        ("name: a\nbase: {seed: 1" + 5000 * "0" + "}", "f.yaml:2: base.seed: must be a whole"),
        ('name: "\\ud800"\nbase: {}', "f.yaml:1: name: must begin"),
    ],
)
def test_what_is_no_search_space_is_refused(text: str, message: str) -> None:
    assert error(text).startswith(message)


def test_plain_words_mean_what_people_mean() -> None:
    space = parse_space(
        "name: no\n"
        "base: {optimizer: {lr: 1e-3, weight_decay: .5}, epochs: 1_0, precision: bf16}\n"
        "refit: {epochs: null}\n"
        "search: {time_budget: 90}",
        source="f.yaml",
    )
    assert space.name == "no"
    assert (space.base.optimizer.lr, space.base.optimizer.weight_decay) == (1e-3, 0.5)
    assert space.base.epochs == 10
    assert space.refit.epochs is None
    assert space.search.time_budget == 90.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E-3", 0.001),
        ("1E0", 1.0),
        ("1e+0", 1.0),
        (".5", 0.5),
        ("0.5", 0.5),
        ("1.", 1.0),
        ("1", 1.0),
        ("+0.5", 0.5),
    ],
)
def test_a_number_may_be_written_in_each_way(text: str, value: float) -> None:
    space = parse_space(f"name: a\nbase: {{optimizer: {{lr: {text}}}}}", source="f.yaml")
    assert space.base.optimizer.lr == value


@pytest.mark.parametrize(
    ("text", "value"), [("1E5", 1e5), ("5_000_000", 5e6), ("2.5e6", 2.5e6), ("1_000.5", 1000.5)]
)
def test_a_large_number_may_be_written_in_each_way(text: str, value: float) -> None:
    space = parse_space(f"{MINIMAL}constraints: {{params: {{max: {text}}}}}", source="f.yaml")
    assert space.constraints["params"].max == value


TEXTS = ["no", "on", "yes", "off", "y", "No", "OFF", "2026-01-02", "1:30", "010", "0x10", "0b1"]


@pytest.mark.parametrize("text", [*TEXTS, "1e", "e5", "1.2.3", "12a", "08", "1e-3x"])
def test_what_looks_like_something_else_is_text(text: str) -> None:
    assert error(MINIMAL + f"refit: {{folds: {text}}}") == (
        f"f.yaml:3: refit.folds: must be a whole number, got {text!r}"
    )
    space = parse_space(MINIMAL + f"warm_start: [{text}]", source="f.yaml")
    assert space.warm_start == [text]
    assert parse_space(dump_space(space), source="f.yaml") == space


@pytest.mark.parametrize("quote", ["'", '"'])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("base: {optimizer: {lr: Q0.1Q}}", "base.optimizer.lr: must be a number, got '0.1'"),
        ("base: {epochs: Q30Q}", "base.epochs: must be a whole number, got '30'"),
        (
            "base: {}\nparameters: {epochs: {values: [20, Q30Q]}}",
            "parameters.epochs.values.1: must be a whole number, got '30'",
        ),
        (
            "base: {}\nparameters: {epochs: {min: 1, max: 40, log: QtrueQ}}",
            "parameters.epochs.log: must be true or false, got 'true'",
        ),
        (
            "base: {}\nconstraints: {flops: {max: Q1e9Q}}",
            "constraints.flops.max: must be a number, got '1e9'",
        ),
    ],
    ids=["float", "int", "values", "bool", "constraint"],
)
def test_what_is_quoted_is_text(line: str, message: str, quote: str) -> None:
    text = f"name: a\n{line.replace('Q', quote)}"
    assert error(text) == f"f.yaml:{len(text.splitlines())}: {message}"


def test_anchors_and_merge_keys_work_and_keep_their_lines() -> None:
    text = (
        "name: a\n"
        "base:\n"
        "  model: {name: resnet18}\n"
        "  <<: &base\n"
        "    epochs: 3\n"
        "refit:\n"
        "  <<: *base\n"
        "  folds: FOLDS\n"
        "parameters:\n"
        "  model.dropout: {min: 0, max: 0.5, when: &sgd {optimizer.name: sgd}}\n"
        "  model.init: {values: [default, orthogonal], when: *sgd}\n"
        "  optimizer.name: {values: [sgd, adamw]}\n"
    )
    space = parse_space(text.replace("FOLDS", "4"), source="f.yaml")
    assert (space.refit.epochs, space.refit.folds) == (3, 4)
    assert space.parameters["model.init"].when == {"optimizer.name": ["sgd"]}
    assert error(text.replace("FOLDS", "1")) == "f.yaml:8: refit.folds: must be at least 2, got 1"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_bytes(b"\xff\xfe")
    for path, message in {
        tmp_path: "cannot be read: Is a directory",
        tmp_path / "quick.yaml": "not a text file in UTF-8",
        tmp_path / "quik.yaml": f"no such file; did you mean {tmp_path / 'quick.yaml'}?",
        tmp_path / "none" / "quick.yaml": "no such file",
    }.items():
        with pytest.raises(UserError) as caught:
            load_space(path)
        assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize("path", sorted(QUICK.parent.glob("*.yaml")), ids=lambda path: path.name)
def test_our_own_spaces_are_valid_small_and_large(path: Path) -> None:
    space = load_space(path)
    assert space.name == path.stem
    smoke = smoke_space(space)
    assert SearchSpace.model_validate(smoke.model_dump()) == smoke


@pytest.mark.parametrize("name", ["quick", "resnet"])
def test_a_search_begins_with_all_six(name: str) -> None:
    assert load_space(QUICK.with_name(f"{name}.yaml")).parameters.keys() >= {
        "optimizer.lr",
        "optimizer.weight_decay",
        "model.dropout",
        "model.init",
        "optimizer.name",
        "augment.strength",
    }


Keys = tuple[str, ...]


def places(tree: dict[str, Any], path: Keys = ()) -> list[Keys]:
    """The path of every key in a tree."""
    found = []
    for key, value in tree.items():
        found.append((*path, key))
        if isinstance(value, dict):
            found += places(value, (*path, key))
    return found


def edited(path: Keys, value: Any) -> str:
    """The full file with one value replaced."""
    tree = copy.deepcopy(FULL)
    section = tree
    for part in path[:-1]:
        section = section[part]
    section[path[-1]] = value
    return yaml.safe_dump(tree)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["min", "max", "values", "when", "name"]), inner)
    ),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.sampled_from(places(FULL)), VALUES)
def test_any_value_at_any_key_is_taken_or_refused_by_name(path: Keys, value: Any) -> None:
    try:
        space = parse_space(edited(path, value), source="f.yaml")
    except UserError as refusal:
        assert str(refusal).startswith("f.yaml:")
        assert "Input" not in str(refusal) and "valid (" not in str(refusal)
    else:
        assert SearchSpace.model_validate(space.model_dump()) == space


@given(st.text(st.sampled_from("ab:-*&!<[]{},#'\"|>?% \n\t10._"), max_size=40))
def test_any_text_is_taken_or_refused(text: str) -> None:
    assert error(text).startswith("f.yaml")


def test_reading_a_space_needs_no_torch_and_no_time() -> None:
    code = "import sys, cifartune.config; sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=5)


@pytest.mark.parametrize("name", ["a", "1e5", "007", "no", "12"])
def test_a_dumped_space_is_read_back(name: str) -> None:
    space = load_space(QUICK).model_copy(update={"name": name})
    assert parse_space(dump_space(space), source="f.yaml") == space
    assert parse_space(dump_space(smoke_space(space)), source="f.yaml") == smoke_space(space)


@pytest.mark.parametrize("path", sorted(QUICK.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_space_that_is_dumped_briefly_is_the_same_search(path: Path) -> None:
    space = load_space(path)
    text = dump_briefly(space)
    again = parse_space(text, source="f.yaml")
    assert again.targets == space.targets
    assert again.model_copy(update={"objective": space.objective}) == space
    assert "memory_format" not in text  # which no file sets


def test_merges_of_merges_do_not_fill_the_memory() -> None:
    """From 6.0.4 on, PyYAML keeps each key once; what an older one doubles is refused in time."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60)]
    with pytest.raises(UserError, match=r"f.yaml:\d+: (more than 1,000 keys|a1: unknown key)"):
        parse_space("\n".join(lines), source="f.yaml")


def test_a_point_is_written_with_dotted_names_too() -> None:
    text = "name: t\nbase: {}\nparameters: {optimizer.lr: {low: 0.1, high: 1}}\n"
    points = "points: [{optimizer.lr: 0.2}, {optimizer: {lr: 0.3}}]\n"
    with pytest.raises(UserError) as caught:
        parse_space(text + points, source="f.yaml")
    assert str(caught.value) == (
        "f.yaml:4: points.1.optimizer: is a section of the recipe: write its fields as "
        "optimizer.lr: ..."
    )
    # Optuna's names of bounds are ours too.
    assert parse_space(text, source="f.yaml").parameters["optimizer.lr"].largest() == 1


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("{min: 1, max: 1e9}", "epochs.max: must be at most 10,000, got 1000000000"),
        ("{min: 1, max: 1e300}", "epochs.max: must be at most 10,000"),
        ("{min: 10, max: 30, step: 0.5}", "epochs.step: must be a whole number, as epochs is"),
    ],
)
def test_a_range_of_whole_numbers_is_not_counted_out(parameter: str, message: str) -> None:
    """Which would fill the memory, or end where a step is half a number."""
    with pytest.raises(UserError, match=re.escape(f"f.yaml:2: parameters.{message}")):
        parse_space(f"name: f\nparameters: {{epochs: {parameter}}}", source="f.yaml")


def test_the_smoke_version_of_a_space_with_many_rungs() -> None:
    text = "name: f\nbase: {epochs: 30}\nscheduler: {reduction_factor: 1.4}"
    smoke = smoke_space(parse_space(text, source="f.yaml"))
    assert (smoke.base.epochs, smoke.scheduler.reduction_factor) == (2, 2.0)
