import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cifartune import runs as runs_module
from cifartune.config import SearchSpace, load_space, smoke_space
from cifartune.errors import UserError
from cifartune.evaluate import refuse_another_look
from cifartune.runs import RunFolder

EVERYTHING: dict[str, Any] = {
    "name": "thing",
    "objective": {"metric": "val_loss"},
    "base": {
        "model": {"name": "speednet", "dropout": 0.1},
        "optimizer": {"name": "sgd", "lr": 1e-3, "weight_decay": 0.0},
        "epochs": 5,
        "batch_size": 300,
    },
    "parameters": {
        "optimizer.name": {"values": ["sgd", "adamw"]},
        "optimizer.lr": {"min": 1e-5, "max": 1.0, "log": True},
        "optimizer.momentum": {"min": 0.8, "max": 0.98, "when": {"optimizer.name": "sgd"}},
        "batch_size": {"min": 100, "max": 500, "step": 50},
    },
    "data": {"validation": 500, "train_subset": 5000},
    "search": {"num_trials": 7, "seed": 3, "max_concurrent": 2, "time_budget": "90s"},
    "scheduler": {"grace_period": 2, "reduction_factor": 2.5},
    "resources": {"cpus": 0.5, "gpus": "auto"},
    "refit": {"top_k": 2, "folds": 3, "epochs": 4},
}


ACCURACY = {"value": 0.9, "low": 0.89, "high": 0.91}


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace.model_validate(EVERYTHING)


@pytest.mark.parametrize("smoke", [False, True])
def test_the_space_is_read_back_as_it_was(tmp_path: Path, space: SearchSpace, smoke: bool) -> None:
    space = smoke_space(space) if smoke else space
    run = RunFolder.create(tmp_path / "runs", space)
    assert load_space(RunFolder.open(tmp_path / "runs", run.name).space_file) == space


def test_an_unnamed_run_takes_the_next_free_name(tmp_path: Path, space: SearchSpace) -> None:
    names = [RunFolder.create(tmp_path, space).name for _ in range(3)]
    assert names == ["thing", "thing-2", "thing-3"]


def test_runs_that_start_at_once_take_different_names(tmp_path: Path, space: SearchSpace) -> None:
    names: list[str] = []
    begin = threading.Barrier(8)

    def create() -> None:
        begin.wait()
        names.append(RunFolder.create(tmp_path, space).name)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names) == ["thing", *(f"thing-{i}" for i in range(2, 9))]


def test_a_given_name_is_taken_once(tmp_path: Path, space: SearchSpace) -> None:
    assert RunFolder.create(tmp_path, space, "mine").name == "mine"
    with pytest.raises(UserError, match=r"--name mine: .*mine exists; .*cifartune resume mine"):
        RunFolder.create(tmp_path, space, "mine")
    with pytest.raises(UserError, match="exists"):
        RunFolder.check_name(tmp_path, "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["", "-x", ".x", "a/b", "a b", "..", "ä", "a\n"])
def test_a_name_is_a_plain_file_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="letters, digits"):
        RunFolder.check_name(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "resnet-18_v2.1", "2"])
def test_plain_names_are_free(tmp_path: Path, name: str) -> None:
    RunFolder.check_name(tmp_path, name)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, space: SearchSpace) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/runs: cannot write .*--runs"):
        RunFolder.create(tmp_path / "file" / "runs", space)


def test_an_unknown_run_is_told_with_those_that_exist(tmp_path: Path, space: SearchSpace) -> None:
    with pytest.raises(UserError, match="there are none yet"):
        RunFolder.open(tmp_path, "b")
    RunFolder.create(tmp_path, space, "c")
    RunFolder.create(tmp_path, space, "a")
    (tmp_path / "no-run").mkdir()
    with pytest.raises(UserError, match=r"no run is called b; there are a, c$"):
        RunFolder.open(tmp_path, "b")


