"""cifartune export: files that give the same elsewhere, or are not written."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from cifartune import cli, export, load
from cifartune.config import Recipe
from cifartune.data import CLASSES, LabelledImages
from cifartune.errors import UserError
from cifartune.export import FORMATS, check_target, export_model, read_safetensors
from cifartune.final_models import FinalModel
from cifartune.models import build_model
from cifartune.models.weights import is_of_a_run
from cifartune.training.classifier import Classifier, Ensemble
from cifartune.training.images import Normalization

PAGE = Path(__file__).parent.parent / "docs" / "EXPORT.md"


def made_up(values: dict[str, Any], networks: int = 1) -> FinalModel:
    """A model of untrained networks, whose answers differ from image to image."""
    recipe = Recipe().with_values(values)
    members = []
    for seed in range(networks):
        torch.manual_seed(seed)
        shape = (1, 3, 1, 1)
        mean, deviation = torch.rand(shape) / 10 + 0.4, torch.rand(shape) / 10 + 0.2
        network = build_model(recipe.model)
        for parameter in list(network.parameters())[-2:]:
            torch.nn.init.normal_(parameter)  # a head that tells them apart
        members.append(Classifier(network, recipe, Normalization(mean, deviation)))
    return FinalModel(Ensemble(members)).eval()


@pytest.fixture
def images(cifar: LabelledImages) -> np.ndarray:
    return cifar.images[:16].transpose(0, 2, 3, 1).copy()


NETWORKS: list[dict[str, Any]] = [
    {"model.name": "speednet_small", "model.resolution": 24, "tta": "six_views"},
    {"model.name": "speednet", "model.resolution": 16, "model.activation": "mish"},
    {"model.name": "resnet18", "model.resolution": 16, "tta": "flip"},
    {"model.name": "vit_tiny_patch16_224"},
    {"model.name": "efficientnet_lite0"},
]


@pytest.mark.parametrize("values", NETWORKS, ids=lambda values: values["model.name"])
@pytest.mark.parametrize("kind", ["onnx", "safetensors"])
def test_networks_give_the_same_elsewhere(
    values: dict[str, Any], kind: str, images: np.ndarray, tmp_path: Path
) -> None:
    model = made_up(values, networks=2 if values["model.name"] == "speednet_small" else 1)
    expected = model.predict(images)
    assert expected.std(0).max() > 1e-3  # or any file would do
    difference = export_model(model, {}, kind, tmp_path / "model", images)
    assert difference < 1e-5
    content = (tmp_path / "model").read_bytes()
    for count in (1, 5):
        found = FORMATS[kind].run(content, images[:count])
        np.testing.assert_allclose(found, expected[:count], atol=1e-5)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_differs_is_not_written(
    kind: str, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made_up(NETWORKS[0])
    content = FORMATS[kind].write(model, {})
    (tmp_path / "before").write_text("what was there")
    with torch.no_grad():
        model.ensemble.classifiers[0].network.get_parameter("head.weight").mul_(2)
    other = export.Format("", (), lambda *_: content, FORMATS[kind].run)
    monkeypatch.setitem(FORMATS, kind, other)
    for path in (tmp_path / "before", tmp_path / "new"):
        with pytest.raises(UserError, match=f"{path.name}: not written: as {kind}, .* differ by 0"):
            export_model(model, {}, kind, path, images)
    assert [path.name for path in tmp_path.iterdir()] == ["before"]
    assert (tmp_path / "before").read_text() == "what was there"


def test_what_is_in_the_way_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there.onnx"
    there.touch()
    with pytest.raises(UserError, match=r"there\.onnx: exists; --force replaces it"):
        check_target("onnx", there, force=False)
    check_target("onnx", there, force=True)
    with pytest.raises(UserError, match="is a folder"):
        check_target("pt2", tmp_path, force=True)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UserError, match=r"needs onnxscript: pip install 'cifartune\[onnx\]'"):
        check_target("onnx", tmp_path / "new.onnx", force=False)
    with pytest.raises(UserError, match=r"file/model: cannot be written: "):
        (tmp_path / "file").touch()
        export_model(made_up(NETWORKS[0]), {}, "safetensors", tmp_path / "file" / "model", IMAGE)


IMAGE = np.zeros((1, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def exported(smoke_run: Path, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the smoke search's model in all formats, by the command itself."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIFARTUNE_DATA", str(data_root))
        patch.chdir(folder)
        for kind in FORMATS:
            arguments = ["export", smoke_run.name, "--format", kind, "--runs", smoke_run.parent]
            patch.setattr(sys, "argv", ["cifartune", *map(str, arguments)])
            with pytest.raises(SystemExit) as end:
                cli.main()
            assert not end.value.code
    return folder


def test_the_command_names_what_it_wrote(exported: Path) -> None:
    names = sorted(path.name for path in exported.iterdir())
    assert names == ["quick-smoke.onnx", "quick-smoke.pt2", "quick-smoke.safetensors"]


def test_files_say_what_they_are(exported: Path, smoke_run: Path) -> None:
    found = load(smoke_run)
    winner, result = found.run.winner, found.result
    session = onnxruntime.InferenceSession(exported / "quick-smoke.onnx")
    onnx: dict[str, str] = session.get_modelmeta().custom_metadata_map
    pt2 = {"about.json": ""}
    torch.export.load(exported / "quick-smoke.pt2", extra_files=pt2)
    with safe_open(exported / "quick-smoke.safetensors", framework="pt") as file:
        safetensors = json.loads(file.metadata()["run"])
    assert json.loads(onnx["classes"]) == list(CLASSES)
    assert onnx["search"] == "quick-smoke" and onnx["trial"] == str(winner)
    for about in (json.loads(pt2["about.json"]), safetensors):
        assert about["classes"] == list(CLASSES) and about["trial"] == winner
        assert about["recipe_id"] == found.trials()["recipe_id"][winner]
        assert about["cv_accuracy"] == result["cv_accuracy"]
        assert about["test_accuracy"] == result["test_accuracy"]
        assert about["temperature"] == result["calibration"]["temperature"]
    assert [network["prefix"] for network in safetensors["networks"]] == ["0.", "1."]
    # A search that started from it would know the images that its folds hold out.
    assert is_of_a_run(exported / "quick-smoke.safetensors")


def blocks(word: str) -> str:
    """The one python block of the page with this word in it."""
    found = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    [block] = [block for block in found if word in block]
    return str(block)


def run_without_cifartune(code: str, folder: Path, images: np.ndarray) -> np.ndarray:
    """Runs code of the page in a process that has no cifartune: its probabilities."""
    np.save(folder / "images.npy", images)
    code = f"""
