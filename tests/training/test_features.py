import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifartune.config.recipe import ModelRecipe
from cifartune.models import build_model
from cifartune.models.freezing import set_training
from cifartune.training import features as features_module
from cifartune.training.cut import find_cut
from cifartune.training.features import CHUNK, FrozenFeatures

IMAGES = 2 * CHUNK + 5

CUT: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"name": "speednet_small", "trainable": "head"}, (128,)),
    ({"name": "speednet_small", "trainable": "last_1"}, (128, 7, 7)),
    ({"name": "resnet18", "trainable": "head"}, (512,)),
    ({"name": "resnet18", "trainable": "last_1", "block_dropout": 0.2}, (256, 8, 8)),
    ({"name": "resnet18", "trainable": "last_2"}, (128, 16, 16)),
    ({"name": "vgg11", "trainable": "head"}, (4096,)),
    ({"name": "vgg10", "trainable": "last_1"}, (256, 4, 4)),
    ({"name": "tf_efficientnet_lite0", "trainable": "head"}, (1280,)),
    ({"name": "tf_efficientnet_lite0", "trainable": "last_1", "drop_path": 0.3}, (192, 1, 1)),
    ({"name": "mobilenetv2_100", "trainable": "head"}, (1280,)),
    ({"name": "wideresnet", "depth": 10, "width": 1, "trainable": "head"}, (64,)),
    ({"name": "wideresnet", "depth": 10, "width": 1, "trainable": "last_1"}, (32, 16, 16)),
    ({"name": "vit_tiny_patch16_224", "trainable": "last_2", "drop_path": 0.3}, (5, 192)),
]
"""Models, and the shape of what their frozen part makes of an image."""


def build(**model: Any) -> nn.Module:
    torch.manual_seed(0)
    network = build_model(ModelRecipe.model_validate({"dropout": 0.3, **model}))
    network.to(memory_format=torch.channels_last)
    set_training(network)
    return network


def small(**model: Any) -> nn.Module:
    return build(**{"name": "speednet_small", "trainable": "last_1", **model})


@pytest.fixture(scope="module")
def x() -> Tensor:
    """The network's input for all images."""
    pixels = torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return pixels.contiguous(memory_format=torch.channels_last)


def make(network: nn.Module, x: Tensor) -> FrozenFeatures:
    kept = FrozenFeatures.make(network, x[:4], torch.arange(len(x)))
    assert kept is not None
    return kept


