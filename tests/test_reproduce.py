"""Training logged runs again, from a real SQLite store alone."""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from searches import cifartune

from cifartune import commit as commit_module
from cifartune import reproduce as reproduce_module
from cifartune.config import Recipe, SearchSpace
from cifartune.data import load_train
from cifartune.data.splits import ALL_IMAGES, splits_of
from cifartune.errors import Interrupted, UserError
from cifartune.originals import Original, find_original
from cifartune.outputs import LOGITS
from cifartune.reproduce import Pair, Reproduction, differences, reproduce
from cifartune.runs import RunFolder
from cifartune.tracking import MlflowTracker, default_uri
from cifartune.tracking.store import LoggedSearch
from cifartune.training import EpochResult, SplitImages, Trainer
from cifartune.training.classifier import Classifier, load_classifier, save_classifier
from cifartune.training.classifier import weights_digest as digest_of
from cifartune.training.images import Normalization
from cifartune.tuning import jobs
from cifartune.tuning.jobs import run_job
from cifartune.tuning.messages import Job, Verdict
from cifartune.tuning.study import TrialStudy

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="bit for bit is promised on the CPU"),
    # mlflow's own tables, as SQLAlchemy sees them.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]

SPACE = SearchSpace.model_validate(
    {
        "name": "toy",
        "base": {
            "model": {"name": "speednet_small", "resolution": 16, "dropout": 0.2},
            "augment": {"cutout": 8},
            "epochs": 2,
            "batch_size": 64,
            "precision": "fp32",
            "compile": "never",
            "tta": "flip",
        },
        "parameters": {"optimizer.lr": {"min": 0.01, "max": 0.5, "log": True}},
        "data": {"validation": 200, "train_subset": 300},
        "refit": {"folds": 2},
        "stand_in": 100,
    }
)


@dataclass(frozen=True)
class World:
    """A search in a store, and what is known of it elsewhere.

    Attributes:
        uri: The store.
        ids: MLflow's ids of its runs by our keys.
        runs: The folder of all searches, in which this search's own is missing.
        kept: Another, which has it.
    """

    uri: str
    ids: dict[str, str]
    runs: Path
    kept: Path

    def original(self, key: str) -> Original:
        return find_original(self.ids[key], self.runs)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> World:
    folder = tmp_path_factory.mktemp("reproduce")
    runs, kept = folder / "runs", folder / "kept"
    run = RunFolder.create(runs, SPACE, tracking_uri=default_uri(runs))
    splits = splits_of(SPACE, load_train(data_root).labels)
    splits.save(run.splits)
    study = TrialStudy(SPACE, url=run.study_url, name=run.study_name)
    tracker = MlflowTracker(run.tracking_uri, run, {})

    def train(recipe: Recipe, name: str, fold: int | None) -> tuple[list[EpochResult], Any]:
        results = list[EpochResult]()

        def report(result: EpochResult, is_last: bool) -> Verdict:
            results.append(result)
            return Verdict.GO_ON

        folder = run.path / name
        return results, run_job(Job(name, recipe, folder, data_root, run.splits, fold), report)

    for _ in range(4):
        proposal = study.propose()
        tracker.trial_started(proposal.number, proposal.recipe)
    results, facts = train(study.recipe(study.trials[0]), "trial-0", None)
    for result in results:
        metrics, is_last = result.metrics(), result is results[-1]
        study.record(0, result.epoch, result.val_accuracy, metrics, facts if is_last else None)
        tracker.epoch_ended(0, result.epoch, metrics)
    study.complete(0)
    study.record(1, 1, 0.25, {"val_accuracy": 0.25})
    study.prune(1)
    study.reject(2, "non_finite_loss", "the loss was not finite in epoch 1")
    for number in range(3):
        tracker.trial_ended(study.trials[number])

    recipe = study.recipe(study.trials[0])
    tracker.refit_started(0, recipe)
    for part, fold in (("fold-1", 1), ("all-images", ALL_IMAGES)):
        results, facts = train(recipe.with_values({"seed": 7}), part, fold)
        for result in results:
            tracker.part_epoch_ended(0, part, result.epoch, result.metrics())
        accuracy = None
        if fold == 1:
            labels = load_train(data_root).labels[splits.held_out(1)[1]]
            accuracy = float((np.load(run.path / part / LOGITS).argmax(1) == labels).mean())
        tracker.part_ended(0, part, accuracy, facts)
    tracker.refit_ended(0, {"cv_accuracy": 0.5})
    tracker.close("FINISHED")
    assert (tracker.unsent, tracker.failures) == (0, [])

    client = mlflow.MlflowClient(run.tracking_uri)
    run.result.write_text(json.dumps({"winner_trial": 0}))
    client.log_artifact(tracker.run_id, str(run.result))
    logged = LoggedSearch(run.tracking_uri, run.id).runs
    kept.mkdir()
    shutil.move(run.path, kept)
    return World(tracker.uri, {k: one.info.run_id for k, one in logged.items()}, runs, kept)