import sys
sys.modules["cifartune"] = None  # an import would fail
import numpy as np
images = np.load("images.npy")
{code}
np.save("probabilities.npy", probabilities)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found: np.ndarray = np.load(folder / "probabilities.npy")
    return found


def test_onnx_runtime_needs_nothing_else(
    exported: Path, smoke_run: Path, images: np.ndarray
) -> None:
    code = blocks("InferenceSession").replace('"quick.onnx"', '"quick-smoke.onnx"')
    found = run_without_cifartune(code + '\nassert "torch" not in sys.modules', exported, images)
    np.testing.assert_allclose(found, load(smoke_run).model().predict(images), atol=1e-5)


def test_torch_needs_nothing_else(exported: Path, smoke_run: Path, images: np.ndarray) -> None:
    code = blocks("torch.export.load").replace('"quick.pt2"', '"quick-smoke.pt2"')
    found = run_without_cifartune(code, exported, images)
    np.testing.assert_allclose(found, load(smoke_run).model().predict(images), atol=1e-5)


def test_timm_reads_the_weights(images: np.ndarray, tmp_path: Path) -> None:
    model = made_up({"model.name": "resnet18", "model.resolution": 24}, networks=2)
    expected = model.predict(images)
    export_model(model, {}, "safetensors", tmp_path / "quick.safetensors", images)
    found = run_without_cifartune(blocks("create_model"), tmp_path, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_cifartune_reads_the_weights(exported: Path, smoke_run: Path, images: np.ndarray) -> None:
    model = read_safetensors((exported / "quick-smoke.safetensors").read_bytes())
    np.testing.assert_array_equal(model.predict(images), load(smoke_run).model().predict(images))
