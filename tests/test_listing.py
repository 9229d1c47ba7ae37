"""Trials, recipes and searches as tables, CSV, JSON and YAML."""

import csv
import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from made_up_standing import run_trials, space_of
from rich.console import Console
from searches import cifartune

from cifartune.cli import main
from cifartune.config import load_space
from cifartune.errors import UserError
from cifartune.report.best import best_of, space_file_of
from cifartune.report.frames import trials_frame
from cifartune.report.leaderboard import leaderboard_frame
from cifartune.report.listing import Listing, print_listing, select
from cifartune.runs import RunFolder
from cifartune.tuning.study import TrialStudy

FRAME = pd.DataFrame(
    {
        "trial": [0, 1, 2, 3],
        "state": ["COMPLETE", "PRUNED", "COMPLETE", "FAIL"],
        "value": [0.5, 0.25, 0.75, None],
        "optimizer.name": ["sgd", "adamw", "sgd", "muon"],
        "optimizer.momentum": [0.9, None, 0.5, None],
        "whitening": [True, False, True, True],
    }
)


@pytest.mark.parametrize(
    ("filters", "trials"),
    [
        (["optimizer.name=sgd"], [0, 2]),
        (["optimizer.name!=sgd"], [1, 3]),
        (["value>=0.5"], [0, 2]),
        (["value < 5e-1"], [1]),
        (["value!=0.5"], [1, 2, 3]),
        (["trial>0", "trial<=2"], [1, 2]),
        (["trial==2", "state==complete"], [2]),
        (["state=complete", "value>0.6"], [2]),
        (["whitening=true"], [0, 2, 3]),
        (["failure="], None),
        (["optimizer.momentum="], [1, 3]),
    ],
)
def test_filters(filters: list[str], trials: list[int] | None) -> None:
    if trials is None:
        with pytest.raises(UserError, match=r"^--filter failure=: there is no column 'failure'; "):
            select(FRAME, Listing(filters))
        return
    assert list(select(FRAME, Listing(filters))["trial"]) == trials


def test_sorting_and_columns() -> None:
    assert list(select(FRAME, Listing(sort="-value"))["trial"]) == [2, 0, 1, 3]
    assert list(select(FRAME, Listing(sort="value", limit=2))["trial"]) == [1, 0]
    assert list(select(FRAME, Listing(sort="optimizer.name"))["trial"]) == [1, 3, 0, 2]
    asked = Listing(filters=["value>0.3"], columns=["optimizer.name", " trial", "trial"])
    assert list(select(FRAME, asked, ["state"]).columns) == ["optimizer.name", "trial"]
    assert list(select(FRAME, Listing(sort="-trial"), ["state"]).columns) == ["state"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Listing(sort="-valeu"), r"^--sort: there is no column 'valeu'; did you mean value\?$"),
        (Listing(columns=["momentum"]), "^--columns: .* did you mean optimizer.momentum"),
        (Listing(["lr=3"]), "^--filter lr=3: there is no column 'lr'; --format csv has them all"),
        (Listing(["value"]), "^--filter value: must be COLUMN=VALUE"),
        (Listing(["optimizer.name>sgd"]), "^--filter .*: > compares numbers, and 'sgd' is none"),
    ],
)
def test_what_makes_no_sense_is_one_message(wanted: Listing, message: str) -> None:
    with pytest.raises(UserError, match=message):
        select(FRAME, wanted)


def test_a_table_fits_and_names_what_it_leaves_out() -> None:
    study = TrialStudy(space_of())
    run_trials(study, [], count=20)
    frame = trials_frame(study)
    for width in (60, 80, 200):
        file = io.StringIO()
        print_listing(frame, "table", Console(file=file, width=width))
        lines = file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert len([line for line in lines if line.strip()[:1].isdigit()]) == len(frame)
        assert "not shown: " in file.getvalue()


def printed(frame: pd.DataFrame, format: str) -> str:
    file = io.StringIO()
    print_listing(frame, format, Console(file=file, width=80))
    return file.getvalue()


def test_csv_and_json_have_the_whole_values() -> None:
    study = TrialStudy(space_of())
    run_trials(study, [], count=20)
    frame = trials_frame(study)
    rows = json.loads(printed(frame, "json"), parse_constant=pytest.fail)
    assert [row["value"] for row in rows] == [
        value if value == value else None for value in frame["value"]
    ]
    assert {row["failure"] for row in rows} >= {None, "non_finite_loss", "worker_killed"}
    read = list(csv.DictReader(io.StringIO(printed(frame, "csv"))))
    assert [row["optimizer.lr"] for row in read] == [str(value) for value in frame["optimizer.lr"]]