def loss_of(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    torch.manual_seed(1)
    return F.cross_entropy(forward(x), torch.arange(len(x)) % 10)


@pytest.mark.parametrize(("model", "shape"), CUT)
def test_the_tail_learns_what_the_network_would(
    x: Tensor, model: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """In training mode, with the same units and paths dropped, and in evaluation mode."""
    network = build(**model)
    plain = copy.deepcopy(network)
    kept = make(network, x)
    tail = kept.tail(network)
    images = torch.arange(16)
    features = kept.features(images, x.__getitem__)
    assert features.shape[1:] == shape

    expected = loss_of(plain, x[images])
    expected.backward()
    loss = loss_of(tail, features)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for (name, weight), other in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert (weight.grad is None) == (other.grad is None), name
        if weight.grad is not None and other.grad is not None:
            torch.testing.assert_close(weight.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
    for buffer, followed in zip(network.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, followed)

    network.eval()
    plain.eval()
    torch.testing.assert_close(tail(features), plain(x[images]), rtol=1e-4, atol=1e-5)


def test_the_tail_follows_the_networks_weights_and_statistics(x: Tensor) -> None:
    network = small()
    kept = make(network, x)
    tail = kept.tail(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    features = kept.features(torch.arange(IMAGES), x.__getitem__)
    network.eval()
    before = tail(features)
    set_training(network)
    F.cross_entropy(tail(features), torch.arange(IMAGES) % 10).backward()
    optimizer.step()
    network.eval()
    after = tail(features)
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, network(x), rtol=1e-4, atol=1e-5)


def test_a_copy_has_a_tail_of_its_own(x: Tensor) -> None:
    """Such as the moving average of the weights."""
    network = small()
    average = copy.deepcopy(network).eval()
    kept = make(network, x)
    with torch.no_grad():
        average.get_parameter("head.weight").mul_(3)
    features = kept.features(torch.arange(CHUNK), x.__getitem__)
    network.eval()
    of_average, of_network = kept.tail(average)(features), kept.tail(network)(features)
    torch.testing.assert_close(of_average, 3 * of_network)


@pytest.mark.parametrize("name", ["resnet18", "speednet_small", "wideresnet"])
def test_units_are_dropped_in_training_alone(x: Tensor, name: str) -> None:
    """Also by networks that do not do so in a module."""
    network = build(name=name, trainable="head", dropout=0.5, depth=10, width=1)
    kept = make(network, x)
    tail = kept.tail(network)
    features = kept.features(torch.arange(8), x.__getitem__)
    assert not torch.equal(tail(features), tail(features))
    network.eval()
    assert torch.equal(tail(features), tail(features))


def test_each_image_is_computed_once(x: Tensor) -> None:
    asked: list[int] = []

    def inputs(images: Tensor) -> Tensor:
        assert len(images) == CHUNK
        asked.extend(images.tolist())
        return x[images]

    kept = make(small(), x)
    kept.features(torch.tensor([3, 1, 3]), inputs)
    assert set(asked) == {1, 3}
    asked.clear()
    kept.features(torch.tensor([1, 3]), inputs)
    assert not asked
    batch = torch.arange(CHUNK + 2)
    kept.features(batch, inputs)
    assert sorted(asked) == [image for image in range(CHUNK + 2) if image not in (1, 3)]
    asked.clear()
    everything = kept.features(torch.arange(IMAGES), inputs)
    assert set(asked) == set(range(CHUNK + 2, IMAGES))
    asked.clear()
    again = kept.features(torch.arange(IMAGES).flip(0), inputs)
    assert not asked
    assert torch.equal(again.flip(0), everything)


def test_an_image_asked_for_twice_does_not_count_for_another(x: Tensor) -> None:
    network = small()
    kept = FrozenFeatures.make(network, x[:4], torch.arange(2))
    assert kept is not None
    kept.features(torch.tensor([0, 0]), x.__getitem__)
    features = kept.features(torch.tensor([1]), x.__getitem__)
    assert torch.equal(features, make(network, x).features(torch.tensor([1]), x.__getitem__))


def test_features_do_not_depend_on_what_they_are_asked_with(x: Tensor) -> None:
    """To the last bit: a run that goes on from a checkpoint computes them in other batches."""
    network = build(name="mobilenetv2_100", trainable="head")
    together = make(network, x).features(torch.arange(IMAGES), x.__getitem__)
    kept = make(network, x)
    apart = [kept.features(torch.tensor([image]), x.__getitem__) for image in (7, 0, 40)]
    assert torch.equal(torch.cat(apart), together[[7, 0, 40]])


def test_images_may_be_some_of_many(x: Tensor) -> None:
    network = small()
    images = torch.tensor([60, 2, 33])
    kept = FrozenFeatures.make(network, x[:4], images)
    assert kept is not None
    features = kept.features(images.flip(0), x.__getitem__)
    assert torch.equal(features, make(network, x).features(images.flip(0), x.__getitem__))
    for unannounced in (3, 61):
        with pytest.raises(IndexError):
            kept.features(torch.tensor([2, unannounced]), x.__getitem__)


def test_training_goes_on_with_what_evaluation_computed(x: Tensor) -> None:
    network = small()
    kept = make(network, x)
    tail = kept.tail(network)
    network.eval()
    with torch.inference_mode():
        expected = tail(kept.features(torch.arange(8), x.__getitem__))
    features = kept.features(torch.arange(16), x.__getitem__)
    torch.testing.assert_close(tail(features)[:8].detach(), expected.clone())
    set_training(network)
    tail(features).sum().backward()
    assert network.get_parameter("head.weight").grad is not None


def test_features_keep_their_type_and_form(x: Tensor) -> None:
    network = build(name="resnet18", trainable="last_1")
    assert kept_form(network, x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = kept_form(network, x)
        assert features.dtype == torch.bfloat16
        network.eval()
        kept = make(network, x)
        logits = kept.tail(network)(kept.features(torch.arange(CHUNK), x.__getitem__))
        assert torch.equal(logits, network(x[:CHUNK]))


def kept_form(network: nn.Module, x: Tensor) -> Tensor:
    features = make(network, x).features(torch.arange(6), x.__getitem__)
    assert features.is_contiguous(memory_format=torch.channels_last)
    assert not features.is_contiguous()
    return features


def test_there_is_a_limit_to_the_memory(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small()
    size = 10 * 128 * 7 * 7 * 4
    monkeypatch.setattr(features_module, "MOST_BYTES", size)
    assert FrozenFeatures.make(network, x[:4], torch.arange(10)) is not None
    assert FrozenFeatures.make(network, x[:4], torch.arange(11)) is None


def test_what_was_forgotten_is_computed_anew(x: Tensor) -> None:
    network = small()
    kept = make(network, x)
    images = torch.arange(4)
    before = kept.features(images, x.__getitem__)
    with torch.no_grad():
        network.get_parameter("whitening.weight").mul_(2)
    assert torch.equal(kept.features(images, x.__getitem__), before)
    kept.forget()
    assert not torch.allclose(kept.features(images, x.__getitem__), before)


@pytest.mark.parametrize("mode", [nn.Module.train, set_training, nn.Module.eval])
def test_the_network_is_left_as_it_was(x: Tensor, mode: Callable[[nn.Module], object]) -> None:
    network = build(name="resnet18", trainable="last_1")
    mode(network)
    tensors = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    make(network, x)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in network.modules()] == modes
    for name, value in network.state_dict().items():
        assert torch.equal(value, tensors[name]), name
    assert all(weight.grad is None for weight in network.parameters())


class Odd(nn.Module):
    """A frozen layer in front of a trained one, with something between or around them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.frozen = nn.Linear(3 * 32 * 32, 8).requires_grad_(False)
        self.trained = nn.Linear(8, 10)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(8, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.kind == "dropout in front":
            x = self.drop(x)
        mean = x.mean(1, keepdim=True)
        x = self.frozen(x)
        if self.kind == "sees the image twice":
            x = x + self.drop(mean)
        if self.kind == "sees the batch":
            x = x - x.mean(0)
        if self.kind == "decides" and x.sum() > 0:
            x = -x
        if self.kind == "norm":
            x = self.norm(x)
        logits: Tensor = self.trained(x)
        return logits


def test_only_what_stays_the_same_is_kept(x: Tensor) -> None:
    kept = make(Odd("plain"), x)
    assert kept.features(torch.arange(4), x.__getitem__).shape == (4, 8)


def test_a_norms_statistics_are_moved_though_it_has_no_weights(x: Tensor) -> None:
    network = Odd("norm")
    plain = copy.deepcopy(network)
    kept = make(network, x)
    features = kept.features(torch.arange(CHUNK), x.__getitem__)
    torch.testing.assert_close(kept.tail(network)(features), plain(x[:CHUNK]))
    torch.testing.assert_close(network.norm.running_mean, plain.norm.running_mean)
    assert network.norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    "kind", ["dropout in front", "sees the image twice", "sees the batch", "decides"]
)
def test_there_is_no_cut_where_it_would_not_be_exact(x: Tensor, kind: str) -> None:
    assert find_cut(Odd(kind), x[:4]) is None


@pytest.mark.parametrize("name", ["resnet18", "speednet_small"])
def test_there_is_no_cut_where_the_first_layer_is_trained(x: Tensor, name: str) -> None:
    assert find_cut(build(name=name), x[:4]) is None
    network = build(name=name, trainable="head")
    next(network.parameters()).requires_grad_(True)
    if name == "speednet_small":
        network.get_parameter("whitening.bias").requires_grad_(True)
    assert find_cut(network, x[:4]) is None
