import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from cifartune.models.activations import replace_activations


def test_norms_with_activation_change_and_gates_do_not() -> None:
    network = timm.create_model("efficientnet_b0", num_classes=10)
    gates = [module for module in network.modules() if isinstance(module, nn.Sigmoid)]
    assert len(gates) == 16
    replace_activations(network, "leaky_relu")
    assert [module for module in network.modules() if isinstance(module, nn.Sigmoid)] == gates
    acts = [module.act for module in network.modules() if isinstance(module, BatchNormAct2d)]
    assert {type(act) for act in acts} == {nn.LeakyReLU, nn.Identity}
    assert not any(isinstance(module, nn.SiLU) for module in network.modules())


def test_default_changes_nothing() -> None:
    network = timm.create_model("resnet18", num_classes=10)
    before = list(network.modules())
    replace_activations(network, "default")
    assert all(a is b for a, b in zip(before, network.modules(), strict=True))


def test_an_inner_activation_is_reached() -> None:
    conv = nn.Conv2d(3, 3, 1)
    network = nn.Sequential(nn.Sequential(conv, nn.ReLU(inplace=True)), nn.GELU())
    replace_activations(network, "silu")
    image = torch.randn(1, 3, 2, 2)
    expected = nn.functional.silu(nn.functional.silu(conv(image)))
    torch.testing.assert_close(network(image), expected)