@pytest.fixture
def tag(world: World) -> Iterator[Callable[[str, str, str], None]]:
    """Changes tags of runs, for one test."""
    client = mlflow.MlflowClient(world.uri)
    changed = list[tuple[str, str, str]]()

    def change(key: str, name: str, text: str) -> None:
        run_id, name = world.ids[key], f"cifartune.{name}"
        changed.append((run_id, name, client.get_run(run_id).data.tags[name]))
        if text:
            client.set_tag(run_id, name, text)
        else:
            client.delete_tag(run_id, name)

    yield change
    for run_id, name, text in changed:
        client.set_tag(run_id, name, text)


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> Callable[[Original, str], Original]:
    """Says which commit the code was of, then and now."""

    def at(original: Original, commit: str) -> Original:
        now = {**jobs.environment(torch.device("cpu")), "commit": commit}
        monkeypatch.setattr(reproduce_module, "environment", lambda device: now)
        return replace(original, environment={**original.environment, "commit": commit})

    return at


COMMIT = "a" * 40


def again(original: Original, data_root: Path) -> tuple[Reproduction, list[str]]:
    """What comes out, and what was said on the way."""
    said = list[str]()
    return reproduce(original, data_root, say=said.append), said


def test_a_trial_comes_out_the_same(
    world: World, data_root: Path, code: Callable[[Original, str], Original]
) -> None:
    """Though the search's folder is gone: all that it takes is in the store."""
    assert not (world.runs / "toy").exists()
    original = world.original("trial-0")
    assert "auto" not in original.recipe.flat().values()
    assert original.recipe.seed != SPACE.base.seed
    found, said = again(code(original, COMMIT), data_root)
    assert found.same_weights and found.holds
    assert found.verdict == "reproduced: the same weights, bit for bit"
    [pair] = found.pairs
    assert (pair.name, pair.images, pair.then) == ("val_accuracy", 200, pair.now)
    head, *epochs = said
    assert head == "toy:trial-0: speednet_small on the cpu again"
    for line, (epoch, accuracy) in zip(epochs, sorted(original.curve.items()), strict=True):
        assert line == f"epoch {epoch}: val_accuracy {accuracy:.2%}, {accuracy:.2%} then"


def test_a_fold_comes_out_the_same(world: World, data_root: Path) -> None:
    """Also by the predictions that were stored, with test-time augmentation."""
    original = world.original("refit-0-fold-1")
    assert (original.fold, original.recipe.seed) == (1, 7)
    found, _ = again(original, data_root)
    assert found.same_weights
    assert [pair.name for pair in found.pairs] == ["val_accuracy", "held_out_accuracy"]
    assert all(pair.then == pair.now and pair.images == 250 for pair in found.pairs)


def test_what_was_trained_on_all_images_is_judged_by_its_weights(
    world: World, data_root: Path, code: Callable[[Original, str], Original]
) -> None:
    original = code(world.original("refit-0-all-images"), COMMIT)
    found, said = again(original, data_root)
    assert found.holds and found.same_weights and not found.pairs
    assert said[-1].startswith("epoch 2: train_loss ")
    tampered, _ = again(replace(original, digest="0" * 64), data_root)
    assert not tampered.holds
    assert tampered.verdict.endswith("threads, they have to be the same")
    unknown, _ = again(code(replace(original, digest="0" * 64), "unknown"), data_root)
    assert not unknown.holds
    assert unknown.verdict.endswith("the weights differ, and there is no accuracy to compare")
    elsewhere = replace(original, environment={**original.environment, "torch": "1.0"})
    with pytest.raises(UserError, match=r"there is no accuracy to compare.*; take a fold$"):
        again(elsewhere, data_root)


