"""Faults in the middle of a search by the real command, as a user would meet them."""

import json
import os
import re
import signal
from pathlib import Path

import psutil
import pytest
from searches import cifartune, logged_states, started

from cifartune.runs import RunFolder
from cifartune.tuning.recorded import recorded_trials
from cifartune.tuning.study import attributes, is_feasible

SPACE = """
name: small
base: {model: {name: mlp}, epochs: 6, batch_size: 100, compile: never, optimizer: {lr: 0.05}}
parameters:
  optimizer.lr: {min: 0.01, max: 1, log: true}
points: [{optimizer.lr: 0.25}]
data: {validation: 500, train_subset: 20000}
search: {num_trials: 3, max_concurrent: 1}
scheduler: {name: none}
resources: {cpus: 1, epoch_timeout: 40s}
refit: {top_k: 1, folds: 2, epochs: 1}
stand_in: 500
"""

FAULTS = {
    "nan": "[p.data.fill_(torch.nan) for p in trainer.network.parameters() if trainer.epoch == 1]",
    "memory": "torch.empty(2**50, dtype=torch.uint8)",
}
"""What the trainer does before the steps of trial 1, in the process of its slot."""

BROKEN = """
import importlib.util, sys

class Breaker:
    def find_spec(self, name, path=None, target=None):
        if name != "cifartune.training.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            import torch
            train_on = module.Trainer.train_on

            def broken(trainer, batches):
                if trainer.recipe.optimizer.lr == 0.25:
                    FAULT
                return train_on(trainer, batches)

            module.Trainer.train_on = broken

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Breaker())
"""

TOLD = {
    "nan": ("non_finite_loss", "the loss was not finite in epoch 2"),
    "memory": ("out_of_memory", "can't allocate memory"),
    "killed": ("", "slot 0 died"),
    "hangs": ("", "trial-1 gave no sign of life for 40 s"),
}
"""The kind of trial 1's failure, and what is said of the fault: in the study, or in the log."""


@pytest.mark.slow
@pytest.mark.parametrize("fault", TOLD)
def test_a_fault_costs_no_more_than_a_trial(fault: str, tmp_path: Path, data_root: Path) -> None:
    """Exit code, study, MLflow, `check`, and no process left."""
    (tmp_path / "small.yaml").write_text(SPACE)
    if fault in FAULTS:
        code = BROKEN.replace("FAULT", FAULTS[fault])
        (tmp_path / "sitecustomize.py").write_text(code)
    paths = [str(tmp_path), *os.environ.get("PYTHONPATH", "").split(":")]
    environment = {"CIFARTUNE_DATA": str(data_root), "PYTHONPATH": ":".join(filter(None, paths))}
    seen, is_hit = set[psutil.Process](), False
    with started("search", "small.yaml", "--json-lines", cwd=tmp_path, **environment) as search:
        assert search.stdout and search.stderr
        for line in search.stdout:
            seen.update(psutil.Process(search.pid).children(recursive=True))
            event = json.loads(line)
            if not is_hit and (event["event"], event.get("trial")) == ("epoch", 1):
                is_hit = True
                if fault in ("killed", "hangs"):
                    [slot] = [one for one in seen if is_slot(one)]
                    slot.send_signal(signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        errors = search.stderr.read()
    assert (search.returncode, errors) == (0, "")
    assert is_hit or fault == "memory"  # which has no first epoch
    _, alive = psutil.wait_procs(seen, timeout=30)
    assert seen and not alive

    run = RunFolder(tmp_path / "runs" / "small")
    trials, (failure, told) = recorded_trials(run), TOLD[fault]
    assert attributes(trials[1]).get("failure", "") == failure
    states = [trial.state.name for trial in trials]
    if failure:
        assert told in attributes(trials[1])["message"] and not is_feasible(trials[1])
        assert states == ["COMPLETE", "PRUNED", "COMPLETE"]
    else:
        assert told in run.log.read_text()
        assert states == ["COMPLETE"] * 3
        assert [len(trial.intermediate_values) for trial in trials] == [6, 6, 6]
    runs = logged_states(tmp_path / "runs" / "mlflow.db")
    statuses = dict(runs)
    refits = [name for name in statuses if re.fullmatch(r"refit-\d+", name)]
    assert 1 <= len(refits) <= 2  # of the best, and of the baseline if that is another
    # The search, its trials, the refits with two folds each, and the model of all images.
    assert len(runs) == len(statuses) == 1 + 3 + 3 * len(refits) + 1
    assert statuses.pop("trial-1") == ("FAILED" if failure else "FINISHED")
    assert set(statuses.values()) == {"FINISHED"}
    checked = cifartune("check", "small", cwd=tmp_path, CIFARTUNE_DATA=str(data_root))
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout


def is_slot(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return False
