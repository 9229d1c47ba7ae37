"""Every file in search_spaces/: valid, readable, trainable; planned and smoke-run, some of them."""

import json
import math
from itertools import islice
from pathlib import Path

import pytest
import torch
from optuna.trial import FrozenTrial
from searches import QUICK, cifartune

from cifartune.config import Recipe, SearchSpace, load_space, smoke_space
from cifartune.data import LabelledImages
from cifartune.models.facts import network_facts
from cifartune.models.network import head_layers
from cifartune.planning import make_plan, recipes_to_measure
from cifartune.planning.rehearsal import rehearse
from cifartune.training import SplitImages
from cifartune.training.canary import idle_parameters
from cifartune.training.trainer import Trainer
from cifartune.tuning.messages import Cost, Probed
from cifartune.tuning.proposals import Proposer

FOLDER = QUICK.parent
SPACES = sorted(FOLDER.glob("*.yaml"))
each_space = pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)

FOLLOWS = {
    "resnet_dropout": ("resnet_plain", {"model.activation", "model.block_dropout"}),
    "resnet_wishes": ("resnet_joint_augmentation", set()),
    "architectures": ("resnet_joint_augmentation", {"model.name"}),
    "wideresnet_cutmix": (
        "wideresnet",
        {"augment.cutmix", "augment.cutmix_alpha", "schedule.cycles", "epochs"},
    ),
    "wideresnet_snapshots": (
        "wideresnet_cutmix",
        {
            *("model.squeeze_excite", "schedule.cycles", "epochs"),
            *("stopping.metric", "stopping.patience", "stopping.keep"),
        },
    ),
    "fast96": ("fast94", {"model.name", "augment.crop", "augment.cutout", "epochs"}),
    "fast_search": ("fast94", {"model.norm_momentum", "data.small_share"}),
    "lenet_efficientnet": ("tutorial_net", {"model.name", "model.dropout"}),
    "lenet_initialisation": ("lenet_efficientnet", {"model.init"}),
    "lenet_optimisers": ("lenet_initialisation", set()),
    "pretrained_head": ("pretrained_all_layers", {"model.trainable"}),
    "pretrained_resized": (
        "pretrained_all_layers",
        {
            *("model.resolution", "epochs", "augment.strength"),
            *("augment.crop", "augment.rotation", "augment.padding"),
        },
    ),
    "pretrained_normalisation": ("pretrained_resized", {"data.normalize", "epochs"}),
    "resnet_five_million_folds": ("resnet_five_million", {"epochs", "stopping.keep"}),
    "resnet_added_copies": ("resnet_five_million", set()),
    "resnet_five_million_search": (
        "resnet_five_million",
        {"optimizer.weight_decay", "epochs", "stopping.keep"},
    ),
}
"""The files that go on from another: which, and the fields in which their baselines differ."""

LARGE = 15_000_000
"""A network of more weights is counted and not trained here."""

LARGEST_SIDE = 64
"""Nor is one that takes larger images."""

IMAGES, BATCH = 8, 4
"""What a step is tried on."""


@each_space
def test_a_space_is_valid_and_means_what_it_says(path: Path) -> None:
    space = load_space(path)
    assert space.notes() == []
    assert space.name == path.stem


@each_space
def test_a_space_opens_with_its_command_and_its_cost(path: Path) -> None:
    first, *others = path.read_text().splitlines()
    assert first.startswith(f"# cifartune search search_spaces/{path.name}")
    comment = "\n".join(line for line in others[:12] if line.startswith("#"))
    assert any(unit in comment for unit in ("minute", "hour", " min ", "day"))


@pytest.mark.parametrize("name", FOLLOWS)
def test_a_space_that_goes_on_from_another_changes_what_it_says(name: str) -> None:
    before, changed = FOLLOWS[name]
    ours, theirs = (load_space(FOLDER / f"{file}.yaml").base.flat() for file in (name, before))
    assert {field for field in ours if ours[field] != theirs[field]} == changed


