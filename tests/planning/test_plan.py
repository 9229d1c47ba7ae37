"""From a rehearsal and costs to a plan: the arithmetic, on costs that are given."""

import json
from typing import Any

import pytest
from pydantic import ValidationError
from searches import QUICK

from cifartune.config import Recipe, SearchSpace, smoke_space
from cifartune.config.load import load_space
from cifartune.planning import Plan, make_plan, recipes_to_measure
from cifartune.planning.rehearsal import rehearse
from cifartune.report.planned import plan_lines, plan_table, savings_lines, size
from cifartune.tuning.messages import Cost, Probed

COST = Cost(
    train_rate=1000,
    eval_rate=5000,
    build_seconds=2,
    checkpoint_seconds=1,
    checkpoint_bytes=6_000_000,
    weights_bytes=2_000_000,
)


REFIT = {"top_k": 2, "folds": 5, "baseline": False, "all_images": False}


def make_space(**sections: Any) -> SearchSpace:
    return SearchSpace.model_validate(
        {
            "name": "toy",
            "base": {"model": {"name": "speednet_small"}, "epochs": 4, "batch_size": 100},
            "parameters": {"model.dropout": {"min": 0.0, "max": 0.5}},
            "data": {"validation": 5000, "train_subset": 10_000},
            "search": {"num_trials": 10},
            "scheduler": {"name": "none"},
            "refit": REFIT,
        }
        | sections
    )


def plan_of(
    space: SearchSpace,
    costs: list[Cost] | None = None,
    recipes: list[Recipe] | None = None,
    **options: Any,
) -> Plan:
    recipes = recipes or [space.base]
    probed = Probed({}, costs or [COST], 10**9)
    settings = {"slots": 1, "cpus": 2.0, "gpus": 0.0, "start": 20.0} | options
    runs = rehearse(space, slots=settings["slots"])
    return make_plan(space, runs, recipes, probed, **settings)


def test_times_add_up() -> None:
    plan = plan_of(make_space())
    # A trial: 2 s to build, and 4 epochs of 10 s, 1 s of validation and 1 s for the checkpoint.
    assert plan.search == pytest.approx(10 * (2 + 4 * 12))
    assert (plan.epochs, plan.images) == (40, 400_000)
    # A fold: 2 s, and 4 epochs of 40 s, 2 s and 1 s; then 10,000 predictions.
    assert plan.refit == pytest.approx(2 * 5 * (2 + 4 * 43 + 2))
    assert (plan.refit_jobs, plan.refit_epochs, plan.refit_images) == (10, 40, 40 * 40_000)
    assert plan.evaluate == pytest.approx(5 * (10_000 / 5000 + 2))
    assert plan.total == plan.start + plan.search + plan.refit + plan.evaluate
    assert plan.device == "core"
    assert plan.device_hours == pytest.approx(plan.total * 2 / 3600)
    assert plan.reaching == {1: 10, 4: 10}
    # 2 x 5 folds and the ensemble twice more, their logits, two checkpoints, the databases, and the
    # best three trials.
    assert (
        plan.disk == 20 * 2_000_000 + 2 * 50_000 * 160 + 2 * 6_000_000 + 10 * 20_000 + 3 * 2_000_000
    )


def test_seeds_the_baseline_and_the_model_of_all_images_cost_time() -> None:
    fold = 2 + 4 * 43 + 2
    plain = plan_of(make_space())
    seeds = plan_of(make_space(refit=REFIT | {"seeds": 3}))
    assert seeds.refit == pytest.approx(3 * plain.refit) == pytest.approx(3 * 2 * 5 * fold)
    assert (seeds.refit_jobs, seeds.refit_epochs) == (30, 120)
    assert seeds.evaluate == pytest.approx(3 * plain.evaluate)
    whole = plan_of(make_space(refit=REFIT | {"all_images": True}))
    # 50,000 images an epoch, and none to validate on.
    assert whole.refit == pytest.approx(plain.refit + 2 + 4 * (50 + 1))
    assert whole.refit_images == plain.refit_images + 4 * 50_000
    assert whole.refit_jobs == 11
    points = [{"model.dropout": 0.1}, {"model.dropout": 0.2}]
    few = {"search": {"num_trials": 3}, "points": points}
    sole = plan_of(make_space(**few, refit=REFIT | {"top_k": 3, "baseline": True}))
    assert sole.refit == pytest.approx(3 * 5 * fold), "the baseline is among them"
    two = plan_of(make_space(refit=REFIT | {"baseline": True}))
    assert plain.refit <= two.refit <= plain.refit + 5 * fold + 0.001
    assert two.refit > plain.refit, "in some rehearsal the baseline is not among the best two"


