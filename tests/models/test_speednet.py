import pytest
import timm
import torch
from torch.nn import functional as F

from cifartune.data import LabelledImages
from cifartune.models.speednet import WHITENING_EPSILON, DeepStage, SpeedNet


@pytest.fixture
def images(cifar: LabelledImages) -> torch.Tensor:
    """Normalised images, more than one chunk of them."""
    images = torch.from_numpy(cifar.images[:700]).float()
    return (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)


def test_the_first_layer_whitens(images: torch.Tensor) -> None:
    network = SpeedNet()
    network.init_from_images(images)
    outputs = network.whitening(images).detach().double().transpose(0, 1).flatten(1)
    positive, negative = outputs[:12], outputs[12:]
    torch.testing.assert_close(negative, -positive)
    covariance = positive @ positive.T / positive.shape[1]
    # Directions whose variance is not far above the epsilon stay a little below 1.
    patches = F.unfold(images, 2).transpose(0, 1).flatten(1).double()
    variances = torch.linalg.eigvalsh(patches @ patches.T / patches.shape[1]).flip(0)
    expected = torch.diag(variances / (variances + WHITENING_EPSILON))
    torch.testing.assert_close(covariance, expected, atol=2e-3, rtol=0)
    assert expected.diagonal().min() > 0.5
    # The filters come in the order of the variance that they whiten.
    assert network.whitening.weight[0].norm() < network.whitening.weight[11].norm()


def test_whitening_sets_the_frozen_filters_and_nothing_else(images: torch.Tensor) -> None:
    network = SpeedNet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.init_from_images(images[:10])
    changed = {n for n, v in network.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"whitening.weight"}
    assert not network.whitening.weight.requires_grad
    assert network.whitening.bias is not None and not network.whitening.bias.any()


def test_the_default_init_passes_inputs_through() -> None:
    stage = SpeedNet(widths=(32, 64, 64)).get_submodule("stages.1")
    image = torch.randn(1, 32, 8, 8)
    weight = stage.get_parameter("conv1.weight")
    torch.testing.assert_close(F.conv2d(image, weight, padding=1)[:, :32], image)


def test_a_deep_stage_goes_around_its_last_convolutions() -> None:
    """With filters of zero they give nothing, and what comes out is what went around."""
    stage = DeepStage(8, 16).eval()
    with torch.no_grad():
        stage.conv2.weight.zero_()
        stage.conv3.weight.zero_()
    x = torch.randn(2, 8, 6, 6)
    around = F.gelu(stage.norm1(F.max_pool2d(stage.conv1(x), 2)))
    torch.testing.assert_close(stage(x), F.gelu(around))
    assert {n for n, p in stage.named_parameters() if not p.requires_grad} == {
        "norm1.weight",
        "norm2.weight",
        "norm3.weight",
    }


def test_the_registry_knows_it() -> None:
    network = timm.create_model("speednet", num_classes=7, drop_rate=0.3)
    assert isinstance(network, SpeedNet)
    assert (network.head.out_features, network.drop.p) == (7, 0.3)
    with pytest.raises(ValueError, match="no pretrained weights"):
        timm.create_model("speednet_small", pretrained=True)
