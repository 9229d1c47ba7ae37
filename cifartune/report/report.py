"""The report of a search: one document from what its folder holds, as a page or as Markdown."""

import logging
from pathlib import Path
from typing import Literal

from cifartune.errors import UserError, first_line
from cifartune.files import write_atomically
from cifartune.report import analysis, findings, ledger
from cifartune.report.advice import advice_section
from cifartune.report.document import Document, markdown
from cifartune.report.frames import UNFINISHED, UNTRAINED, kind_of
from cifartune.report.page import page
from cifartune.report.searched import Searched
from cifartune.report.tables import show_time
from cifartune.runs import RunFolder
from cifartune.tuning.study import TrialStudy

Format = Literal["html", "md"]

logger = logging.getLogger(__name__)


def report(run: RunFolder, form: Format = "html", *, study: TrialStudy | None = None) -> str:
    """The report of a search as text; of an unfinished one, what is known so far.

    Args:
        run: Its folder, from which every number is.
        form: `html`, a page in one file with figures, or `md`, Markdown with tables alone.
        study: Its trials, for those who have them open.

    Raises:
        UserError: No trial has begun yet, or a file cannot be read.
    """
    document = document_of(Searched.read(run, study))
    return markdown(document) if form == "md" else page(document)


def write_last(run: RunFolder, study: TrialStudy) -> str:
    """Writes report.html into a finished search's folder: its path, or why it is not there.

    Whatever is wrong with the report must not take the result with it.
    """
    run.report.unlink(missing_ok=True)  # it would tell of an earlier result
    try:
        save(report(run, study=study), run.report)
    except Exception as error:
        logger.exception("the report cannot be written")
        again = run.command("report")
        return f"could not be written ({first_line(error)}); try again: {again}"
    return str(run.report)


def save(text: str, path: Path) -> None:
    """Writes a report to a file, whole or not at all.

    Raises:
        UserError: It cannot be written.
    """
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def document_of(searched: Searched) -> Document:
    """The report in the order in which a reader wants it."""
    verdict, tone = findings.verdict(searched)
    answer = (
        [findings.accuracy_section(searched), findings.winner_section(searched)]
        if searched.result
        else []
    )
    sections = [
        *answer,
        findings.leaderboard_section(searched),
        analysis.front_section(searched),
        analysis.curves_section(searched),
        analysis.parameters_section(searched),
        analysis.size_section(searched),
        *analysis.mistakes_sections(searched),
        ledger.models_section(searched),
        ledger.costs_section(searched),
        ledger.failures_section(searched),
        ledger.origin_section(searched),
        ledger.commands_section(searched),
        advice_section(searched),
    ]
    return Document(
        title=searched.run.name,
        subtitle=_subtitle(searched),
        notices=_notices(searched),
        verdict=verdict,
        tone=tone,
        more=findings.how_sure(searched),
        headlines=findings.headlines(searched),
        sections=[section for section in sections if section is not None],
    )


def _subtitle(searched: Searched) -> str:
    space, trials = searched.space, searched.study.trials
    begins = [trial.datetime_start for trial in trials if trial.datetime_start]
    trained = sum(kind_of(trial) != UNTRAINED for trial in trials)
    told = [f"{trained:,} trials over {len(space.parameters)} parameters"]
    if searched.result:
        told.append(show_time(searched.result["seconds"]["total"]))
    told += [f"begun {min(begins):%Y-%m-%d}"] if begins else []
    return f"A hyper-parameter search for CIFAR-10 classifiers: {', '.join(told)}."


def _notices(searched: Searched) -> list[str]:
    found = []
    if searched.result is None:
        trials = searched.study.trials
        ended = sum(kind_of(trial) not in (UNFINISHED, UNTRAINED) for trial in trials)
        asked = searched.space.search.num_trials
        found.append(
            f"Unfinished: {ended:,} of {asked:,} trials have ended, and there is no "
            "cross-validation yet. This is what is known so far."
        )
    if searched.space.stand_in:
        found.append(
            "A check that everything works, on few images (--smoke): its numbers say nothing about "
            "recipes, and training images stand in for the test set."
        )
    if searched.metric.endswith("loss"):
        found.append(f"The search chooses by {searched.metric}, of which less is better.")
    return found
