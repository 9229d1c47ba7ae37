"""Comparing recipes, on predictions of which it is known who gets what right."""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from cifartune.cli import answers
from cifartune.comparison import NO_VERDICT, Compared, compare
from cifartune.config import SearchSpace
from cifartune.data import CLASSES, load_train
from cifartune.data.splits import Splits, make_splits
from cifartune.entries import find_entries, find_entry
from cifartune.errors import UserError
from cifartune.refit.out_of_fold import OutOfFold
from cifartune.report.compared import (
    comparison_frame,
    default_folder,
    print_comparison,
    write_comparison,
)
from cifartune.runs import RunFolder
from cifartune.statistics import Accuracy, corrected_t, corrected_t_test, fold_differences, paired
from cifartune.tracking import default_uri
from cifartune.tracking.store import MlflowStore
from cifartune.tuning.study import TrialStudy

Bools = npt.NDArray[np.bool_]

IMAGES = 2000
LABELS = np.random.default_rng(0).integers(0, 10, IMAGES).astype(np.uint8)
SPACE = SearchSpace.model_validate(
    {
        "name": "toy",
        "base": {"model": {"name": "speednet_small"}, "epochs": 2},
        "parameters": {"optimizer.lr": {"min": 0.01, "max": 1.0, "log": True}},
    }
)


