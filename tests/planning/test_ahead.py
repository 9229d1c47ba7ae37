"""What is decided ahead of a search, before anything is trained."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from searches import QUICK

from cifartune.config import load_space
from cifartune.planning.ahead import patience


@pytest.mark.parametrize(
    ("override", "plan", "seconds"),
    [
        ("resources.epoch_timeout=90s", {"longest_epoch": 100.0}, 90.0),
        ("resources.epoch_timeout=auto", {"longest_epoch": 100.0}, 3000.0),
        ("resources.epoch_timeout=auto", {"longest_epoch": 1.0}, 600.0),
        ("resources.epoch_timeout=auto", {}, math.inf),  # planned by an earlier version
    ],
)
def test_how_long_an_epoch_may_take(
    tmp_path: Path, override: str, plan: dict[str, Any], seconds: float
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert patience(load_space(QUICK, [override]), tmp_path / "plan.json") == seconds
