"""cifartune predict: real images in files, the models of the smoke search."""

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifartune import cli, load
from cifartune.data import CLASSES, LabelledImages
from cifartune.predicting import scaled

Arguments = list[str | Path]


@pytest.fixture
def folder(cifar: LabelledImages, tmp_path: Path) -> Path:
    """Three pictures of other sizes, and two files that are none."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, (name, size) in enumerate(
        {"small.png": (32, 32), "larger.jpg": (80, 60), "wide.webp": (640, 200)}.items()
    ):
        image = Image.fromarray(np.ascontiguousarray(cifar.images[number].transpose(1, 2, 0)))
        image.resize(size).save(pictures / name)
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (pictures / "text.jpg").write_text("no picture")
    return pictures


def cifartune(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The command in this process, on 80 columns: its exit code."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["cifartune", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_broken_files_are_named_after_all_others(
    smoke_run: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder.parent)
    code = cifartune(monkeypatch, "predict", smoke_run.name, "pictures", "--runs", smoke_run.parent)
    assert code == 2
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        "cifartune: pictures/broken.png: no picture of a format that can be read",
        "pictures/text.jpg: no picture of a format that can be read",
    ]
    first, _, *rows = told.out.splitlines()
    assert first == f"quick-smoke, trial {load(smoke_run).run.winner}: fold ensemble, 2 networks"
    assert [row.split()[:2] for row in rows[:3]] == [
        ["pictures/larger.jpg", "80x60"],
        ["pictures/small.png", "32x32"],
        ["pictures/wide.webp", "640x200"],
    ]
    assert all(row.split()[2] in CLASSES and len(row) <= 80 for row in rows[:3])
    notes = " ".join(rows[3:])
    assert "scaled by the temperature" in notes and "found out of fold" in notes
    assert "Far from 32x32" in notes and "wide.webp (640x200)" in notes and "larger" not in notes


def test_json_and_csv_say_what_the_model_says(
    smoke_run: Path,
    folder: Path,
    cifar: LabelledImages,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments: Arguments = [
        "predict",
        smoke_run.name,
        folder / "small.png",
        "--runs",
        smoke_run.parent,
    ]
    arguments += ["--model", "all_images", "--top", "10"]
    assert cifartune(monkeypatch, *arguments, "--format", "json") == 0
    told = json.loads(capsys.readouterr().out)
    found = load(smoke_run)
    [raw] = found.model("all_images").predict(cifar.images[:1].transpose(0, 2, 3, 1))
    temperature = found.result["calibration"]["temperature"]
    assert told["model"] == "all_images" and told["temperature"] == temperature
    expected = raw.astype(float) ** (1 / temperature)
    expected /= expected.sum()
    [prediction] = told["predictions"]
    by_class = {one["class"]: one["probability"] for one in prediction["best"]}
    np.testing.assert_allclose([by_class[name] for name in CLASSES], expected, rtol=1e-4)
    assert prediction["class"] == CLASSES[raw.argmax()]
    assert (prediction["width"], prediction["height"], told["unreadable"]) == (32, 32, [])

    assert cifartune(monkeypatch, *arguments, "--format", "csv") == 0
    [row] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["class"] == prediction["class"] and row["class_10"] in CLASSES
    assert float(row["probability"]) == prediction["probability"]


def test_the_models_of_trials(
    smoke_run: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A trial that was not refit has its own network, where that is kept; and no temperature."""
    found = load(smoke_run)
    refit = {candidate["trial"] for candidate in found.result["candidates"]}
    kept = {int(path.parent.name) for path in found.run.trials.glob("*/weights.safetensors")}
    for trial in kept | refit:
        name = f"{smoke_run.name}:{trial}"
        arguments: Arguments = ["predict", name, folder / "small.png", "--runs", smoke_run.parent]
        assert cifartune(monkeypatch, *arguments) == 0
        told = capsys.readouterr().out
        model = "fold ensemble, 2 networks" if trial in refit else "the trial's own network"
        assert told.startswith(f"quick-smoke, trial {trial}: {model}")
        assert ("no out-of-fold temperature" in told) is (trial != found.run.winner)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quik", "small.png"], "no run is called quik; there are quick-smoke"),
        (["quick-smoke", "none.png"], "none.png: no such file or folder"),
        (
            ["quick-smoke", "small.png", "--model", "snapshots"],
            "quick-smoke: there is no model snapshots; there is folds, all_images",
        ),
        (["quick-smoke", "broken.png"], "broken.png: no picture of a format that can be read"),
    ],
)
def test_what_is_refused(
    arguments: list[str],
    message: str,
    smoke_run: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert cifartune(monkeypatch, "predict", *arguments, "--runs", smoke_run.parent) == 2
    told = capsys.readouterr()
    assert told.out == "" and message in told.err


def test_a_temperature_changes_no_class() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1, 0.0]])
    np.testing.assert_allclose(scaled(probabilities, None), probabilities, atol=1e-6)
    np.testing.assert_allclose(scaled(probabilities, 1.0), probabilities, atol=1e-6)
    for temperature in (0.2, 3.0):
        [found] = scaled(probabilities, temperature)
        assert found.sum() == pytest.approx(1) and (np.diff(found) < 0).all()
        assert (found[0] > 0.7) == (temperature < 1)
