import pytest
import torch

from cifartune.training import device
from cifartune.training.device import choose_device, choose_precision


def test_the_precision_asked_for_is_kept() -> None:
    for wanted in ("fp32", "bf16"):
        assert choose_precision(wanted, torch.device("cpu")) == wanted


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_where_the_cpu_has_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, precision: str
) -> None:
    monkeypatch.setattr(device, "_cpu_has_bf16", lambda: native)
    assert choose_precision("auto", torch.device("cpu")) == precision


def test_the_probes_still_exist_in_torch() -> None:
    # They are private: where they vanish, auto would silently mean fp32.
    assert hasattr(torch.cpu, "_is_avx512_bf16_supported")
    assert hasattr(torch.cpu, "_is_amx_tile_supported")


def test_the_device_is_the_gpu_where_there_is_one() -> None:
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
