"""Pictures of a finished search for README and docs: the top of its report, and single figures.

    python docs/pictures.py RUN_FOLDER [--out docs/pictures] [--figures N...]

They are what the report shows, drawn by the system's Chromium: report.png, its first screen, and
figure-N.png for each figure that is asked for, counted from 0 as they stand in the page.
"""

import argparse
import sys
from pathlib import Path

from cifartune.report.report import report, save
from cifartune.runs import RunFolder

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from browser import browser

WIDTH, HEIGHT = 1120, 800


def main(options: argparse.Namespace) -> None:
    """Draws the report of a search anew, and takes its pictures."""
    page_file = (options.out / "report.html").resolve()
    save(report(RunFolder(options.run)), page_file)
    with browser(is_offline=True) as context:
        page = context.new_page()
        page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-drawn=all]", state="attached")
        page.screenshot(path=options.out / "report.png")
        for number in options.figures:
            page.locator(f"figure:has(#figure-{number})").screenshot(
                path=options.out / f"figure-{number}.png"
            )
    page_file.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    parser.add_argument("--figures", type=int, nargs="*", default=[])
    main(parser.parse_args())
