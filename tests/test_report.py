"""The report of a search: what it says of which search, and that it can be opened anywhere."""

import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import browser, errors_of
from searches import QUICK, cifartune

from cifartune.config import SearchSpace
from cifartune.data import LabelledImages
from cifartune.errors import UserError
from cifartune.report.document import Code, Document, Part, Section, Table, Text, markdown
from cifartune.report.findings import verdict
from cifartune.report.report import document_of, report, write_last
from cifartune.report.searched import Searched
from cifartune.runs import RunFolder
from cifartune.tuning.recorded import recorded_trials
from cifartune.tuning.study import TrialStudy

ROOT = Path(__file__).parent.parent
MOST_MEGABYTES, MOST_SECONDS = 15, 3

CONDITIONAL = {
    "optimizer.name": {"values": ["sgd", "adamw", "muon"]},
    "optimizer.momentum": {"min": 0.5, "max": 0.99, "when": {"optimizer.name": ["sgd"]}},
    "optimizer.lr": {"min": 1e-3, "max": 0.3, "log": True},
    "model.width": {"min": 1, "max": 8},
}
WIDE = {"model": {"name": "wideresnet", "width": 4}, "epochs": 5}
SIZES = [{"metric": "val_accuracy"}, {"metric": "params"}]


OVERLAPS = """
[...document.querySelectorAll('.plot')].flatMap((plot) => {
  const lines = [...plot.querySelectorAll('.xtick text')].flatMap((tick) => {
    const parts = tick.querySelectorAll('tspan.line');
    return [...(parts.length ? parts : [tick])].filter((line) => line.textContent);
  });
  const boxes = lines.map((line) => [line.textContent, line.getBoundingClientRect()]);
  return boxes.flatMap(([name, a], i) => boxes.slice(i + 1)
    .filter(([_, b]) => a.width && b.width && a.left < b.right - 1 && b.left < a.right - 1
      && a.top < b.bottom - 4 && b.top < a.bottom - 4)
    .map(([other, _]) => `${name} | ${other}`));
})
"""
"""The names of an axis that lie on each other; those of one tick stand close below each other."""


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


def space_of(changes: dict[str, Any]) -> SearchSpace:
    return SearchSpace.model_validate(yaml.safe_load(QUICK.read_text()) | changes)


def measured_result() -> dict[str, Any]:
    """The result of a real search."""
    kept = json.loads((ROOT / "benchmarks" / "results" / "quick_search.json").read_text())
    result: dict[str, Any] = kept["result"]
    return result


def finished(runs: Path, changes: dict[str, Any], train: LabelledImages | None = None) -> RunFolder:
    from made_up import made_up_run

    return made_up_run(runs, space_of(changes), result=measured_result(), train=train)


