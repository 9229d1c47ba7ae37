"""Several machines: two raylets on this one, with a core each."""

import json
import logging
import os
import re
import shlex
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from searches import QUICK, cifartune, started, until
from typer.testing import CliRunner

from cifartune.cli import app
from cifartune.tuning import cluster as own_cluster
from cifartune.tuning.cluster import lets_everyone_in
from cifartune.tuning.machines import _sweep

TOKEN = {"RAY_AUTH_TOKEN": "0123456789" * 5}

SMALL = """
name: small
base: {model: {name: speednet_small, resolution: 16}, epochs: 4, batch_size: 100}
parameters:
  optimizer.lr: {min: 0.01, max: 1, log: true}
data: {validation: 500, train_subset: 2000}
search: {num_trials: 4, sampler: random}
scheduler: {name: none}
refit: {top_k: 1, folds: 2, epochs: 1}
stand_in: 500
"""


@contextmanager
def machine(
    *options: str, within: Sequence[str] = (), **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Ray node of one core, and the cluster's address; in the end it is killed."""
    ray = Path(sys.executable).with_name("ray")
    node = subprocess.Popen(
        [*within, ray, "start", "--block", "--num-cpus=1", "--disable-usage-stats", *options],
        env={**os.environ, **TOKEN, "RAY_AUTH_MODE": "token", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert node.stdout
    try:
        address = ""
        for line in node.stdout:
            if found := re.search(r"--address='([\d.:]+)'", line):
                address = found[1]
            if "--block" in line:  # the last that is printed
                break
        yield node, address
    finally:
        kill(node)
        node.stdout.close()


def kill(node: "subprocess.Popen[str]") -> None:
    """Ends a node as a power cut does."""
    if node.poll() is None:
        started = psutil.Process(node.pid)
        for process in [*started.children(recursive=True), started]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
    node.wait()


@pytest.fixture
def cluster() -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The address of two machines, and the process of the second."""
    with ExitStack() as stack:
        # Paths of sockets must be short.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="r", dir="/tmp"))
        _, address = stack.enter_context(machine("--head", "--port=0", f"--temp-dir={folder}"))
        second, _ = stack.enter_context(machine(f"--address={address}"))
        yield address, second


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["one disk", "two disks"])
def test_a_machine_is_lost_in_the_middle_of_a_search(
    shared: bool, tmp_path: Path, data_root: Path
) -> None:
    """Of two disks, the second machine sees an empty folder where the first one has the runs."""
    (tmp_path / "small.yaml").write_text(SMALL)
    hide = 'mount -t tmpfs none "$0" && exec "$@"'
    within = [] if shared else ["unshare", "--mount", "sh", "-c", hide, str(tmp_path)]
    if subprocess.run([*within, "true"], capture_output=True, check=False).returncode:
        pytest.skip("folders cannot be hidden here")
    environment = {"CIFARTUNE_DATA": str(data_root), **TOKEN}
    with ExitStack() as stack:
        # Paths of sockets must be short.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="r", dir="/tmp"))
        _, address = stack.enter_context(machine("--head", "--port=0", f"--temp-dir={folder}"))
        second, _ = stack.enter_context(machine(f"--address={address}", within=within))
        checked = cifartune(
            *("cluster", "check", "--address", address), cwd=tmp_path, timeout=100, **environment
        )
        assert checked.returncode == 0, checked.stderr
        for kind, count in {"shared": 1 + shared, "sent": 1 - shared}.items():
            assert len(re.findall(rf" 1 +0 +[\d.]+ GiB +{kind} +yes", checked.stdout)) == count

        with started(
            *("search", "small.yaml", "--json-lines", "--address", address),
            cwd=tmp_path,
            **environment,
        ) as search:
            seen: list[dict[str, Any]] = []
            while {0, 1} - {event.get("trial") for event in seen if event.get("epoch", 0) > 1}:
                seen += until(search, "epoch")
            # One of the two trials is on the second machine: what it kept is here.
            trials = tmp_path / "runs" / "small" / "trials"
            assert all(list((trials / number).iterdir()) for number in "01"), seen
            assert "starting it again" not in (trials.parent / "ray.log").read_text()
            kill(second)
            _, errors = search.communicate(timeout=250)
    assert search.returncode == 0, errors
    [slots] = [event for event in seen if event["event"] == "slots"]
    assert (slots["count"], slots["slot"]) == (2, "1 CPU core")

    result = json.loads((tmp_path / "runs" / "small" / "result.json").read_text())
    assert result["trials"]["total"] == result["trials"]["complete"] == 4
    with sqlite3.connect(tmp_path / "runs" / "small" / "study.db") as study:
        steps = study.execute("SELECT trial_id, step FROM trial_intermediate_values").fetchall()
    assert Counter(trial for trial, _ in steps) == dict.fromkeys(range(1, 5), 4)
    checked = cifartune("check", "small", cwd=tmp_path, timeout=100, **environment)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_a_token_is_asked_for(cluster: tuple[str, "subprocess.Popen[str]"], tmp_path: Path) -> None:
    wrong = {**TOKEN, "RAY_AUTH_TOKEN": "9876543210" * 5}
    result = cifartune(
        *("cluster", "check", "--address", cluster[0]), cwd=tmp_path, timeout=100, **wrong
    )
    assert result.returncode == 2
    assert re.match(f"cifartune: --address {cluster[0]}: .*token", result.stderr), result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_cluster_that_asks_for_no_token_is_told_of(tmp_path: Path, data_root: Path) -> None:
    environment = {"CIFARTUNE_DATA": str(data_root), **TOKEN}
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        head = ["--head", "--port=0", f"--temp-dir={folder}"]
        with machine(*head, RAY_AUTH_MODE="disabled") as (_, address):
            checked = cifartune(
                *("cluster", "check", "--address", address),
                cwd=tmp_path,
                timeout=100,
                **environment,
            )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith("note: this cluster asks for no token: whoever reaches")


@pytest.mark.parametrize(
    ("answer", "is_open"),
    [('{"authentication_mode": "disabled"}', True), ('{"authentication_mode": "token"}', False)]
    + [(text, False) for text in ("[]", "{}", "no JSON")],
)
def test_a_dashboard_says_whether_it_asks_for_a_token(
    answer: str, is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/authentication_mode" else 404)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert lets_everyone_in(url) == is_open
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        assert not lets_everyone_in(url)  # whoever says so knows it
        server.shutdown()
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert not lets_everyone_in(url)  # nobody answers
    assert not lets_everyone_in("")


def test_what_a_cluster_tells_its_driver_is_logged(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """By the function that Ray's thread for errors calls; tests/test_faults.py has it for real."""
    own_cluster.load_ray()
    from ray._private.worker import print_to_stdstream

    told = {"lines": ["A worker died"], "pid": "raylet", "is_err": False}
    with own_cluster._logged_not_printed(), caplog.at_level("WARNING", "ray"):
        logging.getLogger("ray").addHandler(caplog.handler)
        print_to_stdstream(told, ignore_prefix=False)
        logging.getLogger("ray").removeHandler(caplog.handler)
    assert "raylet: A worker died" in caplog.messages
    assert capsys.readouterr().out == ""
    print_to_stdstream({**told, "lines": ["Another died"]}, ignore_prefix=False)
    assert "Another died" in capsys.readouterr().out


def test_a_token_is_its_owners_from_the_first_moment_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    file, found = tmp_path / ".ray" / "auth_token", list[tuple[int, str]]()

    def init(**_: object) -> SimpleNamespace:
        found.append((stat.S_IMODE(file.stat().st_mode), file.read_text()))
        return SimpleNamespace(dashboard_url="")

    ray = SimpleNamespace(init=init, shutdown=lambda: None)
    monkeypatch.setattr(own_cluster, "load_ray", lambda address: ray)
    before = os.umask(0o022)
    try:
        for _ in range(2):  # the second search finds it there
            with own_cluster.cluster():
                pass
    finally:
        os.umask(before)
    (mode, token), (_, same) = found
    assert mode == 0o600 and re.fullmatch("[0-9a-f]{64}", token) and token == same
    assert list(file.parent.iterdir()) == [file]
    ask = "from ray._raylet import AuthenticationTokenLoader as Loader\n"
    ask += "print(Loader.instance().has_token(ignore_auth_mode=True))"
    told = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    assert told.stdout == "True\n", told.stderr

    file.unlink()
    for name, value in (("RAY_AUTH_TOKEN", token), ("RAY_AUTH_MODE", "disabled")):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            own_cluster._make_token()
        assert not file.exists()


@contextmanager
def networks() -> Iterator[tuple[list[str], list[str]]]:
    """Two network namespaces with one link: for each, what runs a command within it.

    Their addresses are 10.213.0.1 and 10.213.0.2.
    """
    names = [f"cifartune-{os.getpid()}-{side}" for side in "ab"]
    links = [f"cf{os.getpid()}{side}" for side in "ab"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    with ExitStack() as stack:
        for name in names:
            try:
                ip("netns", "add", name)
            except (OSError, subprocess.CalledProcessError):
                pytest.skip("network namespaces cannot be made here")
            stack.callback(ip, "netns", "delete", name)
        try:
            ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        except subprocess.CalledProcessError:
            pytest.skip("network links cannot be made here")
        for number, (name, link) in enumerate(zip(names, links, strict=True), start=1):
            ip("link", "set", link, "netns", name)
            ip("-n", name, "address", "add", f"10.213.0.{number}/24", "dev", link)
            for device in ("lo", link):
                ip("-n", name, "link", "set", device, "up")
        first, second = (["ip", "netns", "exec", name] for name in names)
        yield first, second


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_network_is_cut_in_the_middle_of_a_search(tmp_path: Path, data_root: Path) -> None:
    """Each machine has an address of its own; nobody hears of the second any more."""
    (tmp_path / "small.yaml").write_text(SMALL)
    with ExitStack() as stack:
        first, second = stack.enter_context(networks())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="r", dir="/tmp"))
        options = ["--head", "--port=0", f"--temp-dir={folder}", "--node-ip-address=10.213.0.1"]
        _, address = stack.enter_context(machine(*options, within=first))
        assert address.startswith("10.213.0.1:")
        options = [f"--address={address}", "--node-ip-address=10.213.0.2"]
        stack.enter_context(machine(*options, within=second))
        command = ["search", "small.yaml", "--json-lines", "--address", address]
        environment = {"CIFARTUNE_DATA": str(data_root), **TOKEN}
        with started(*command, cwd=tmp_path, within=first, **environment) as search:
            seen = until(search, "epoch", trial=1, epoch=2)
            cut = ["ip", "link", "set", f"cf{os.getpid()}b", "down"]
            subprocess.run([*second, *cut], check=True)
            _, errors = search.communicate(timeout=400)
        assert search.returncode == 0, errors
    [slots] = [event for event in seen if event["event"] == "slots"]
    assert (slots["count"], slots["slot"]) == (2, "1 CPU core")
    result = json.loads((tmp_path / "runs" / "small" / "result.json").read_text())
    assert result["trials"]["total"] == result["trials"]["complete"] == 4
    checked = cifartune("check", "small", cwd=tmp_path, timeout=100, **environment)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_two_searches_side_by_side_do_not_disturb_each_other(
    cluster: tuple[str, "subprocess.Popen[str]"], tmp_path: Path, data_root: Path
) -> None:
    """On one cluster, in one folder, with one MLflow store, which both are the first to open."""
    one_slot = SMALL.replace("sampler: random", "sampler: random, max_concurrent: 1")
    (tmp_path / "small.yaml").write_text(one_slot)
    environment = {"CIFARTUNE_DATA": str(data_root), **TOKEN}
    with ExitStack() as stack:
        both = [
            stack.enter_context(
                started(
                    "search", "small.yaml", "--address", cluster[0], cwd=tmp_path, **environment
                )
            )
            for _ in range(2)
        ]
        for search in both:
            _, errors = search.communicate(timeout=280)
            assert search.returncode == 0, errors
    for name in ("small", "small-2"):
        checked = cifartune("check", name, cwd=tmp_path, timeout=100, **environment)
        assert checked.returncode == 0, checked.stdout
        result = json.loads((tmp_path / "runs" / name / "result.json").read_text())
        assert result["trials"]["complete"] == 4


LEAVE = """
import sys, time
from cifartune.tuning.cluster import cluster, load_ray
with cluster(sys.argv[1]):
    import ray
    from ray.util.placement_group import placement_group

    @ray.remote(num_cpus=0)
    class Owner:
        def reserve(self):
            group = placement_group([{"CPU": 1}])
            ray.get(group.ready())

    owner = Owner.options(name="owner", lifetime="detached", namespace="left").remote()
    ray.get(owner.reserve.remote())
"""

FREE = """
import sys
from cifartune.tuning.cluster import cluster
with cluster(sys.argv[1]):
    from cifartune.tuning.machines import free_leftovers
    import ray
    before = ray.available_resources().get("CPU", 0)
    freed = free_leftovers()
    print(freed, ray.cluster_resources()["CPU"] - before)
    print(free_leftovers())
"""


@pytest.mark.slow
def test_what_a_dead_driver_reserved_is_freed(
    cluster: tuple[str, "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    """Ray itself frees most; a group that an actor made which outlived the driver, it does not."""
    environment = {**os.environ, **TOKEN}
    for name, code in (("cifartune_driver.py", LEAVE), ("free.py", FREE)):
        (tmp_path / name).write_text(code)
        run = subprocess.run(
            [sys.executable, tmp_path / name, cluster[0]],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["1 1.0", "0"]


def test_what_killed_processes_looked_for_goes_and_what_others_look_for_stays(
    tmp_path: Path,
) -> None:
    ages = {".machines-old": 3600, ".machines-new": 60, "small": 3600}
    for name, age in ages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "mark").touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    _sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".machines-new", "small"}


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere", "127.0.0.1:port"])
def test_no_cluster_at_that_address(address: str, tmp_path: Path, data_root: Path) -> None:
    for command in (["cluster", "check"], ["search", QUICK], ["plan", QUICK]):
        result = cifartune(
            *(*command, "--address", address), cwd=tmp_path, CIFARTUNE_DATA=str(data_root)
        )
        assert result.returncode == 2
        message = f"cifartune: --address {address}: no Ray cluster answers there"
        assert re.match(message, result.stderr), result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert list(tmp_path.iterdir()) == []


def test_the_job_for_kubernetes_is_a_command_of_ours() -> None:
    text = (Path(__file__).parent.parent / "deploy" / "rayjob.yaml").read_text()
    volume, job = yaml.safe_load_all(text)
    program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "cifartune"
    # All that comes after --help is parsed, and not done.
    assert CliRunner().invoke(app, [arguments[0], "--help", *arguments[1:]]).exit_code == 0
    groups = job["spec"]["rayClusterSpec"]
    pod = groups["headGroupSpec"]["template"]["spec"]
    [used] = pod["volumes"]
    assert used["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]
    [mounted] = pod["containers"][0]["volumeMounts"]
    assert used["name"] == mounted["name"]
    assert arguments[arguments.index("--runs") + 1].startswith(mounted["mountPath"])
