"""The index of networks: known without torch, and quick to search."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cifartune.config.load import parse_space
from cifartune.config.networks import known_network, networks
from cifartune.errors import UserError

RESNET = Path(__file__).parents[2] / "search_spaces" / "resnet.yaml"


@pytest.mark.parametrize(
    ("name", "family", "has_weights"),
    [
        ("resnet18", "resnet", True),
        ("speednet", "speednet", False),
        ("speednet_small", "speednet", False),
        ("vit_tiny_patch16_224", "vision_transformer", True),
    ],
)
def test_a_network_has_a_family_and_perhaps_weights(
    name: str, family: str, has_weights: bool
) -> None:
    found = networks()[name]
    assert (found.family, found.has_weights) == (family, has_weights)
    assert known_network(name) == name


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("resnet19", "resnet18"),
        ("resnt18", "resnet18"),
        ("ersnet18", "resnet18"),
        ("sppednet", "speednet"),
        ("speednet_smal", "speednet_small"),
        ("efficientnetb0", "efficientnet_b0"),
        ("vit_tiny_patch16_244", "vit_tiny_patch16_224"),
    ],
)
def test_a_misspelt_network_is_told_at_once_with_what_was_meant(wrong: str, meant: str) -> None:
    networks()
    started = time.perf_counter()
    with pytest.raises(UserError) as caught:
        parse_space(f"name: a\nbase: {{model: {{name: {wrong}}}}}", source="f.yaml")
    assert time.perf_counter() - started < 0.2
    message, _, names = str(caught.value).partition("; did you mean ")
    assert message == (
        "f.yaml:2: base.model.name: must be the name of a network of timm or cifartune, "
        f"got {wrong!r}"
    )
    assert meant in names.rstrip("?").split(" or ")


def test_what_is_no_network_has_no_suggestion() -> None:
    with pytest.raises(ValueError, match=r"got 'my own'$"):
        known_network("my own")


HEAVY = {"torch", "timm", "optuna", "ray", "numpy", "pandas", "mlflow"}


@pytest.mark.parametrize(
    "code",
    [
        "import cifartune.config.load",
        f"from cifartune.config import load_space; load_space({str(RESNET)!r}).notes()",
        f"from cifartune.config import load_space; load_space({str(RESNET)!r}, ['base.epochs=9'])",
    ],
    ids=["import", "load", "set"],
)
def test_reading_a_file_loads_nothing_heavy(code: str) -> None:
    code += f"; import sys; print(*sys.modules.keys() & {HEAVY!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=20, capture_output=True, text=True
    )
    assert done.stdout.strip() == ""
