"""What people see of a search in MLflow: `cifartune ui`, in a real browser."""

import re
import shutil
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest
from browser import browser
from made_up_search import make_up_search
from playwright.sync_api import BrowserContext, Page, expect
from searches import cifartune, started

from cifartune.errors import UserError
from cifartune.tracking.server import find_page, free_port, is_local

# mlflow's own tables, as SQLAlchemy sees them.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

START_MS = 60_000.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """The folder of a search of sixteen trials that trained nothing."""
    folder = tmp_path_factory.mktemp("pages") / "runs"
    # In a process of its own: a tracker redirects the logging of the whole process.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(make_up_search, folder, data_root).result()
    return folder


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """The address that `cifartune ui quick` prints; it ends by a Ctrl-C, with all its processes."""
    ui = started("ui", "quick", "--no-browser", "--runs", runs, cwd=runs.parent)
    try:
        assert ui.stdout and ui.stderr
        printed = ui.stdout.readline().strip()
        assert printed.startswith("http://127.0.0.1:"), ui.stderr.read()
        family = psutil.Process(ui.pid).children(recursive=True)
        assert family
        yield printed
        ui.send_signal(signal.SIGINT)
        assert ui.wait(timeout=30) == 0
        _, alive = psutil.wait_procs(family, timeout=5)
        assert alive == []
    finally:
        if ui.poll() is None:
            ui.send_signal(signal.SIGTERM)
        ui.communicate(timeout=30)


@pytest.fixture(scope="module")
def context(address: str) -> Iterator[BrowserContext]:
    with browser() as opened:
        yield opened


def trials_page(context: BrowserContext, address: str) -> Page:
    """The table of trials, without the panels about it."""
    page = context.new_page()
    page.goto(address)
    expect(page.get_by_text("trial 00 · baseline")).to_be_visible(timeout=START_MS)
    for panel in ("Hide banner", "Close"):
        button = page.get_by_role("button", name=panel, exact=True)
        if button.is_visible():
            button.click()
    return page


def column(page: Page, name: str) -> list[str]:
    """The texts of a column of the table, from the top, of the rows that are drawn."""
    cells = page.locator(f'.ag-center-cols-container [role=row] [col-id="{name}"]')
    rows = page.locator(".ag-center-cols-container [role=row]")
    order = [int(row.get_attribute("row-index") or 0) for row in rows.all()]
    texts = cells.all_inner_texts()
    return [text for _, text in sorted(zip(order, texts, strict=True))]


def test_the_trials_are_shown_with_what_was_searched_the_best_first(
    context: BrowserContext, address: str
) -> None:
    page = trials_page(context, address)
    expect(page.get_by_text("16 matching runs")).to_be_visible()
    expect(page.get_by_role("button", name="quick: trials")).to_be_visible()
    values = [float(text.rstrip("…")) for text in column(page, "metrics.`val_accuracy`")]
    assert len(values) >= 8 and values == sorted(values, reverse=True)
    assert set(column(page, "params.`optimizer.name`")) <= {"sgd", "adamw", "muon"}
    shown = [page.get_by_test_id(f"sort-header-{name}") for name in ("val_accuracy", "val_loss")]
    shown += [page.locator('[col-id="params.`optimizer.lr`"]').first]
    for header in shown:
        expect(header).to_be_visible()


def test_two_trials_are_compared(context: BrowserContext, address: str) -> None:
    page = trials_page(context, address)
    box = page.get_by_role("checkbox", name="Press Space to toggle row selection (unchecked)")
    for _ in range(2):
        box.first.click()
    page.get_by_test_id("runs-compare-button").click()
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible(timeout=START_MS)
    for name in ("optimizer.lr", "model.dropout", "augment.strength"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    expect(page.get_by_text("batch_size", exact=True)).to_have_count(0)  # no trial differs in it


def test_the_search_says_what_it_is_about(context: BrowserContext, address: str) -> None:
    page = trials_page(context, address)
    page.get_by_text("trial 00 · baseline").click()
    page.get_by_role("link", name="quick", exact=True).click(timeout=START_MS)
    expect(page.get_by_text("16 trials of up to 5 epochs")).to_be_visible(timeout=START_MS)
    expect(page.get_by_role("tab", name="System metrics")).to_be_visible()
    expect(page.get_by_text(re.compile(r"\([0-9a-f]{8}\)")).first).to_be_visible()  # the dataset


def test_what_is_not_there_is_told(
    tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(
        "MLFLOW_TRACKING_URI", raising=False
    )  # MLflow keeps there where others logged
    refused = cifartune("ui", "quick", cwd=tmp_path)
    assert refused.returncode == 2 and "no run is called quick" in refused.stderr
    with pytest.raises(UserError, match=r"mlflow\.db: there is no MLflow store; a search makes it"):
        find_page(tmp_path, None)
    shutil.copytree(runs / "quick", tmp_path / "quick")
    identity = tmp_path / "quick" / "run.json"
    text = identity.read_text()
    identity.write_text(text.replace("mlflow.db", "elsewhere.db"))
    with pytest.raises(UserError, match=r"elsewhere\.db: there is no MLflow store; .*run\.json"):
        find_page(tmp_path, "quick")
    identity.write_text(re.sub(r'"id": "\w+"', '"id": "other"', text))
    with pytest.raises(UserError, match=r"has no run of it; send what is left with: .* sync quick"):
        find_page(tmp_path, "quick")


def test_ports_and_hosts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port}: cannot listen there: Address alre"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1: cannot listen there"):
        free_port("192.0.2.1", None)
    with pytest.raises(UserError, match="--host no host: "):
        free_port("no host", None)
    assert [is_local(host) for host in ("localhost", "127.0.0.1", "::1")] == [True] * 3
    assert [is_local(host) for host in ("0.0.0.0", "192.168.0.1", "example.org")] == [False] * 3
