import pytest
import torch

from cifartune.models.mixture import MIXED, MixedConv, Mixture


def test_mixing_kernels_is_mixing_outputs() -> None:
    torch.manual_seed(0)
    layer, images = MixedConv(5, 7), torch.randn(3, 5, 8, 6)
    outputs = torch.stack([conv(images) for conv in layer.convs], dim=1)
    expected = (layer.mix(images)[:, :, None, None, None] * outputs).sum(1)
    assert expected.shape == (3, 7, 8, 6)
    torch.testing.assert_close(layer(images), expected)


def test_each_image_has_coefficients_of_its_own() -> None:
    torch.manual_seed(0)
    layer, images = MixedConv(5, 7), torch.randn(3, 5, 8, 8)
    mix = layer.mix(images)
    assert mix.shape == (3, MIXED)
    torch.testing.assert_close(mix.sum(1), torch.ones(3))
    assert not torch.allclose(mix[0], mix[1])
    torch.testing.assert_close(layer(images)[1:2], layer(images[1:2]))


@pytest.mark.parametrize(("channels", "side"), [("8/8", 8), ("8/8/16/16", 4), ("8/8/16", 8)])
def test_every_second_block_halves_the_sides(channels: str, side: int) -> None:
    features = Mixture(channels=channels).stages(torch.randn(2, 3, 16, 16))
    assert features.shape[2:] == (side, side)