@each_space
def test_every_recipe_of_a_space_trains(path: Path, cifar: LabelledImages) -> None:
    space = load_space(path)
    recipes = recipes_of(space)
    if space.scheduler.name == "none":  # a comparison: each of its trials is a recipe of its own
        assert len({recipe.id for recipe in recipes}) == len(recipes) == space.search.num_trials
    for recipe in recipes:
        # No weights are fetched here.
        recipe = recipe.with_values({"model.weights": "none", "batch_size": BATCH})
        facts = network_facts(recipe.model)
        for metric, bound in space.constraints.items():
            assert bound.excess(getattr(facts, metric)) <= 0
        if facts.params <= LARGE and recipe.model.resolution <= LARGEST_SIDE:
            check_steps(recipe, cifar)


def recipes_of(space: SearchSpace) -> list[Recipe]:
    """What the search would train: all of it where nothing is stopped early, else the baseline."""
    proposer, trials = Proposer(space), list[FrozenTrial]()
    wanted = space.search.num_trials if space.scheduler.name == "none" else 1
    for trial in islice(iter(lambda: proposer.propose(trials), None), wanted):
        trials.append(trial)
    return [space.base.with_values(trial.params) for trial in trials]


def check_steps(recipe: Recipe, cifar: LabelledImages) -> None:
    """Trains for two steps, which change the head, and nothing that is frozen."""
    split = SplitImages(
        images=torch.from_numpy(cifar.images),
        labels=torch.from_numpy(cifar.labels).long(),
        train=torch.arange(IMAGES),
        validation=torch.arange(IMAGES, 2 * IMAGES),
    )
    trainer = Trainer(recipe, split, device=torch.device("cpu"))
    weights = dict(trainer.network.named_parameters())
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    result = next(iter(trainer))
    assert math.isfinite(result.train_loss) and math.isfinite(result.val_loss)
    moved = {name for name, weight in weights.items() if not weight.equal(before[name])}
    assert not [name for name in moved if not weights[name].requires_grad]
    head = [layer.get_parameter("weight") for layer in head_layers(trainer.network)]
    assert any(weights[name] is weight for name in moved for weight in head)


@pytest.mark.slow
@each_space
def test_no_parameter_of_a_smoke_run_is_idle(path: Path, cifar: LabelledImages) -> None:
    """It would stop the run, although the search itself is sound."""
    smoke = smoke_space(load_space(path))
    base = smoke.base.with_values({"model.weights": "none"})
    smoke = smoke.model_copy(update={"base": base})
    split = SplitImages(
        images=torch.from_numpy(cifar.images),
        labels=torch.from_numpy(cifar.labels).long(),
        train=torch.arange(300),
        validation=torch.arange(300, 400),
    )
    assert idle_parameters(smoke, split) == {}


@each_space
def test_a_space_is_planned_from_costs(path: Path) -> None:
    space = load_space(path)
    recipes = recipes_to_measure(space)
    cost = Cost(1000, 5000, 2, 1, checkpoint_bytes=6 * 10**6, weights_bytes=2 * 10**6)
    plan = make_plan(
        space,
        rehearse(space, slots=2),
        recipes,
        Probed({}, [cost] * len(recipes), 10**9),
        slots=2,
        cpus=1.0,
        gpus=0.0,
        start=20.0,
    )
    assert plan.trials == space.search.num_trials
    assert len(plan.rates) == len(recipes)  # each has a name of its own


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quick", "resnet"])
def test_a_space_is_planned(name: str, data_root: Path, tmp_path: Path) -> None:
    path = FOLDER / f"{name}.yaml"
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
    # The best and the baseline fold by fold, and the winner on all images.
    jobs = space.refit.folds * (space.refit.top_k + space.refit.baseline) + space.refit.all_images
    assert plan["refit_epochs"] == jobs * (space.refit.epochs or space.base.epochs)
    slowest = min(plan["rates"].values())
    fastest = max(plan["rates"].values())
    for stage, images in (("search", plan["images"]), ("refit", plan["refit_images"])):
        seconds = plan[stage] * plan["slots"]
        assert images / fastest < seconds < 2 * images / slowest
    assert plan["memory"] > 3e8 and plan["disk"] > 1e6
    assert list(tmp_path.iterdir()) == []  # a plan leaves nothing


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["quick", "resnet", "tutorial_net", "lenet_optimisers", "mixture_two_blocks"]
)
def test_a_space_runs(name: str, data_root: Path, tmp_path: Path) -> None:
    result = cifartune(
        "search",
        FOLDER / f"{name}.yaml",
        "--smoke",
        cwd=tmp_path,
        CIFARTUNE_DATA=str(data_root),
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    assert "Winner" in result.stdout