def test_snapshots_and_the_best_epoch_cost_time_and_disk() -> None:
    base = {"model": {"name": "speednet_small"}, "epochs": 4, "batch_size": 100}
    plain = plan_of(make_space())
    restarts = {"name": "restarts", "cycles": 2, "warmup": 0}
    snapshots = plan_of(make_space(base=base | {"schedule": restarts}))
    # Of each fold one epoch more is kept, and predicts the images that were held out.
    assert snapshots.refit == pytest.approx(plain.refit + 2 * 5 * 10_000 / 5000)
    assert snapshots.evaluate == pytest.approx(5 * (2 * 10_000 / 5000 + 2))
    assert snapshots.disk == plain.disk + 2 * 5 * 2_000_000
    best = plan_of(make_space(base=base | {"stopping": {"keep": "best"}}))
    assert best.disk == plain.disk + 2 * 2_000_000


def test_processes_of_their_own_take_each_job_ten_seconds() -> None:
    plain, isolated = (
        plan_of(make_space(resources={"isolation": kind})) for kind in ("slot", "process")
    )
    assert isolated.search == pytest.approx(plain.search + 10 * 10)
    assert isolated.refit == pytest.approx(plain.refit + 10 * 10)


def test_two_slots_take_half_the_time_of_the_same_devices() -> None:
    one, two = plan_of(make_space()), plan_of(make_space(), slots=2, gpus=0.5)
    assert two.search == one.search / 2
    assert two.refit == one.refit / 2
    assert two.device == "GPU"
    assert two.device_hours == pytest.approx(two.total / 3600)


def test_an_odd_number_of_jobs_leaves_a_slot_idle() -> None:
    plan = plan_of(make_space(refit=REFIT | {"top_k": 1, "folds": 3}), slots=2)
    fold = 2 + 4 * (50_000 * 2 / 3 / 1000 + 50_000 / 3 / 5000 + 1) + 50_000 / 3 / 5000
    assert plan.refit == pytest.approx(2 * fold)


def test_the_time_budget_bounds_the_search_and_not_the_refit() -> None:
    free = plan_of(make_space())
    bound = plan_of(make_space(search={"num_trials": 10, "time_budget": 250}))
    assert (bound.search, bound.epochs) == (250, 20)
    assert bound.refit == free.refit
    roomy = plan_of(make_space(search={"num_trials": 10, "time_budget": "1h"}))
    assert roomy.search == free.search


def test_the_first_result_is_foreseen() -> None:
    assert plan_of(make_space()).first_epoch == 2 + 12


def test_the_longest_epoch_is_foreseen() -> None:
    """The build, 50,000 images trained and evaluated, a checkpoint, and two views predicted."""
    base = {"model": {"name": "speednet_small"}, "epochs": 4, "batch_size": 100, "tta": "flip"}
    assert plan_of(make_space(base=base)).longest_epoch == 2 + 50 + 10 + 1 + 2 * 10


def test_a_long_search_is_extrapolated() -> None:
    plan = plan_of(make_space(search={"num_trials": 640, "sampler": "random"}))
    assert plan.epochs == 640 * 4
    assert plan.reaching == {1: 640, 4: 640}


def test_a_space_with_fewer_points_than_trials_is_planned_as_it_will_end() -> None:
    space = make_space(parameters={"optimizer.name": {"values": ["sgd", "adamw"]}})
    plan = plan_of(space)
    assert (plan.trials, plan.epochs, plan.reaching) == (2, 8, {1: 2, 4: 2})
    fixed = plan_of(make_space(parameters={}))
    assert (fixed.trials, fixed.epochs, fixed.refit_jobs) == (1, 4, 5)


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_a_space_of_many_points_is_planned_to_its_last(sampler: str) -> None:
    """Also where a rehearsal ends before it has come to all of them."""
    values = {"augment.crop": {"min": 0, "max": 9}, "batch_size": {"values": [*range(100, 110)]}}
    space = make_space(parameters=values, search={"sampler": sampler, "num_trials": 1000})
    plan = plan_of(space)
    assert (plan.trials, plan.epochs, plan.reaching) == (100, 400, {1: 100, 4: 100})


def test_each_network_is_measured_before_any_twice() -> None:
    names = ["speednet_small", "lenet", "resnet18", "wideresnet", "mlp"]
    space = make_space(
        parameters={
            "model.name": {"values": names},
            "optimizer.name": {"values": ["sgd", "adamw", "muon"]},
            "batch_size": {"values": [100, 256, 1024]},
        }
    )
    assert {recipe.model.name for recipe in recipes_to_measure(space)} == {*names}


