"""Passwords in addresses of databases and servers stay with who typed them."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from searches import QUICK

import cifartune.stages
from cifartune import cli
from cifartune.config import load_space
from cifartune.errors import UserError
from cifartune.passwords import without_password
from cifartune.runs import RunFolder
from cifartune.tracking import check_server
from cifartune.tracking.lookup import look_up
from cifartune.tracking.outbox import Outbox
from cifartune.tuning.study import check_storage


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:secret@host/db", "postgresql://u:***@host/db"),
        (
            "--storage=postgresql+psycopg://u:secret@host",
            "--storage=postgresql+psycopg://u:***@host",
        ),
        ("mysql://u:se/cr et@1@host:9/db", "mysql://u:***@host:9/db"),
        ("https://:secret@host", "https://:***@host"),
        ("postgresql:///db?password=secret&x=1", "postgresql:///db?password=***&x=1"),
        (
            "postgresql://u:secret@h/db?a=1&sslpassword=secret",
            "postgresql://u:***@h/db?a=1&sslpassword=***",
        ),
        ("postgresql://u@host:5432/db", "postgresql://u@host:5432/db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////home/u:x@y/runs.db", "sqlite:////home/u:x@y/runs.db"),
        ("--set", "--set"),
    ],
)
def test_a_password_is_three_stars(text: str, shown: str) -> None:
    assert without_password(text) == shown


def test_the_command_is_told_without_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    class Search:
        def __init__(self, *_: Any, **options: Any) -> None:
            told.update(options)

        def run(self) -> None: ...

    monkeypatch.setattr(cifartune.stages, "Search", Search)
    arguments = ["search", "a.yaml", "--storage", "postgresql://u:secret@h/db"]
    arguments.append("--tracking-uri=http://u:secret@h:5000")
    monkeypatch.setattr(sys, "argv", ["cifartune", *arguments])
    space = load_space(QUICK)
    cli._run(space, RunFolder.create(tmp_path, space), tmp_path, "local")
    assert told["command"] == (
        "cifartune search a.yaml --storage postgresql://u:***@h/db "
        "--tracking-uri=http://u:***@h:5000"
    )


def test_files_that_may_hold_passwords_are_their_owners_alone(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        run = RunFolder.create(tmp_path, load_space(QUICK), tracking_uri="http://u:secret@h")
        Outbox(run.tracking).put({"do": "log"})
        modes = {path.name: path.stat().st_mode & 0o777 for path in run.path.iterdir()}
    finally:
        os.umask(umask)
    assert (modes["run.json"], modes["tracking.jsonl"]) == (0o600, 0o600)
    assert modes["space.yaml"] == 0o644
    assert run.tracking_uri == "http://u:secret@h"


def test_messages_have_no_password() -> None:
    with pytest.raises(UserError) as away:
        check_server("http://u:secret@127.0.0.1:9")
    assert str(away.value).startswith("--tracking-uri http://u:***@127.0.0.1:9: ")
    with pytest.raises(UserError) as away:
        check_storage("postgresql://u:secret@127.0.0.1:9/db")
    assert "secret" not in str(away.value) and "u:***@127.0.0.1:9/db: " in str(away.value)
    with pytest.raises(UserError, match=r"no MLflow store sqlite:///none\?password=\*\*\*; "):
        look_up("sqlite:///none?password=secret", "0" * 32)
