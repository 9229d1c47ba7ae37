"""One mistake is told once: nothing that follows from it, and all that does not."""

import pytest

from cifartune.config.load import parse_space
from cifartune.errors import UserError

LR = "optimizer.lr: {min: 0.01, max: 1}"
NAMES = "optimizer.name: {values: [sgd, adamw]}"


def places(text: str) -> list[str]:
    """The keys that the messages name."""
    with pytest.raises(UserError) as caught:
        parse_space(text, source="f.yaml")
    return [line.split(": ")[1] for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        # A key or value of the baseline that something else is compared with
        (
            "base: {optimizer: {nme: adamw}}\n"
            "parameters: {optimizer.name: {values: [adamw, muon]}}",
            "base.optimizer.nme",
        ),
        (
            "base: {optimizer: {learning_rate: 3}}\nparameters: {optimizer.lr: {min: 1, max: 9}}",
            "base.optimizer.learning_rate",
        ),
        (
            "base: {optimizer: {name: adanw}}\n"
            "parameters:\n"
            "  optimizer.weight_decay: {min: 0.1, max: 0.2, when: {optimizer.name: sgd}}\n"
            f"  {NAMES}",
            "base.optimizer.name",
        ),
        ("base: {epochs: '60'}\nscheduler: {grace_period: 50}", "base.epochs"),
        (
            f"base: {{optimizer: {{lr: x}}}}\n"
            f"parameters: {{{LR}}}\npoints: [{{optimizer.lr: 0.1}}]",
            "base.optimizer.lr",
        ),
        ("base: {model: {name: resnet81, weights: imagenet, stem: cifar}}", "base.model.name"),
        (
            "base: {model: {nam: resnet34}}\n"
            "parameters: {model.stem: {values: [cifar, native]}, "
            "model.weights: {values: [none, imagenet]}}",
            "base.model.nam",
        ),
        (f"bse: {{optimizer: {{lr: 2}}}}\nparameters: {{{LR}}}", "bse"),
        # A parameter that others name
        (
            "base: {}\nparameters: {epochs: {min: 10, mx: 60}}\nscheduler: {grace_period: 50}",
            "parameters.epochs.mx",
        ),
        (
            "base: {}\n"
            "parameters:\n"
            "  optimizer.nme: {values: [sgd, adamw]}\n"
            "  optimizer.momentum: {min: 0.8, max: 0.9, when: {optimizer.name: sgd}}\n"
            "points: [{optimizer.name: adamw}]",
            "parameters.optimizer.nme",
        ),
        (
            "base: {}\n"
            "parameters:\n"
            "  optimizer: {weight_decay: {values: [0.0005, 0.01]}}\n"
            "  model.dropout: {min: 0, max: 0.5, when: {optimizer.weight_decay: 0.01}}",
            "parameters.optimizer",
        ),
        (
            "base: {optimizer: {name: adamw}}\n"
            "parameters:\n"
            "  optimizer.name: {values: [sgd, adamw], wehn: {tta: none}}\n"
            "  optimizer.momentum: {min: 0.8, max: 0.98}\n"
            "points: [{optimizer.name: lion}]",
            "parameters.optimizer.name.wehn",
        ),
        (
            "base: {}\n"
            "parameters:\n"
            "  tta: {values: [none, flip]}\n"
            "  augment.crop: {values: [2, 4], when: {tta: flop}}\n"
            "  augment.flip: {values: [0.2, 0.5], when: {augment.crop: 2}}\n"
            "points: [{augment.crop: 2}, {augment.flip: 0.2}]",
            "parameters.augment.crop.when.tta",
        ),
        (
            "base: {}\n"
            "parameters:\n"
            f"  {NAMES}\n"
            "  optimizer.momentum: {min: 0.8, max: 0.98, when: {optimizer.name: sdg}}",
            "parameters.optimizer.momentum.when.optimizer.name",
        ),
        (
            f"base: {{}}\nparamters: {{{LR}, {NAMES}}}\n"
            "points: [{optimizer.lr: 0.2}]\nsearch: {sampler: grid}",
            "paramters",
        ),
        # A section whose keys have rules in common
        ("base: {}\nobjective: {metrc: val_loss, mode: min}", "objective.metrc"),
        ("base: {}\nobjectiv: {metric: val_loss}\nscheduler: {metric: val_loss}", "objectiv"),
        ("base: {}\ndata: {validatoin: 900, train_subset: 49000}", "data.validatoin"),
        (
            "base: {}\nobjectives: [{metric: parms}, {metric: val_accuracy}]",
            "objectives.0.metric",
        ),
        (
            "base: {}\nobjectives: [{metric: params}, {metric: val_loss}]\n"
            "scheduler: {metrc: val_loss}",
            "scheduler.metrc",
        ),
        ("base: {}\nscheduler: {nam: none, grace_period: 50}", "scheduler.nam"),
        ("base: {}\nscheduler: {name: nonee, grace_period: 50}", "scheduler.name"),
        (
            "base: {}\n"
            "scheduler: {name: hyperband, grace_period: 4, brackets: 3, reduction_factor: x}",
            "scheduler.reduction_factor",
        ),
        ("base: {}\nstand_inn: 30000\ndata: {train_subset: 30000}", "stand_inn"),
    ],
    ids=lambda value: value if "\n" not in value and "{" not in value else "",
)
def test_nothing_is_told_that_follows_from_another_mistake(text: str, place: str) -> None:
    assert places(f"name: a\n{text}") == [place]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: {epochs: 0}", ["base.epochs", "name"]),
        ("name: a\nscheduler: {grace_period: 31}", ["base"]),
        (
            "nam: a\nbase: {}\nscheduler: {grace_period: 31}",
            ["nam", "scheduler.grace_period"],
        ),
        ("name: a b\nbase: {}\nscheduler: {grace_period: 31}", ["name", "scheduler.grace_period"]),
        (
            "name: a\nzzzz: 1\nbase: {}\nscheduler: {grace_period: 31}",
            ["zzzz", "scheduler.grace_period"],
        ),
        (
            "name: a\nbase: {epochs: 5, epoch: 6}\nparameters: {optimizer.lr: {min: 1, max: 2}}",
            ["base.epoch", "base.optimizer.lr"],
        ),
        (
            "name: a\nbase: {model: {name: resnet81}}\nscheduler: {grace_period: 31}",
            ["base.model.name", "scheduler.grace_period"],
        ),
        (
            f"name: a\nbase: {{}}\nparameters: {{{LR}}}\n"
            "search: {num_trials: 1}\npoints:\n- {optimizer.lr: []}\n- {optimizer.lr: 3}",
            ["search.num_trials", "points.0.optimizer.lr", "points.1.optimizer.lr"],
        ),
        (
            "name: a\nbase: {}\nparameters: {optimizer: {min: 1, max: 2}, tta: {min: 0, max: 1}}",
            ["parameters.optimizer", "parameters.tta"],
        ),
        (
            "name: a\nbase: {}\nparameters:\n  lr: {min: 1}\n  model.drop: {values: 3}",
            ["parameters.lr", "parameters.model.drop.values", "parameters.model.drop"],
        ),
        (
            "name: a\nbase: {}\n"
            "objectives: [{metric: val_loss}, {metric: val_loss}, {metric: los}]",
            ["objectives.1.metric", "objectives.2.metric"],
        ),
        (
            "name: a\nbase: {}\nparameters:\n"
            "  tta: {values: [none, flip], when: {augment.crop: 2}}\n"
            "  augment.crop: {values: [2, 4], when: {tta: flip}}\n"
            "  augment.flip: {values: [0.2, 0.5], when: {augment.flip: 0.2}}",
            ["parameters.tta.when", "parameters.augment.flip.when"],
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_all_is_told_that_does_not(text: str, expected: list[str]) -> None:
    assert places(text) == expected
