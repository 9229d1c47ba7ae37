"""Takes the picture of a search's trials in MLflow.

    python docs/screenshots/mlflow_trials.py NAME [--runs runs] [--out docs/pictures/mlflow.png]

What it shows is a search of one's own: run one first, such as `cifartune search
search_spaces/quick.yaml`.
"""

import argparse
import sys
from pathlib import Path

from playwright.sync_api import Page, expect

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from browser import browser  # noqa: E402

from cifartune.tracking.server import find_page, free_port, serving  # noqa: E402

SIZE = {"width": 1280, "height": 700}


def main(options: argparse.Namespace) -> None:
    """Opens the page as `cifartune ui` does, and keeps what is seen."""
    page = find_page(options.runs, options.name)
    with (
        serving(page.uri, "127.0.0.1", free_port("127.0.0.1", None)) as (_, address),
        browser() as context,
    ):
        opened = context.new_page()
        opened.set_viewport_size(SIZE)
        show_trials(opened, page.address(address))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        opened.screenshot(path=options.out)
    print(options.out)


def show_trials(page: Page, address: str) -> None:
    """Opens the table of trials, without the panels beside it."""
    page.goto(address)
    expect(page.get_by_text("baseline")).to_be_visible(timeout=60_000)
    for panel in ("Hide banner", "Close", "Toggle sidebar"):
        button = page.get_by_role("button", name=panel, exact=True)
        if button.is_visible():
            button.click()
    page.wait_for_timeout(3000)  # until the columns have their places


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures" / "mlflow.png")
    main(parser.parse_args())
