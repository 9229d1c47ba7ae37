"""Searches that nobody ran: a study, and the events that its observers are told."""

import math
import random
from collections.abc import Sequence
from typing import Any

from cifartune.config import SearchSpace
from cifartune.events import Observer
from cifartune.tuning.study import TrialStudy

SLOTS = 4

METRICS = {"seconds": 8.0, "images_per_second": 2000.0}


def space_of(**changes: Any) -> SearchSpace:
    """A search of a hundred trials of up to 27 epochs, stopped by ASHA; sections may be changed."""
    sections = {
        "name": "made-up",
        "base": {"model": {"name": "speednet_small"}, "epochs": 27, "optimizer": {"lr": 0.1}},
        "parameters": {
            "optimizer.name": {"values": ["sgd", "adamw", "muon"]},
            "optimizer.lr": {"min": 0.001, "max": 0.3, "log": True},
            "optimizer.weight_decay": {"min": 1e-6, "max": 0.1, "log": True},
            "model.dropout": {"min": 0.0, "max": 0.5},
            "model.init": {"values": ["default", "kaiming_uniform", "xavier_normal"]},
            "augment.strength": {"min": 0.0, "max": 1.0},
        },
        "search": {"num_trials": 100, "sampler": "random"},
        "scheduler": {"name": "asha", "grace_period": 1, "reduction_factor": 3},
        "refit": {"top_k": 2, "folds": 5},
    }
    return SearchSpace.model_validate(sections | changes)


def run_trials(
    study: TrialStudy, observers: Sequence[Observer], *, count: int = 100, seed: int = 0
) -> None:
    """Lets so many more trials end, several at a time; most stop at a rung, and some fail."""
    draw = random.Random(seed)
    running = [trial.number for trial in study.trials if not trial.state.is_finished()]
    ended = 0
    while ended < count:
        while len(running) < SLOTS and study.trials_left > 0:
            proposal = study.propose()
            running.append(proposal.number)
            for observer in observers:
                observer.trial_started(proposal.number, proposal.recipe)
        if not running:
            return
        number = draw.choice(running)
        trial = study.trials[number]
        epoch = max(trial.intermediate_values, default=0) + 1
        distance = abs(math.log10(study.recipe(trial).optimizer.lr / 0.02))
        value = 0.9 - 0.5 / (1 + epoch) - 0.1 * draw.random() - 0.05 * distance
        metrics = METRICS | {study.space.target.metric: value}
        study.record(number, epoch, value, metrics)
        for observer in observers:
            observer.epoch_ended(number, epoch, metrics)
        if number % 20 == 7:
            study.reject(number, "non_finite_loss", "the loss was not finite in epoch 2")
        elif number % 30 == 11:
            study.fail(number, "worker_killed", "the slot died three times")
        elif epoch == study.space.max_epochs:
            study.complete(number)
        elif number and epoch in (1, 3, 9) and draw.random() < 0.6:
            study.prune(number)
        else:
            continue
        running.remove(number)
        ended += 1
        for observer in observers:
            observer.trial_ended(study.trials[number])


def begin_refit(study: TrialStudy, observers: Sequence[Observer]) -> list[int]:
    """Two folds of the best and of the baseline, which is dropped, and a part of the third."""
    numbers = list(dict.fromkeys([*(trial.number for trial in study.best(2)), 0]))
    epochs = study.space.max_epochs
    for observer in observers:
        for number in numbers:
            observer.refit_started(number, study.recipe(study.trials[number]))
        for fold in range(2):
            for number in numbers:
                for epoch in range(1, epochs + 1):
                    told = METRICS | {"val_accuracy": 0.8}
                    observer.part_epoch_ended(number, f"fold-{fold}", epoch, told)
                observer.part_ended(number, f"fold-{fold}", 0.8 + fold / 100, {})
        observer.refit_ended(0, {}, f"behind trial {numbers[0]} after 2 folds (p 1e-05)")
        observer.part_epoch_ended(numbers[0], "fold-2", 5, METRICS | {"val_accuracy": 0.7})
    return numbers