def test_names_stand_for_runs(world: World) -> None:
    by_id = world.original("trial-0")
    assert world.original("search") == by_id
    for name in ("toy", "toy:0", "toy:trial-0"):
        assert find_original(name, world.kept) == by_id
    fold = find_original("toy:refit-0-fold-1", world.kept)
    assert fold == world.original("refit-0-fold-1") != by_id
    assert find_original(world.ids["trial-0"], Path("/nowhere"), world.uri) == by_id


def test_other_weights_are_told_where_they_have_to_be_the_same(
    world: World,
    data_root: Path,
    tag: Callable[[str, str, str], None],
    code: Callable[[Original, str], Original],
) -> None:
    tag("trial-0", "weights_sha256", "0" * 64)
    found, said = again(code(world.original("trial-0"), COMMIT), data_root)
    assert not any("different" in line for line in said)
    assert (found.same_weights, found.holds) == (False, False)
    assert found.verdict.startswith("not reproduced: the weights differ, and on this CPU")
    assert found.verdict.endswith("; the accuracy is within what is allowed")
    [pair] = found.pairs
    assert pair.agrees and "0.00 points apart" in str(pair)


@pytest.mark.parametrize("commit", ["unknown", f"{COMMIT}-dirty"])
def test_the_same_weights_are_not_promised_of_code_that_nobody_knows(
    world: World, data_root: Path, code: Callable[[Original, str], Original], commit: str
) -> None:
    """Twice the same commit with changes, or twice none, may be two programs."""
    original = replace(world.original("trial-0"), digest="0" * 64)
    found, said = again(code(original, commit), data_root)
    assert (found.is_promised, found.holds) == (False, True)
    assert found.verdict.startswith("reproduced: other weights, and the accuracy is within")
    assert said[1] == (
        f"perhaps different: the code, of the commit {commit}: other weights may come out"
    )


def test_elsewhere_the_accuracy_counts(
    world: World, data_root: Path, tag: Callable[[str, str, str], None]
) -> None:
    environment = {**world.original("trial-0").environment, "torch": "1.0", "gone": "2"}
    tag("trial-0", "environment", json.dumps(environment))
    same, said = again(world.original("trial-0"), data_root)
    now = torch.__version__.partition("+")[0]
    assert said[1].startswith(f"different: torch: 1.0 then, {now}")
    assert said[2] == "different: gone: 2 then, not known now"
    assert same.verdict == "reproduced: the same weights, bit for bit"

    tag("trial-0", "weights_sha256", "0" * 64)
    original = world.original("trial-0")
    found, _ = again(original, data_root)
    assert found.holds
    assert found.verdict == "reproduced: other weights, and the accuracy is within what is allowed"
    better = replace(original, curve={epoch: 0.999 for epoch in original.curve})
    found, _ = again(better, data_root)
    assert not found.holds
    assert found.verdict.endswith("the weights differ, and the accuracy by more than is allowed")


def test_the_epoch_that_is_kept_is_compared(world: World) -> None:
    last = world.original("trial-0")
    last = replace(last, curve={1: 0.5, 2: 0.25})
    best = replace(last, recipe=last.recipe.with_values({"stopping.keep": "best"}))
    assert (last.val_accuracy, best.val_accuracy) == (0.25, 0.5)


def test_as_many_threads_train_as_then(world: World, data_root: Path) -> None:
    before, seen = torch.get_num_threads(), set[int]()
    original = replace(world.original("trial-0"), threads=before + 1)
    reproduce(
        original,
        data_root,
        say=lambda line: seen.add(torch.get_num_threads()) if "epoch" in line else None,
    )
    assert (seen, torch.get_num_threads()) == ({before + 1}, before)


def test_one_worker_stands_for_several(world: World) -> None:
    several = replace(world.original("trial-0"), workers=2)
    assert differences(several) == ["workers: 2 then, 1 now"]


NO_SUCH = "f" * 32

