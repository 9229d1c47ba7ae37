"""What a search decides by itself, before Ray is started; whole searches are in test_cli.py."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from searches import QUICK

from cifartune.config import load_space
from cifartune.runs import RunFolder
from cifartune.search import Search


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
    space = load_space(QUICK, [override])
    run = RunFolder.create(tmp_path, space)
    run.plan.write_text(json.dumps(plan))
    search = Search(space, run, data_root=tmp_path, console=Console(file=io.StringIO()))
    assert search._patience() == seconds