def logits_of(right: Bools, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Logits (..., 10) of a model that is right where it is said to be."""
    answers = np.where(right, labels, (labels + 1) % 10)
    return np.eye(10, dtype=np.float32)[answers]


def right_but(count: int, seed: int) -> Bools:
    """Right on all images of `LABELS` but so many."""
    right = np.ones(IMAGES, dtype=bool)
    right[np.random.default_rng(seed).choice(IMAGES, count, replace=False)] = False
    return right


def finished(
    runs: Path, name: str, *, winner: int = 0, candidates: int = 1, **splitting: int
) -> RunFolder:
    """The folder of a finished search of five folds, without predictions yet."""
    run = RunFolder.create(runs, SPACE, name)
    given = {"validation": 400, "train_subset": None, "folds": 5, "seed": 0} | splitting
    make_splits(LABELS, **given).save(run.splits)  # type: ignore[arg-type]
    result = {"winner_trial": winner, "candidates": [{}] * candidates}
    run.result.write_text(json.dumps(result))
    return run


def add_refit(
    run: RunFolder,
    trial: int,
    *right: Bools,
    plain: Bools | None = None,
    folds: Sequence[int] = range(5),
) -> None:
    """What the refit of a trial leaves; an array for each seed, of all images."""
    splits = Splits.load(run.splits)
    indices = np.flatnonzero(np.isin(splits.fold, folds))
    with_tta, without = (
        np.stack([logits_of(own[indices], LABELS[indices]) for own in seeds])
        for seeds in (right, right if plain is None else [plain] * len(right))
    )
    OutOfFold(indices, splits.fold[indices], with_tta, without).save(run.out_of_fold(trial))


def add_trial(run: RunFolder, trial: int, right: Bools, name: str = "logits.npy") -> None:
    """What a trial whose weights are kept leaves."""
    validation = Splits.load(run.splits).validation
    folder = run.trials / str(trial)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / name, logits_of(right[validation], LABELS[validation]))


def add_study(run: RunFolder) -> None:
    """Trials 0 to 2: complete, complete, stopped."""
    study = TrialStudy(SPACE, url=run.study_url, name=run.study_name)
    for number in range(3):
        study.propose()
        study.record(number, 1, 0.5)
        if number < 2:
            study.record(number, 2, 0.6)
            study.complete(number)
    study.prune(2)


def compared(runs: Path, *names: str) -> Compared:
    return compare(find_entries(names, runs, "sqlite:///none.db"), LABELS)


def printed(found: Compared) -> str:
    file = io.StringIO()
    print_comparison(found, Console(file=file, width=80))
    assert max(map(len, file.getvalue().splitlines())) <= 80
    return file.getvalue()


def joined(found: Compared) -> str:
    """What is printed, in one line."""
    return " ".join(printed(found).split())


GOOD, MEDIUM, BAD = right_but(100, 1), right_but(130, 2), right_but(400, 3)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three finished searches with the same splits: good, medium and bad."""
    for name, right in {"bad": BAD, "good": GOOD, "medium": MEDIUM}.items():
        add_refit(finished(tmp_path / "runs", name, winner=4), 4, right)
    return tmp_path / "runs"


def test_pairs_are_those_of_the_statistics(runs: Path) -> None:
    found = compared(runs, "bad", "good", "medium")
    assert [entry.name for entry in found.entries] == ["good", "medium", "bad"]
    assert found.accuracies == [Accuracy.of(IMAGES - n, IMAGES) for n in (100, 130, 400)]
    assert [(pair.entry, pair.other) for pair in found.pairs] == [(1, 0), (2, 0), (2, 1)]
    told = found.pairs[1].comparison
    assert told.images == paired(BAD, GOOD)
    assert told.images.difference.value == pytest.approx(-0.15)
    folds = Splits.load(runs / "good" / "splits.npz").fold
    differences = fold_differences(BAD[None], GOOD[None], folds)
    assert told.folds == corrected_t(differences, 1 / 5)
    assert told.folds_p == corrected_t_test(differences, 1 / 5)
    assert told.verdict == "worse" and not found.notes


def test_the_error_rate_is_shared_among_all_pairs(tmp_path: Path) -> None:
    """Of different folds, so that McNemar's p alone decides: it is between 0.05/3 and 0.05."""
    worse = GOOD.copy()
    worse[np.flatnonzero(GOOD)[:20]] = False
    worse[np.flatnonzero(~GOOD)[:7]] = True
    assert 0.05 / 3 < paired(worse, GOOD).p < 0.05
    for seed, (name, right) in enumerate({"a": GOOD, "b": worse, "c": BAD}.items()):
        add_refit(finished(tmp_path, name, seed=seed), 0, right)
    assert [pair.comparison.verdict for pair in compared(tmp_path, "a", "b").pairs] == ["worse"]
    three = compared(tmp_path, "a", "b", "c")
    verdicts = [pair.comparison.verdict for pair in three.pairs]
    assert verdicts == ["cannot be told apart", "worse", "worse"]
    assert "below 0.017: an error rate of 5%, shared among 3 comparisons." in joined(three)


def test_a_winner_counts_as_often_as_there_were_candidates(tmp_path: Path) -> None:
    run = finished(tmp_path, "a", winner=2, candidates=3)
    other = finished(tmp_path, "b", winner=0, candidates=2)
    for trial in range(3):
        add_refit(run, trial, GOOD)
    add_refit(other, 0, BAD)
    assert compared(tmp_path, "a", "b").comparisons == 3 * 2
    assert compared(tmp_path, "a:2", "b").comparisons == 3 * 2
    assert compared(tmp_path, "a:1", "b").comparisons == 2
    assert compared(tmp_path, "a:0", "a:1", "a").comparisons == 1 + 3 + 3
    text = joined(compared(tmp_path, "a", "b"))
    assert "shared among 6 comparisons: a winner counts once for each refit" in text


def test_folds_count_only_where_they_are_the_same(tmp_path: Path) -> None:
    add_refit(finished(tmp_path, "a"), 0, GOOD)
    add_refit(finished(tmp_path, "b", seed=1), 0, BAD)
    add_refit(finished(tmp_path, "c"), 0, BAD, folds=[0])
    other = compared(tmp_path, "a", "b")
    assert other.pairs[0].comparison.folds is None
    assert len(other.labels) == IMAGES and "not trained on the same folds" in other.notes[0]
    assert "folds" not in printed(other).split("percentage points")[1].split("Two are told")[0]
    dropped = compared(tmp_path, "a", "c")  # after its first fold
    assert dropped.pairs[0].comparison.folds is None
    assert len(dropped.labels) == IMAGES / 5


def test_images_that_all_have_count(tmp_path: Path) -> None:
    add_refit(finished(tmp_path, "whole"), 0, GOOD)
    smoke = finished(tmp_path, "smoke", stand_in=300, train_subset=200)
    add_refit(smoke, 0, BAD)
    used = Splits.load(smoke.splits).fold >= 0
    found = compared(tmp_path, "smoke", "whole")
    assert len(found.labels) == used.sum() == 600
    assert found.accuracies[0] == Accuracy.of(int(GOOD[used].sum()), 600)
    assert found.accuracies[1] == Accuracy.of(int(BAD[used].sum()), 600)
    assert any("600 images count" in note and "whole has 2,000" in note for note in found.notes)


def test_seeds_are_compared_as_far_as_both_have_them(tmp_path: Path) -> None:
    run = finished(tmp_path, "a")
    add_refit(run, 0, GOOD, BAD)
    add_refit(run, 1, MEDIUM, MEDIUM, BAD)
    add_refit(run, 2, MEDIUM)
    both = compared(tmp_path, "a:0", "a:1")
    first, second = np.stack([GOOD, BAD]), np.stack([MEDIUM, MEDIUM])
    assert both.accuracies == [Accuracy.of_runs(second), Accuracy.of_runs(first)]
    folds = Splits.load(run.splits).fold
    told = both.pairs[0].comparison
    assert told.folds == corrected_t(fold_differences(first, second, folds), 1 / 5, seeds=2)
    assert told.images == paired(GOOD, MEDIUM)
    assert any("Only the first 2 seeds" in note for note in both.notes)
    assert compared(tmp_path, "a:0", "a:2").accuracies[0] == Accuracy.of(IMAGES - 100, IMAGES)


def test_trials_are_compared_on_validation_images(tmp_path: Path) -> None:
    run, other = finished(tmp_path, "a"), finished(tmp_path, "b")
    add_trial(run, 1, GOOD)
    add_trial(other, 5, BAD)
    add_trial(other, 6, BAD)
    add_trial(other, 6, MEDIUM, "logits_plain.npy")
    validation = Splits.load(run.splits).validation
    found = compared(tmp_path, "b:5", "a:1", "b:6")
    assert [entry.name for entry in found.entries] == ["a:1", "b:6", "b:5"]
    assert found.on_validation and (found.labels == LABELS[validation]).all()
    assert found.accuracies == [
        Accuracy.of(int(right[validation].sum()), 400) for right in (GOOD, MEDIUM, BAD)
    ]
    assert found.pairs[1].comparison.images == paired(BAD[validation], GOOD[validation])
    assert found.pairs[1].comparison.folds is None
    text = joined(found)
    assert "Accuracy on 400 validation images, without test-time augmentation" in text
    assert "Not refit: b:5, a:1, b:6." in text and "these images chose among trials" in text


def test_trials_are_not_called_better_on_images_that_chose_them(tmp_path: Path) -> None:
    run = finished(tmp_path, "a", winner=3)
    add_refit(run, 3, GOOD)
    add_refit(run, 2, BAD)
    add_trial(run, 1, BAD)
    validation = Splits.load(run.splits).validation
    assert paired(GOOD[validation], BAD[validation]).p < 0.0001
    found = compared(tmp_path, "a", "a:1", "a:2")
    assert {pair.comparison.verdict for pair in found.pairs} == {NO_VERDICT}
    text = joined(found)
    assert "there is no verdict: a trial is a single training run" in text
    for of_tests in ("McNemar", "corrected t", "0.0001", "worse", "told apart", "error rate"):
        assert of_tests not in text
    assert re.search(r"a:1 images -\d+\.\d\d -\d+\.\d\d to -\d+\.\d\d", text)
    frame = comparison_frame(found)
    assert "verdict" not in frame and frame["difference"].notna().all()
    assert frame["mcnemar_p"].isna().all() and frame["folds_p"].isna().all()
    refits = compared(tmp_path, "a", "a:2")
    assert [pair.comparison.verdict for pair in refits.pairs] == ["worse"]


def test_no_search_can_be_called_as_the_folder_of_comparisons(runs: Path) -> None:
    folder = default_folder(find_entries(["good", "bad"], runs, "sqlite:///none.db"), runs)
    assert folder.parent.parent == runs
    with pytest.raises(UserError, match="in front"):
        RunFolder.check_name(runs, folder.parent.name)


def test_beside_a_trial_a_refit_is_compared_on_validation_images(tmp_path: Path) -> None:
    run = finished(tmp_path, "a", winner=3)
    add_refit(run, 3, BAD, plain=GOOD)
    add_refit(run, 2, BAD, plain=MEDIUM)
    add_trial(run, 1, BAD)
    validation = Splits.load(run.splits).validation
    found = compared(tmp_path, "a", "a:1", "a:2")
    assert [entry.name for entry in found.entries] == ["a", "a:2", "a:1"]
    assert found.accuracies[0] == Accuracy.of(int(GOOD[validation].sum()), 400)
    with_folds = [pair.comparison.folds is not None for pair in found.pairs]
    assert with_folds == [True, False, False]  # the two refits have some in common
    assert "trained on other images than the trial" in " ".join(found.notes)


def test_the_tables_fit_on_a_terminal(tmp_path: Path) -> None:
    long = "a-search-that-somebody-gave-quite-a-long-name"
    add_refit(finished(tmp_path, long), 0, BAD)
    add_refit(finished(tmp_path, "b"), 12, GOOD)
    text = printed(compared(tmp_path, f"{long}:0", "b:12"))
    lines = [line.split("  ")[0].strip() for line in text.splitlines()]
    assert f"{long}:0" in "".join(lines), "a name may be folded, and is not cut"
    for told in ("95.00%", "80.00%", "-15.00", "McNemar", "corrected t", "the best", "worse"):
        assert told in text
    assert re.search(r"images +-15\.00 +-1\d\.\d\d to -1\d\.\d\d +< 0\.0001 +McNemar", text)


def test_the_csv_has_every_pair_and_class(runs: Path) -> None:
    frame = comparison_frame(compared(runs, "good", "bad", "medium"))
    assert len(frame) == 3 * 11
    pairs = frame[["entry", "against"]].drop_duplicates().to_numpy().tolist()
    assert pairs == [["medium", "good"], ["bad", "good"], ["bad", "medium"]]
    whole = frame[frame["class"] == "all"]
    assert list(whole["images"]) == [IMAGES] * 3
    assert whole["verdict"].notna().all() and whole["folds_p"].notna().all()
    own = frame[(frame["entry"] == "bad") & (frame["against"] == "good")].set_index("class")
    cat = CLASSES.index("cat") == LABELS
    assert own.loc["cat", "accuracy"] == BAD[cat].mean()
    assert own.loc["cat", "against_accuracy"] == GOOD[cat].mean()
    assert own.loc["cat", "mcnemar_p"] == paired(BAD[cat], GOOD[cat]).p
    classes = own.drop(index="all")
    assert classes["images"].sum() == IMAGES and classes["verdict"].isna().all()
    for column in ("only_entry_right", "only_against_right"):
        assert classes[column].sum() == own.loc["all", column]


def test_the_command_writes_csv_and_picture(
    runs: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the labels of the real images, which the predictions were not made for."""
    monkeypatch.setenv("CIFARTUNE_DATA", str(data_root))
    app = typer.Typer()
    app.command()(answers.compare)
    result = CliRunner().invoke(app, ["good", "bad", "--runs", str(runs)])
    assert result.exit_code == 0, result.output
    folder = runs / "_comparisons" / "good-bad"
    assert "Out-of-fold accuracy on 2,000 training images" in result.output
    paths = [str(folder / "comparison.csv"), str(folder / "comparison.png")]
    assert result.output.splitlines()[-2:] == paths
    frame = pd.read_csv(folder / "comparison.csv")
    predicted = OutOfFold.load(runs / "good" / "refit" / "trial-4" / "oof.npz").logits[0].argmax(1)
    right = predicted == load_train(data_root).labels[:IMAGES]
    assert right.mean() in (frame["accuracy"][0], frame["against_accuracy"][0])
    with Image.open(folder / "comparison.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000
    chosen = ["--out", str(tmp_path / "here")]
    assert CliRunner().invoke(app, ["good", "bad", "--runs", str(runs), *chosen]).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [
        "comparison.csv",
        "comparison.png",
    ]


def test_what_cannot_be_written_is_told(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/comparison\.csv: cannot be written: "):
        write_comparison(compared(runs, "good", "bad"), tmp_path / "file")


WRONG = {
    "empty": (["good", ""], "^'' names nothing; name a search, a trial of it such as"),
    "no name": (["good", ":3"], "^':3' names nothing; name a search"),
    "one": (["good"], "compare: two searches or trials are needed at least"),
    "unknown": (["good", "god"], "no run is called god; there are bad, good, medium, new"),
    "no number": (["good", "good:x"], "good:x: after ':' comes the number of a trial, such as"),
    "unfinished": (["good", "new"], "new: search new is not finished; go on with: .* resume new"),
    "no trial": (["bad", "good:9"], "good:9: good has no trial 9: its last is 2"),
    "not kept": (
        ["bad", "good:1"],
        r"good:1: trial 1 was not refit, and its logits are not kept \(checkpoints\.keep\); of "
        "good, these are kept: 0, 4$",
    ),
    "stopped": (["bad", "good:2"], "good:2: trial 2 was not refit, and did not come to its end"),
    "the same": (["good", "bad", "good:4"], "good and good:4 are the same, trial 4 of good"),
    "lost": (
        ["medium", "good"],
        r"medium: \S+oof\.npz is missing; remove \S+result\.json, and both .*resume",
    ),
    "damaged": (["bad", "good"], r"oof\.npz: cannot be read: "),
    "of other images": (["bad", "good"], r"oof\.npz: cannot be read: index 2000 is out of bounds"),
    "no study": (["bad", "medium:9"], "^medium:9: the study of medium is not there$"),
    **{
        text: (
            ["bad", "good"],
            rf"result\.json: cannot be read: .*{reason}.*; remove it, and .*resume",
        )
        for text, reason in {
            "{": "Expecting",
            "[]": "list indices",
            "{}": "it has no winner_trial",
            '{"winner_trial": 4}': "it has no candidates",
            '{"winner_trial": null, "candidates": []}': "NoneType",
            '{"winner_trial": 4, "candidates": 2}': "no len",
        }.items()
    },
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_clear_line(runs: Path, case: str) -> None:
    names, message = WRONG[case]
    RunFolder.create(runs, SPACE, "new")
    good = RunFolder.open(runs, "good")
    add_study(good)
    add_trial(good, 0, GOOD)
    for folder in (good.trials / "0-copy", good.refit / "trial-4-copy"):  # of the user's
        folder.mkdir(parents=True)
        for file in ("logits.npy", "oof.npz"):
            (folder / file).touch()
    if case == "lost":
        RunFolder.open(runs, "medium").out_of_fold(4).unlink()
    if case == "damaged":
        good.out_of_fold(4).write_bytes(b"PK damaged")
    if case == "of other images":
        found = OutOfFold.load(good.out_of_fold(4))
        replace(found, indices=found.indices + 1).save(good.out_of_fold(4))
    if case[0] in "[{":
        good.result.write_text(case)
    with pytest.raises(UserError, match=message) as error:
        compared(runs, *names)
    assert len(str(error.value).splitlines()) == 1


def test_without_common_images_nothing_is_compared(tmp_path: Path) -> None:
    run, other = finished(tmp_path, "a"), finished(tmp_path, "b", seed=1)
    splits = Splits.load(run.splits)
    add_trial(run, 0, GOOD)
    elsewhere = np.setdiff1d(np.arange(IMAGES), splits.validation)[:400]
    Splits(splits.train, elsewhere, splits.fold, splits.stand_in).save(other.splits)
    add_trial(other, 0, GOOD)
    with pytest.raises(UserError, match="a:0 and b:0 have no images in common"):
        compared(tmp_path, "a:0", "b:0")


def test_logits_of_other_images_are_refused(tmp_path: Path) -> None:
    run = finished(tmp_path, "a")
    for trial in range(2):
        add_trial(run, trial, GOOD)
    np.save(run.trials / "1" / "logits.npy", np.zeros((3, 10), np.float32))
    with pytest.raises(
        UserError, match=r"logits\.npy: cannot be read: has the shape \(3, 10\), for"
    ):
        compared(tmp_path, "a:0", "a:1")


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, str]]:
    """A finished search with its store and MLflow's ids of its runs, by our keys."""
    runs = tmp_path_factory.mktemp("logged") / "runs"
    run, uri = finished(runs, "a", winner=2), default_uri(runs)
    add_refit(run, 2, GOOD)
    add_refit(run, 3, BAD)
    add_trial(run, 5, BAD)
    store = MlflowStore(uri, run)
    parents = {"search": None, "refit-2": "search", "refit-3": "search", "trial-5": "search"}
    for key, parent in {**parents, "refit-2-fold-0": "refit-2"}.items():
        start = {"do": "start", "time": 1, "key": key, "parent": parent, "tags": {}, "params": {}}
        assert store.try_to_send(start) is None
    other = store._client.create_run(store._experiment)  # by hand, or of another program
    return runs, uri, {**store.ids, "other": other.info.run_id}


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_ids_of_mlflow_name_searches_refits_and_trials(
    logged: tuple[Path, str, dict[str, str]],
) -> None:
    runs, uri, ids = logged
    run = RunFolder.open(runs, "a")
    for key, name, trial in [
        ("search", "a", 2),
        ("refit-2", "a:2", 2),
        ("refit-3", "a:3", 3),
        ("trial-5", "a:5", 5),
    ]:
        found = find_entry(ids[key], runs, uri)
        assert (found.name, found.run.path, found.trial) == (name, run.path, trial)
    both = compare(find_entries([ids["search"], ids["refit-3"]], runs, uri), LABELS)
    assert both.accuracies[0] == Accuracy.of(IMAGES - 100, IMAGES)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_ids_of_mlflow_that_lead_nowhere(
    logged: tuple[Path, str, dict[str, str]], tmp_path: Path
) -> None:
    runs, uri, ids = logged
    refused = {
        ("0" * 32, runs, uri): f"{'0' * 32}: the MLflow store {uri} has no such run",
        (ids["other"], runs, uri): "is no run of cifartune's",
        (ids["refit-2-fold-0"], runs, uri): "is refit-2-fold-0; name the run of a search",
        (ids["search"], tmp_path, uri): f"the folder of its search is not in {tmp_path}; say",
        (ids["search"], runs, f"sqlite:///{tmp_path}/none.db"): "there is no MLflow store sqlite",
        (ids["search"], runs, "ftp://here"): "--tracking-uri ftp://here: neither a server",
    }
    for (run_id, folder, store), message in refused.items():
        with pytest.raises(UserError, match=re.escape(message)) as error:
            find_entry(run_id, folder, store)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_a_damaged_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database, whatever its name may say" * 100)
    with pytest.raises(UserError, match=r"mlflow\.db cannot be read: "):
        find_entry("0" * 32, tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