def test_a_run_knows_its_place_from_anywhere(
    tmp_path: Path, space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunFolder.create(Path("runs"), space)
    monkeypatch.chdir("/")
    assert run.space_file.exists()
    assert run.fold(3, 1) == tmp_path.resolve() / "runs/thing/refit/trial-3/fold-1"


LOOK = {"trial": 3, "time": "then", "models": {"folds": {"accuracy": ACCURACY}}}


def test_a_look_is_of_the_models_that_are_there(tmp_path: Path, space: SearchSpace) -> None:
    """An extension may bring more seeds, or the model of all images, to the same winner."""
    run = RunFolder.create(tmp_path, space)
    weights = run.fold(3, 0) / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"one")
    look = LOOK | {"models_sha256": run.models_digest(3)}
    run.evaluation.write_text(json.dumps([look]))
    assert run.looks_for(3) == [look] and run.looks_for(4) == []
    with pytest.raises(UserError, match=r"trial 3, was evaluated at then: 90.00%.*--again"):
        refuse_another_look(run, 3)
    more = run.all_images(3) / "weights.safetensors"
    more.parent.mkdir()
    more.write_bytes(b"two")
    assert run.looks_for(3) == []
    refuse_another_look(run, 3)


@pytest.mark.parametrize(
    "text", ['[{"trial": 3, "accuracies": {}}]', '{"value": 0.9}', "[{", "[3]"]
)
def test_looks_that_cannot_be_read_are_told(tmp_path: Path, space: SearchSpace, text: str) -> None:
    run = RunFolder.create(tmp_path, space)
    run.evaluation.write_text(text)
    with pytest.raises(UserError, match=r"evaluation\.json: cannot be read: .+"):
        run.looks_for(3)


def test_the_winner_is_that_of_a_finished_search(tmp_path: Path, space: SearchSpace) -> None:
    run = RunFolder.create(tmp_path, space)
    with pytest.raises(UserError, match=r"thing is not finished; go on with: .*resume thing"):
        run.winner  # noqa: B018
    run.result.write_text('{"winner_trial": 3}')
    assert run.winner == 3
    for text in ("{}", "[", "[]"):
        run.result.write_text(text)
        with pytest.raises(UserError, match=r"result\.json: cannot be read"):
            run.winner  # noqa: B018


def test_a_search_has_one_process_and_a_dead_one_lets_go(
    tmp_path: Path, space: SearchSpace
) -> None:
    run = RunFolder.create(tmp_path, space)
    program = (
        "import sys, time; from pathlib import Path; from cifartune.runs import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked():\n"
        "    print(flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(UserError, match="another process is running this search"), run.locked():
            pytest.fail("two processes hold it")
        process.kill()
    with run.locked():
        assert process.returncode == -signal.SIGKILL


def test_a_search_that_is_held_to_tidy_is_waited_for(tmp_path: Path, space: SearchSpace) -> None:
    run, told = RunFolder.create(tmp_path, space), list[str]()
    with ThreadPoolExecutor() as others, ExitStack() as tidying:
        tidying.enter_context(RunFolder(run.path).held_to_tidy())

        def hold() -> str:
            with run.locked(told.append):
                return "held"

        waiting = others.submit(hold)
        while not told:
            assert not waiting.done()
        tidying.close()
        assert waiting.result(timeout=10) == "held"
    line = "another process is sending what is left of this search to MLflow"
    assert told == [f"thing: {line}; waiting for it"]


def test_what_is_waited_for_is_not_waited_for_long(
    tmp_path: Path, space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "TIDY_SECONDS", 0.1)
    run = RunFolder.create(tmp_path, space)
    with (
        RunFolder(run.path).held_to_tidy(),
        pytest.raises(UserError, match="sending what is left of this search"),
        run.locked(),
    ):
        pytest.fail("two processes hold it")
    with (
        RunFolder(run.path).locked(),
        pytest.raises(UserError, match="another process is at it"),
        run.held_to_tidy(),
    ):
        pytest.fail("two processes hold it")
    with run.held_to_tidy():
        pass
