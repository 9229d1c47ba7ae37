"""The commands that are printed are the commands that work."""

import os
import sys
from pathlib import Path

import pytest

from cifartune.programs import program


def test_a_program_on_the_path_is_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert program("cifartune") == "cifartune"


def test_off_the_path_it_is_where_it_can_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert os.access(program("cifartune"), os.X_OK)
    assert program("no-such-program") == "no-such-program"