def test_the_commands_on_a_finished_search(smoke_run: Path, tmp_path: Path) -> None:
    runs, name = smoke_run.parent, smoke_run.name
    told = cifartune(
        *("trials", name, "--runs", runs, "--format", "csv", "--sort", "-trial"),
        *("--columns", "trial,value", "--filter", "trial<9"),
        cwd=tmp_path,
    )
    assert told.stderr == ""
    rows = list(csv.DictReader(io.StringIO(told.stdout)))
    assert [(list(row), row["trial"]) for row in rows] == [
        (["trial", "value"], "1"),
        (["trial", "value"], "0"),
    ]
    table = cifartune("trials", name, "--runs", runs, cwd=tmp_path).stdout
    assert max(map(len, table.splitlines())) <= 80
    wrong = cifartune("trials", name, "--runs", runs, "--sort", "valeu", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == ("cifartune: --sort: there is no column 'valeu'; did you mean value?\n")
    board = cifartune("leaderboard", "--runs", runs, "--format", "json", cwd=tmp_path)
    [row] = [row for row in json.loads(board.stdout) if row["name"] == name]
    result = json.loads((smoke_run / "result.json").read_text())
    assert row["cv_accuracy"] == result["cv_accuracy"]["value"]
    assert row["winner"] == result["winner_trial"]


def test_a_full_disk_is_one_line(
    smoke_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cifartune", "leaderboard", "--runs", str(smoke_run.parent)])
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(SystemExit, match="2"):
            main()
    assert capsys.readouterr().err == (
        "cifartune: No space left on device; make room, and go on with the same command\n"
    )


def test_a_result_of_another_version_is_one_line(smoke_run: Path, tmp_path: Path) -> None:
    shutil.copytree(smoke_run, tmp_path / "old")
    run = RunFolder.open(tmp_path, "old")
    result = json.loads(run.result.read_text())
    del result["trials"]["total"]
    run.result.write_text(json.dumps(result))
    message = r"old/result.json: cannot be read: it has no total; remove it, and .* resume old"
    with pytest.raises(UserError, match=message):
        best_of(run)
    with pytest.raises(UserError, match=message):
        leaderboard_frame(tmp_path, ["old"])


def test_the_best_recipe_is_a_file_to_search_with(smoke_run: Path, tmp_path: Path) -> None:
    told = cifartune("best", smoke_run.name, "--runs", smoke_run.parent, cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    file = tmp_path / "best.yaml"
    file.write_text(told.stdout)
    space, result = load_space(file), json.loads((smoke_run / "result.json").read_text())
    assert space.base.model_dump(exclude={"seed"}) == {
        name: value for name, value in result["winner"].items() if name != "seed"
    }
    assert (space.search.num_trials, space.parameters, space.stand_in) == (1, {}, 512)
    assert space.data == load_space(smoke_run / "space.yaml").data
    checked = cifartune("validate", file, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr


def test_the_best_so_far_of_a_search_that_is_not_finished(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, space_of())
    with pytest.raises(UserError, match="no trial has a value yet"):
        best_of(run)
    study = TrialStudy(space_of(), url=run.study_url, name=run.study_name)
    run_trials(study, [], count=40)
    [leading], found = study.best(), best_of(run)
    assert (found.trial, found.recipe) == (leading.number, study.recipe(leading))
    assert json.loads(json.dumps(found.as_dict()))["value"] == found.value
    file = tmp_path / "best.yaml"
    file.write_text(space_file_of(found))
    assert "# the search is not finished: " in file.read_text()
    assert load_space(file).base.optimizer == found.recipe.optimizer


def test_the_leaderboard_is_of_finished_searches(smoke_run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(smoke_run, tmp_path / name)
    result = json.loads((tmp_path / "b" / "result.json").read_text())
    result["cv_accuracy"]["value"] = 0.99
    (tmp_path / "b" / "result.json").write_text(json.dumps(result))
    RunFolder.create(tmp_path, space_of(), "unfinished")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "result.json").write_text('{"winner_trial": 3}')
    notes: list[str] = []
    frame = leaderboard_frame(tmp_path, (), notes.append)
    assert list(frame["name"]) == ["b", "a"]
    [note] = notes
    assert note.startswith(f"{tmp_path}/old/result.json: cannot be read: it has no cv_accuracy")
    assert list(leaderboard_frame(tmp_path, ["a"])["name"]) == ["a"]
    with pytest.raises(UserError, match="unfinished is not finished"):
        leaderboard_frame(tmp_path, ["a", "unfinished"])
    with pytest.raises(UserError, match="there are no finished searches"):
        leaderboard_frame(tmp_path / "a", ())
    told = cifartune("leaderboard", "--runs", tmp_path, cwd=tmp_path)
    assert "cifartune compare A B" in told.stdout
    assert max(map(len, told.stdout.splitlines())) <= 80