def test_a_grid_that_is_too_large_is_refused() -> None:
    parameters = {
        "augment.crop": {"min": 0, "max": 16},
        "batch_size": {"min": 2, "max": 10_000},
    }
    with pytest.raises(ValidationError, match="more than 100,000 points; qmc spreads evenly"):
        make_space(parameters=parameters, search={"sampler": "grid"})


def test_epochs_of_the_refit_may_differ() -> None:
    assert plan_of(make_space(refit=REFIT | {"top_k": 1, "epochs": 7})).refit_epochs == 5 * 7


def test_a_smoke_run_is_planned_on_its_own_images() -> None:
    alone = ("baseline", "all_images")
    plan = plan_of(smoke_space(load_space(QUICK, [f"refit.{name}=false" for name in alone])))
    assert plan.refit_images == 2 * 2 * (512 + 512) // 2
    assert plan.total < 60


def test_each_kind_of_recipe_has_its_cost() -> None:
    names = ["speednet_small", "resnet18"]
    space = make_space(
        parameters={
            "model.name": {"values": names},
            "optimizer.name": {"values": ["sgd", "adamw"]},
            "model.dropout": {"min": 0.0, "max": 0.5},
        },
        search={"num_trials": 4, "sampler": "grid"} | {"sampler": "qmc"},
        refit={"top_k": 4, "folds": 2},
    )
    recipes = recipes_to_measure(space)
    assert recipes[0] == space.base
    kinds = {(recipe.model.name, recipe.optimizer.name) for recipe in recipes}
    assert kinds == {(name, o) for name in names for o in ("sgd", "adamw")}
    slow = Cost(100, 500, 2, 1, 50_000_000, 40_000_000)
    costs = [slow if recipe.model.name == "resnet18" else COST for recipe in recipes]
    plan = plan_of(space, costs, recipes)
    runs = rehearse(space)
    share = [sum(t.recipe.model.name == "resnet18" for t in run) / len(run) for run in runs]
    mean = sum(share) / len(share)
    fast_trial, slow_trial = 2 + 4 * 12, 2 + 4 * (100 + 10 + 1)
    assert plan.search == pytest.approx(4 * (mean * slow_trial + (1 - mean) * fast_trial))
    assert plan.rates == {
        f"{recipe.model.name}, {recipe.optimizer.name}": cost.train_rate
        for recipe, cost in zip(recipes, costs, strict=True)
    }


def test_what_is_not_measured_costs_what_is_nearest() -> None:
    values = [16 * 2**n for n in range(8)]
    space = make_space(
        parameters={
            "batch_size": {"values": [*values, 100]},
            "model.name": {"values": ["speednet_small", "resnet18"]},
        }
    )
    recipes = recipes_to_measure(space)
    assert len(recipes) == 6  # of eighteen kinds
    plan_of(space, [COST] * 6, recipes)


def test_a_long_plan_says_how_to_make_it_shorter() -> None:
    space = load_space(QUICK.with_name("resnet.yaml"))
    slow = Cost(190, 600, 2, 1, 134_000_000, 45_000_000)
    plan = plan_of(space, [slow])
    assert plan.refit > 24 * 3600  # the refit alone: more than a day on two cores
    assert any(change.startswith("refit.") for change in plan.savings)
    for change, seconds in plan.savings.items():
        shorter = plan_of(load_space(QUICK.with_name("resnet.yaml"), [change]), [slow])
        saved = plan.total - shorter.total
        # As promised; fewer trials also teach the sampler less.
        assert saved == pytest.approx(seconds, rel=0.35), change
    assert len(savings_lines(plan)) == len(plan.savings) > 2
    assert plan_of(make_space()).savings == {}


def test_a_plan_is_told_on_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    plan = plan_of(make_space(search={"num_trials": 10, "time_budget": 250}))
    assert all(len(line) <= 63 for line in plan_lines(plan))
    assert "search 4 min 10 s (time budget 4 min 10 s)" in "\n".join(plan_lines(plan))
    console = Console(width=80)
    console.print(plan_table(plan))
    shown = capsys.readouterr().out
    assert "1,000 images/s  speednet_small" in shown
    assert "20 (20 to 20 in rehearsals)" in shown
    json.dumps(plan.as_dict())


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (38_000_000, "38 MB"), (1.4e9, "1.4 GB")],
)
def test_sizes_are_for_people(count: float, text: str) -> None:
    assert size(count) == text