REFUSED = {
    "nothing": r"no run is called nothing; there are toy; and an id of MLflow's has 32 hex",
    NO_SUCH: f"{NO_SUCH}: .*no such run",
    "toy:9": r"^toy:9: the search has no run trial-9 in the MLflow store sqlite.*did you mean",
    "toy:refit-0": "is a whole cross-validation; take one of its folds, such as refit-0-fold-0$",
    "toy:1": "^toy:trial-1: was stopped before its end; take a trial that is COMPLETE",
    "toy:2": "^toy:trial-2: failed: the loss was not finite in epoch 1; take",
    "toy:3": "^toy:trial-3: is not over; take",
}


@pytest.mark.parametrize("wanted", REFUSED)
def test_what_cannot_be_compared_is_refused(world: World, wanted: str) -> None:
    with pytest.raises(UserError, match=REFUSED[wanted]) as caught:
        find_original(wanted, world.kept, world.uri)
    assert "\n" not in str(caught.value)


def test_runs_of_others_are_refused(world: World) -> None:
    client = mlflow.MlflowClient(world.uri)
    others = client.create_run(client.create_experiment("another's")).info.run_id
    with pytest.raises(UserError, match=f"{others}: is no run of cifartune's"):
        find_original(others, world.runs)
    missing = f"sqlite:///{world.runs}/nowhere.db"
    with pytest.raises(UserError, match=r"nowhere\.db"):
        find_original("toy", world.kept, missing)
    assert not (world.runs / "nowhere.db").exists()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("threads", "two", r"a tag of its MLflow run is damaged .*'two'.*; take another run$"),
        ("environment", "{", r"a tag of its MLflow run is damaged .*; take another run$"),
        ("environment", "[]", r"a tag of its MLflow run is damaged .*; take another run$"),
        ("weights_sha256", "", r"has no tag cifartune\.weights_sha256.*an earlier cifartune"),
        ("recipe", '{"a_field_of_later": 1}', r"was logged by cifartune \d.*does not read"),
    ],
)
def test_runs_of_other_versions_are_refused(
    world: World, tag: Callable[[str, str, str], None], name: str, text: str, told: str
) -> None:
    tag("trial-0", name, text)
    with pytest.raises(UserError, match=f"^toy:trial-0: {told}") as caught:
        world.original("trial-0")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "wanted", "told"),
    [
        ("result.json", "toy", "^toy: the search is not finished.* such as toy:0$"),
        ("space.yaml", "toy:0", "^toy:trial-0: the MLflow run of its search has no space.yaml"),
    ],
)
def test_files_that_the_store_lacks_are_named(
    world: World, monkeypatch: pytest.MonkeyPatch, file: str, wanted: str, told: str
) -> None:
    whole = LoggedSearch.text
    monkeypatch.setattr(
        LoggedSearch, "text", lambda self, name: None if name == file else whole(self, name)
    )
    with pytest.raises(UserError, match=told):
        find_original(wanted, world.kept)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"winner_trial": null}'])
def test_a_result_that_names_no_winner_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    whole = LoggedSearch.text
    monkeypatch.setattr(
        LoggedSearch, "text", lambda self, name: text if "result" in name else whole(self, name)
    )
    with pytest.raises(UserError, match=r"^toy: .*names no winner; take a trial, such as toy:0$"):
        find_original("toy", world.kept)


