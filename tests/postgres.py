"""A private PostgreSQL server, where one is installed."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Server:
    """A server with one empty database.

    Attributes:
        url: The storage URL of the database.
    """

    def __init__(self, binaries: Path, folder: str) -> None:
        self._binaries, self._folder = binaries, folder
        # It does not run as root, nor in a folder that only root can enter.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"postgresql://cifartune@127.0.0.1:{self._port}/postgres"
        self._run("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "cifartune")

    def start(self) -> None:
        """Starts it and waits until it answers."""
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._control("-l", f"{self._folder}/log", "-o", options, "start")

    def stop(self) -> None:
        """Ends it at once, with all connections."""
        self._control("-m", "immediate", "stop")

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", f"{self._folder}/data", "-w", *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        cwd, nothing = self._folder, subprocess.DEVNULL
        subprocess.run(command, check=True, user=self._user, cwd=cwd, stdout=nothing)


@contextmanager
def postgresql_server() -> Iterator[Server]:
    """A server that runs; the test is skipped where none is installed."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), shutil.which("initdb")]
    if not found[0]:
        pytest.skip("no PostgreSQL server is installed (Debian: apt install postgresql)")
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder:
        server = Server(Path(found[0]).parent, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
