"""What of a search may change once it has trials."""

import pytest

from cifartune.config import SearchSpace
from cifartune.config.extension import check_extension
from cifartune.config.load import dump_space, parse_space
from cifartune.errors import UserError

TEXT = """
name: grown
base: {model: {name: speednet_small}, epochs: 4}
parameters:
  optimizer.lr: {min: 0.01, max: 1.0, log: true}
  optimizer.name: {values: [sgd, adamw]}
  augment.crop: {min: 2, max: 6, step: 2, when: {optimizer.name: adamw}}
points: [{optimizer.lr: 0.5}]
search: {num_trials: 8}
"""


def after(*changes: str) -> SearchSpace:
    return parse_space(TEXT, source="grown.yaml", overrides=changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([], {}),
        (["search.num_trials=16"], {"search.num_trials": (8, 16)}),
        (["search.time_budget=2h"], {"search.time_budget": (None, 7200.0)}),
        (["search.sampler=gp", "refit.top_k=1"], {"search.sampler", "refit.top_k"}),
        (["resources.cpus=1"], {"resources.cpus"}),
        (["parameters.optimizer.lr.max=3"], {"parameters.optimizer.lr.max": (1.0, 3.0)}),
        (["parameters.optimizer.lr.min=0.001"], {"parameters.optimizer.lr.min": (0.01, 0.001)}),
        (["parameters.augment.crop.max=8"], {"parameters.augment.crop.max": (6.0, 8.0)}),
    ],
)
def test_a_search_may_get_more_to_do(changes: list[str], told: object) -> None:
    found = check_extension(after(), after(*changes))
    assert found == told if isinstance(told, dict) else set(found) == told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.validation=500", r"data\.validation: cannot .* trained on these images"),
        ("objective.metric=val_loss", r"objective.*: cannot be changed .* judged by it"),
        ("base.epochs=5", r"base\.epochs: cannot be changed"),
        ("scheduler.grace_period=2", r"scheduler\.grace_period: .* stopped by it"),
        ("search.seed=1", r"search\.seed: .* draws"),
        ("refit.folds=3", r"refit\.folds: .* drawn"),
        ("refit.epochs=3", r"refit\.epochs: .* trained for as many"),
        ("points=[]", r"points: .* first trials"),
        ("name=other", r"name: .* called so"),
        ("constraints.params.max=100000000", r"constraints.*: .* refused"),
        ("warm_start=[earlier]", r"warm_start: "),
        ("stand_in=500", r"stand_in: "),
        ("parameters.optimizer.lr.max=0.7", r"parameters\.optimizer\.lr: may only be made wider"),
        ("parameters.optimizer.lr.log=false", r"optimizer\.lr: only min and max"),
        ("parameters.optimizer.lr=null", r"optimizer\.lr: cannot be added or left out"),
        ("parameters.model.dropout={min: 0, max: 0.5}", r"model\.dropout: cannot be added"),
        (
            "parameters.optimizer.name={values: [sgd, adamw, lion]}",
            r"optimizer\.name: only min and max",
        ),
    ],
)
def test_a_search_stays_what_it_was(change: str, message: str) -> None:
    changed = after("points=[]", change) if "null" in change else after(change)
    with pytest.raises(UserError, match=message):
        check_extension(after(), changed)


def test_seeds_of_the_refit_may_only_be_added() -> None:
    assert set(check_extension(after(), after("refit.seeds=2"))) == {"refit.seeds"}
    with pytest.raises(UserError, match=r"refit\.seeds: may only be raised"):
        check_extension(after("refit.seeds=3"), after("refit.seeds=2"))


def test_steps_stay_where_they_were() -> None:
    changed = after("parameters.augment.crop.min=1", "parameters.augment.crop.max=7")
    with pytest.raises(UserError, match=r"crop: min must be 2 less a multiple of step, 2"):
        check_extension(after(), changed)


def test_everything_wrong_is_said_at_once() -> None:
    changed = after("search.seed=1", "base.epochs=5", "parameters.optimizer.lr.max=0.7")
    with pytest.raises(UserError) as refused:
        check_extension(after(), changed)
    assert len(str(refused.value).splitlines()) == 3


def test_every_key_of_a_file_is_free_or_has_a_reason() -> None:
    from cifartune.config.extension import FREE, REASONS

    for section, info in SearchSpace.model_fields.items():
        keys = {section}
        default = getattr(after(), section)
        if section in ("search", "refit"):
            keys = {f"{section}.{key}" for key in type(default).model_fields}
        assert info and (
            keys <= FREE | set(REASONS) or section in ("resources", "checkpoints", "parameters")
        )


def test_a_space_comes_back_from_its_file() -> None:
    changed = after("search.num_trials=16", "parameters.optimizer.lr.max=3")
    assert parse_space(dump_space(changed), source="space.yaml") == changed