def test_what_cannot_be_trained_here_is_refused(
    world: World, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = world.original("trial-0")
    on_gpu = {**original.environment, "gpu": "a fast one"}
    with pytest.raises(UserError, match=r"trained on a GPU \(a fast one\), and there is none here"):
        again(replace(original, device="cuda", environment=on_gpu), data_root)
    absent = original.recipe.with_values({"model.weights": "/nowhere.safetensors"})
    with pytest.raises(UserError, match=r"^toy:trial-0: .*no file /nowhere\.safetensors"):
        again(replace(original, recipe=absent), data_root)

    def too_large(*_: Any, **__: Any) -> Trainer:
        raise MemoryError("all of it is taken")

    monkeypatch.setattr(reproduce_module, "Trainer", too_large)
    with pytest.raises(UserError, match="does not fit the memory here: all of it is taken"):
        again(original, data_root)


def test_a_run_that_diverges_now_is_not_reproduced(world: World, data_root: Path) -> None:
    values = {"optimizer.lr": 10.0, "optimizer.weight_decay": 1.0, "optimizer.momentum": 0.999}
    values |= {"schedule.warmup": 0.0, "batch_size": 8}
    original = world.original("trial-0")
    found, _ = again(replace(original, recipe=original.recipe.with_values(values)), data_root)
    assert not found.holds
    assert found.verdict.startswith("not reproduced: the loss was not finite in epoch")


def test_it_stops_after_the_epoch_under_way(world: World, data_root: Path) -> None:
    stop, said = threading.Event(), list[str]()
    stop.set()
    with pytest.raises(Interrupted):
        reproduce(world.original("trial-0"), data_root, say=said.append, stop=stop)
    assert said[-1].startswith("epoch 1")


def test_chance_parts_accuracies_as_far_as_is_said() -> None:
    """Of 20,000 pairs of binomial shares, 95 % are closer than the bound."""
    random = np.random.default_rng(0)
    for accuracy, images in ((0.5, 500), (0.9, 5000), (0.94, 10_000)):
        shares = random.binomial(images, accuracy, (20_000, 2)) / images
        within = np.mean([Pair("", then, now, images).agrees for then, now in shares])
        assert 0.94 < within < 0.96
    assert Pair("", 1.0, 1.0, 100).agrees
    assert not Pair("", 1.0, 0.9, 100).agrees
    told = str(Pair("val_accuracy", 0.5, 0.52, 5000))
    assert "2.00 points apart, of 1.96 allowed: as far as equal models are" in told
    assert "chance" not in told


def test_the_digest_is_of_the_weights_alone(
    recipe: Recipe, split: SplitImages, tmp_path: Path
) -> None:
    classifier = Trainer(recipe, split).classifier
    digest = digest_of(classifier)
    save_classifier(classifier, tmp_path / "weights.safetensors", epochs=1)
    assert digest_of(load_classifier(tmp_path / "weights.safetensors")) == digest
    assert digest_of(classifier.to(memory_format=torch.contiguous_format)) == digest

    def of(**buffers: torch.Tensor) -> str:
        statistics = Normalization(torch.zeros(1), torch.ones(1))
        network = torch.nn.Module()
        for name, tensor in buffers.items():
            network.register_buffer(name, tensor)
        return digest_of(Classifier(network, recipe, statistics))

    zeros = torch.zeros(2, 3)
    others = [
        of(a=zeros),
        of(b=zeros),
        of(a=zeros.view(3, 2)),
        of(a=zeros.int()),
        of(a=zeros, b=torch.zeros(0)),
        of(a=-zeros),  # bit for bit
        of(a=zeros.index_fill(0, torch.tensor(1), 1e-30)),
    ]
    assert len(set(others)) == len(others)
    assert of(a=torch.tensor(1)) != of(a=torch.tensor(2))


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_the_commit_is_that_of_the_source_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
        result = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return result.stdout.strip()

    source = tmp_path / "source.py"
    monkeypatch.setattr(commit_module, "__file__", str(source))
    source.touch()
    assert commit_module.commit_of_source() == "unknown"  # no checkout
    git("init")
    git("commit", "--allow-empty", "-m", "of something else")
    assert (
        commit_module.commit_of_source() == "unknown"
    )  # a checkout, in which the source lies by chance
    git("add", source.name)
    git("commit", "-m", "of the source")
    assert commit_module.commit_of_source() == git("rev-parse", "HEAD")
    source.write_text("changed")
    assert commit_module.commit_of_source() == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert commit_module.commit_of_source() == "unknown"


def test_the_command_says_whether_it_came_out_the_same(world: World, data_root: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        result = cifartune(
            "reproduce", *arguments, cwd=world.runs.parent, CIFARTUNE_DATA=str(data_root)
        )
        return result.returncode, result.stdout, result.stderr

    code, out, errors = run(world.ids["trial-0"])
    assert (code, errors) == (0, "")
    assert out.splitlines()[-1] == "reproduced: the same weights, bit for bit"
    assert "epoch 2: val_accuracy" in out and "val_accuracy: " in out
    code, out, errors = run(NO_SUCH)
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(f"cifartune: {NO_SUCH}")