class Loads(HTMLParser):
    """What a page would load, but for what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            outside = name in ("src", "href", "srcset", "data", "poster", "action")
            if outside and not str(value).startswith(("#", "data:")):
                self.found.append(f"{tag} {name}={value}")


def test_the_page_opens_offline_with_all_figures_drawn(
    cifar: LabelledImages, tmp_path: Path
) -> None:
    """Of 200 trials; of the size with 1,000 there is a measurement, which is checked below."""
    from report import SPACE

    inits = ["default", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"]
    parameters = dict(SPACE["parameters"])
    parameters["model.init"] = {"values": [*inits, "orthogonal"]}
    space = SPACE | {"search": {"num_trials": 200}, "parameters": parameters}
    run = finished(tmp_path / "runs", space, cifar)
    run.report.write_text(text := report(run))
    assert len(text.encode()) < MOST_MEGABYTES * 1e6
    loads = Loads()
    loads.feed(text)
    assert loads.found == []
    assert not re.search(r"@import|url\(", text[: text.index("</style>")])
    with browser(is_offline=True) as context:
        told, asked = errors_of(context), list[str]()
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url.split(":")[0]))
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(run.report.as_uri())
            page.wait_for_selector("html[data-drawn=all]", state="attached")
            assert page.evaluate("document.documentElement.scrollWidth") == width
            marks = page.evaluate(
                "[...document.querySelectorAll('.plot')].map((plot) =>"
                " plot.querySelectorAll('path.point, path.js-line, .bars path, image').length)"
            )
            assert len(marks) == 5 + len(space["parameters"]) + 3
            assert all(marks)
            if width == 1280:  # names that a narrow page turns have boxes that overlap
                assert page.evaluate(OVERLAPS) == []
        assert told == []
        assert set(asked) <= {"file", "data", "blob"}


def test_the_measured_report_keeps_its_bars() -> None:
    kept = json.loads((ROOT / "benchmarks" / "results" / "report.json").read_text())
    assert kept["trials"] == 1000
    assert kept["megabytes"] < MOST_MEGABYTES
    assert kept["seconds_to_open"] < MOST_SECONDS


ODD: dict[str, dict[str, Any]] = {
    "loss and conditions": {
        "objective": {"metric": "val_loss"},
        "parameters": CONDITIONAL,
        "base": WIDE,
    },
    "two objectives": {
        "objective": None,
        "objectives": SIZES,
        "parameters": CONDITIONAL,
        "base": WIDE,
    },
    "no parameters": {"parameters": {}, "search": {"num_trials": 1}},
    "a smoke run": {"stand_in": 512, "data": {"validation": 512, "train_subset": 512}},
    "epochs that differ": {"parameters": {"epochs": {"min": 2, "max": 9}}},
    "the median rule": {"scheduler": {"name": "median"}},
}


@pytest.mark.parametrize("changes", ODD.values(), ids=list(ODD))
def test_reports_of_all_kinds_of_searches(changes: dict[str, Any], tmp_path: Path) -> None:
    run = finished(tmp_path / "runs", changes)
    page, text = report(run), report(run, "md")
    assert page.count("<h2") == text.count("\n## ")
    figures = re.findall(r'<script type="application/json".*?>(.*?)</script>', page)
    assert figures and all(json.loads(figure)["data"] for figure in figures)
    for word in ("nan", "None,", "inf "):
        assert word not in re.sub(r"```.*?```", "", text, flags=re.DOTALL).lower().split()
    assert ("## Pareto front" in text) is ("objectives" in changes)
    assert ("chooses by val_loss" in text.replace("\\", "")) is bool(changes.get("objective"))
    assert ("numbers say nothing about" in text) is ("stand_in" in changes)
    if not changes.get("parameters", True):
        assert "varies no parameter" in text


def test_an_unfinished_search_says_so_first(tmp_path: Path) -> None:
    from made_up import made_up_run

    run = made_up_run(tmp_path / "runs", space_of({}), trials=5)
    lines = report(run, "md").splitlines()
    assert lines[4].startswith("> Unfinished: 5 of 16 trials have ended")
    assert "resume quick" in "\n".join(lines)
    assert "## Accuracy" not in lines and "## The winner" not in lines
    page = report(run)
    assert "Unfinished: 5 of 16" in page
    assert '"name":"best so far' in page  # of the figures


def test_only_failed_trials(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", space_of({}))
    with pytest.raises(UserError, match="no trial has begun yet"):
        report(run)
    study = TrialStudy(space_of({}), url=run.study_url, name=run.study_name)
    study.propose()
    study.fail(0, "crashed", "</script><script>alert('x')</script> | killed")
    page, text = report(run), report(run, "md")
    assert "No trial has a result yet" in text
    assert "<script>alert" not in page
    assert r"\<script>alert('x')\</script> \| killed" in text


def test_a_damaged_result_is_told(tmp_path: Path) -> None:
    run = finished(tmp_path / "runs", {})
    result = json.loads(run.result.read_text())
    del result["verdicts"]
    run.result.write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"result.json: cannot be read: it has no verdicts; remove"):
        report(run)


def test_what_is_wrong_with_the_report_leaves_the_result(tmp_path: Path) -> None:
    run = finished(tmp_path / "runs", {})
    study = TrialStudy.of(space_of({}), recorded_trials(run))
    assert write_last(run, study) == str(run.report)
    assert run.report.exists()
    run.mistakes.mkdir()
    (run.mistakes / "classes.csv").write_text("")
    before = run.result.read_text()
    told = write_last(run, study)
    assert told.startswith("could not be written") and "report quick" in told
    assert run.result.read_text() == before
    assert not run.report.exists()  # it told of an earlier result


def verdict_of(value: float, low: float, high: float, **told: Any) -> dict[str, Any]:
    folds = {"value": value, "low": low, "high": high}
    images = {"p": 0.001}
    about = {"folds": folds, "folds_p": 0.001, "images": images, "compared_images": 50_000}
    return {"rival": 0, "verdict": "better", "level": 0.05, **about, **told}


@pytest.mark.parametrize(
    ("changes", "tone", "says"),
    [
        ({}, "sure", "Trial 9 of 16 won: better than the hand-set baseline by 7.07 points"),
        (
            {"verdicts": [verdict_of(0.001, -0.002, 0.004, verdict="cannot be told apart")]},
            "open",
            "came out first, but cannot be told apart from the hand-set baseline: +0.10 points "
            "(95 % interval -0.20 to +0.40)",
        ),
        (
            {"verdicts": [verdict_of(-0.01, -0.02, -0.004, verdict="worse")]},
            "open",
            "has the least loss, and is less accurate than the hand-set baseline: -1.00 points",
        ),
        ({"verdicts": [], "failed_refits": [0]}, "none", "the baseline, whose refit failed"),
        ({"verdicts": [], "failed_refits": []}, "none", "the baseline, which was not refit"),
        (
            {"winner_trial": 0, "verdicts": [verdict_of(0.01, 0.005, 0.015, rival=3)]},
            "sure",
            "The hand-set baseline won over 15 other trials: better than trial 3",
        ),
        (
            {
                "winner_trial": 0,
                "verdicts": [verdict_of(-0.01, -0.02, -0.004, rival=3, verdict="worse")],
            },
            "open",
            "it has the least loss, and is less accurate than trial 3, the next best: -1.00 points",
        ),
        (
            {"trials": {"total": 16, "refused": 4}},
            "sure",
            "Trial 9, of 16 trained, won: better than the hand-set baseline",
        ),
    ],
)
def test_the_verdict_is_a_sentence(
    changes: dict[str, Any], tone: str, says: str, tmp_path: Path
) -> None:
    run = finished(tmp_path / "runs", {})
    run.result.write_text(json.dumps(json.loads(run.result.read_text()) | changes))
    sentence, found = verdict(Searched.read(run))
    assert says in sentence
    assert found == tone


def test_the_numbers_are_those_of_the_result(tmp_path: Path) -> None:
    run = finished(tmp_path / "runs", {})
    result = json.loads(run.result.read_text())
    sections = {section.title: section for section in document_of(Searched.read(run)).sections}
    [accuracies] = tables(sections["Accuracy"].parts)
    shown = {row[0]: row[1] for row in accuracies.rows}
    assert shown["5-fold CV, the recipe"] == f"{result['cv_accuracy_by_folds']['value']:.2%}"
    assert shown["test"] == f"{result['test_accuracy']['value']:.2%}"
    changed = {row[0]: row[2] for row in next(tables(sections["The winner"].parts)).rows}
    assert set(changed) == set(result["changed"])
    [models] = tables(sections["Final models"].parts)
    assert [row[3] for row in models.rows] == [
        f"{model['accuracy']['value']:.2%}" for model in result["models"].values()
    ]


def test_the_recipe_can_be_copied_into_a_space_file(tmp_path: Path) -> None:
    run = finished(tmp_path / "runs", {})
    text = re.search(r"```yaml\n(.*?)```", report(run, "md"), re.DOTALL)
    assert text
    copied = SearchSpace.model_validate({"name": "copied", **yaml.safe_load(text[1])})
    winner = json.loads(run.result.read_text())["winner"]
    assert copied.base.model_dump(exclude={"seed"}) == {
        k: v for k, v in winner.items() if k != "seed"
    }


def test_markdown_leaves_texts_as_they_are() -> None:
    parts: list[Part] = [Text("*a* <b>"), Table(["x|y"], [["1\n2"]]), Code("`` ` ``")]
    document = Document("t", "s", [], "v", "none", sections=[Section("One", parts)])
    text = markdown(document)
    assert r"\*a\* \<b>" in text
    assert r"| x\|y |" in text and "| 1 2 |" in text
    assert "```sh\n`` ` ``\n```" in text


def test_a_search_writes_its_report(smoke_run: Path, tmp_path: Path) -> None:
    run = RunFolder(smoke_run)
    printed = (smoke_run / "output.txt").read_text()
    assert f"report         {run.report}" in printed
    page = run.report.read_text()
    assert "A check that everything works" in page
    assert page.count('<img src="data:image/png;base64,') == 2
    [logged] = (smoke_run.parent / "mlflow-artifacts").rglob("report.html")
    assert logged.read_text() == page
    done = cifartune("report", run.name, "--format", "md", "--runs", smoke_run.parent, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"# {run.name}\n")
    assert f"predict {run.name} IMAGE... --runs {smoke_run.parent}" in done.stdout
    assert re.search(r"\| commit of cifartune \| \w+", done.stdout)


def tables(parts: Any) -> Iterator[Table]:
    return (part for part in parts if isinstance(part, Table))
