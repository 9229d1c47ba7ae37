"""A search while it runs for real: Ray's dashboard in a browser, other terminals, its sockets."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from browser import browser, errors_of
from playwright.sync_api import Page, expect
from searches import cifartune, started, until

SPACE = """
name: watched
base: {model: {name: speednet_small, resolution: 16}, epochs: 3, batch_size: 100}
parameters:
  optimizer.lr: {min: 0.01, max: 1, log: true}
  optimizer.weight_decay: {min: 0.00001, max: 0.01, log: true}
data: {validation: 500, train_subset: 2000}
search: {num_trials: 400}
scheduler: {name: asha, grace_period: 1}
refit: {top_k: 1, folds: 2, epochs: 1}
stand_in: 500
"""

OPEN = {
    "driver",  # as every worker
    "gcs_server",
    "raylet",
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
    "monitor.py",
    "dashboard.py",
}
"""What listens on other addresses than 127.0.0.1, beside workers: the table in deploy/README.md."""

FIGURES = {"monitor.py": 44217, "dashboard.py": 44227}
"""Of these, what listens there for Prometheus alone."""


@pytest.mark.slow
def test_a_search_is_watched_stopped_and_brought_to_its_end(
    tmp_path: Path, data_root: Path
) -> None:
    (tmp_path / "small.yaml").write_text(SPACE)
    environment = {"CIFARTUNE_DATA": str(data_root), "MLFLOW_TRACKING_URI": ""}
    command = ["search", "small.yaml", "--json-lines"]
    with started(*command, cwd=tmp_path, **environment) as search:
        try:
            seen = until(search, "epoch", trial=1)
            [slots] = [event for event in seen if event["event"] == "slots"]
            see_from_another_terminal(tmp_path, search.pid, slots["dashboard"])
            only_rays_own_ports_are_open(search.pid, slots["dashboard"])
            see_in_the_dashboard(slots["dashboard"], "watched", slots["count"])
        finally:
            search.send_signal(signal.SIGINT)
            assert search.stdout and search.stderr
            rest = [json.loads(line) for line in search.stdout]
            errors = search.stderr.read()
    assert search.returncode == 130
    assert {"note", "epoch"} <= {event["event"] for event in rest}
    assert (rest[-1]["event"], rest[-1]["kind"]) == ("error", "interrupted")
    assert rest[-1]["exit_code"] == 130
    assert errors == rest[-1]["message"] + "\n"

    status = json.loads(cifartune("status", "--json", cwd=tmp_path).stdout)
    assert (status["state"], status["dashboard"]) == ("interrupted", "")
    command = ["resume", "watched", "--quiet", "--time-budget", "60s"]
    ended = cifartune(*command, cwd=tmp_path, timeout=250, **environment)
    assert (ended.returncode, ended.stdout) == (0, f"{tmp_path}/runs/watched\n"), ended.stderr
    assert ended.stderr == ""
    status = json.loads(cifartune("status", "--json", cwd=tmp_path).stdout)
    assert (status["state"], status["stage"]) == ("finished", "done")
    kept = (tmp_path / "runs" / "watched" / "events.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["event"] for line in kept]
    assert kinds.count("started") == 2 and kinds[-1] == "finished"


def see_from_another_terminal(folder: Path, pid: int, dashboard: str) -> None:
    """`status` and `watch`, which is left by Ctrl-C."""
    status = json.loads(cifartune("status", "--json", cwd=folder).stdout)
    assert (status["name"], status["state"], status["pid"]) == ("watched", "running", pid)
    assert status["dashboard"] == dashboard
    assert status["trials"]["ended"] >= 1 and status["seconds_left"] > 0
    with started("watch", cwd=folder) as watch:
        assert watch.stdout and watch.stderr
        line = watch.stdout.readline()
        watch.send_signal(signal.SIGINT)
        told = watch.stderr.read()
    assert line.startswith("trial ")
    assert (watch.returncode, told) == (
        130,
        "cifartune: no longer watching watched, which goes on\n",
    )


def only_rays_own_ports_are_open(pid: int, dashboard: str) -> None:
    """No port is open to the network that is not documented; the dashboard's is not."""
    found = list(listening(pid))
    _, _, port = dashboard.rpartition(":")
    assert [address for _, address, at in found if at == int(port)] == ["127.0.0.1"]
    to_all = [(name, at) for name, address, at in found if address != "127.0.0.1"]
    assert {name for name, _ in to_all if name.startswith("ray::")} >= {"ray::Board"}
    assert {name for name, _ in to_all if not is_worker(name)} <= OPEN
    assert all(at == FIGURES.get(name, at) for name, at in to_all)


def is_worker(name: str) -> bool:
    return name.startswith("ray::") and name not in OPEN


def listening(pid: int) -> Iterator[tuple[str, str, int]]:
    """Name, address and port of each socket on which a process or a child of it listens."""
    driver = psutil.Process(pid)
    for process in [driver, *driver.children(recursive=True)]:
        try:
            name = "driver" if process == driver else process.name()
            scripts = [Path(part).name for part in process.cmdline() if part.endswith(".py")]
            name = scripts[0] if name.startswith("python") and scripts else name
            for socket in process.net_connections(kind="inet"):
                if socket.status == psutil.CONN_LISTEN:
                    yield name, socket.laddr.ip, socket.laddr.port
        except psutil.NoSuchProcess:
            continue


def see_in_the_dashboard(address: str, name: str, slots: int) -> None:
    """It asks for the token; then a job has the search's name, and its slots are Train runs."""
    ray = Path(sys.executable).with_name("ray")
    token = subprocess.run([ray, "get-auth-token"], capture_output=True, text=True, check=True)
    with browser() as context:
        page = context.new_page()
        runs = f"{address}/api/train/v2/runs/v1"
        assert page.request.get(runs).status == 401
        page.goto(address)
        page.get_by_placeholder("Enter your authentication token").fill(token.stdout.strip())
        page.get_by_role("button", name="Submit").click()
        expect(page.get_by_text("Authentication Token Required")).to_have_count(0)
        told = errors_of(context)
        row = row_of(page, f"{address}/#/jobs", name)
        assert "RUNNING" in row and "cifartune search small.yaml" in row
        board = row_of(page, f"{address}/#/actors", f"Board({name})")
        assert "ALIVE" in board
        found = page.request.get(runs).json()["train_runs"]
        assert {run["name"] for run in found if run["status"] == "RUNNING"} == {
            f"{name}-slot-{slot}" for slot in range(slots)
        }
        assert not [line for line in told if "401" in line]  # it does ask for Prometheus in vain


def row_of(page: Page, address: str, text: str) -> str:
    """The row of a table of the dashboard with a cell of that text."""
    page.goto(address)
    row = page.get_by_role("row").filter(has=page.get_by_text(text, exact=True)).first
    expect(row).to_be_visible(timeout=30_000)
    return row.inner_text()
