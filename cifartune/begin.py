"""A new search: what is checked before it, and its folder, which is gone if it never began."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cifartune.config import SearchSpace
from cifartune.errors import Interrupted, UserError
from cifartune.runs import RunFolder


@contextmanager
def new_run(
    space: SearchSpace,
    *,
    source: str,
    runs: Path,
    name: str | None,
    tracking_uri: str | None,
    storage: str,
    data_dir: Path | None,
    address: str,
    sealed: bool,
    copy_to: str = "",
) -> Iterator[tuple[RunFolder, Path]]:
    """The folder of a new search, and the prepared images, for the `with` block.

    Where the block fails before a trial was recorded, the folder is removed.

    Args:
        space: The search.
        source: Names it in messages.
        runs, name, storage, sealed: As of `RunFolder.create`.
        tracking_uri: Default: that of `runs`.
        data_dir: A folder with the official files of CIFAR-10.
        address: The Ray cluster; see `cluster`.
        copy_to: Where a copy of the folder is kept; see `Copy`.

    Raises:
        UserError: Something is in the way; then nothing is made.
    """
    from cifartune.report.download import prepared

    check_folder(runs)
    if name:
        RunFolder.check_name(runs, name)
    check_ahead(space, source, runs, address)
    uri = checked_uri(tracking_uri, runs)
    if storage:
        from cifartune.tuning.study import check_storage

        check_storage(storage)
    if copy_to:
        from cifartune.copies import check_copy_uri

        check_copy_uri(copy_to)
    root = prepared(data_dir)
    run = RunFolder.create(
        runs,
        space,
        name,
        tracking_uri=uri,
        storage=storage,
        sealed=sealed,
        copy_uri=copy_to,
    )
    try:
        yield run, root
    except BaseException:
        with suppress(UserError), run.locked():  # unless another process has taken it up
            if not run.has_trials():  # leave nothing half-made behind
                shutil.rmtree(run.path, ignore_errors=True)
        raise


def check_folder(runs: Path) -> None:
    """Makes sure that runs are to be kept on a disk, where a study can be an SQLite database.

    Raises:
        UserError: It is an address, or its path means something else in a database's address.
    """
    if re.match(r"\w+:/", str(runs)):
        raise UserError(
            f"--runs {runs}: runs are kept in a folder, not at an address; the other machines of a "
            "cluster need not see it. To keep a copy at an address: --copy-to"
        )
    # SQLAlchemy ends the path at a question mark and decodes percents; Optuna fills in braces.
    if found := re.search(r"[?{}]|%[0-9A-Fa-f]{2}", str(runs.resolve())):
        raise UserError(f"--runs {runs}: a database cannot have '{found[0]}' in its path")


def check_ahead(space: SearchSpace, source: str, runs: Path, address: str) -> None:
    """What takes more than reading a space, and less than starting a search.

    Raises:
        UserError: The cluster's address is none, a given recipe breaks a constraint of the space,
            or a search to learn from is not there.
    """
    from cifartune.tuning.cluster import check_address

    check_address(address)
    try:
        if space.asks_for_networks:
            from cifartune.tuning.study import TrialStudy

            TrialStudy(space).check()
        if space.warm_start:
            from cifartune.tuning.warm_start import load_warm_start

            load_warm_start(space, runs)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def checked_uri(tracking_uri: str | None, runs: Path) -> str:
    """The tracking store to use, by default that of `runs`; its server has answered.

    Raises:
        UserError: It has not.
    """
    from cifartune.tracking import check_server, default_uri

    uri = tracking_uri or default_uri(runs)
    check_server(uri)
    return uri


@contextmanager
def told_how_to_go_on(run: RunFolder) -> Iterator[None]:
    """Has the end of a search by Ctrl-C say how to go on with it."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        if not run.has_trials():
            raise
        raise Interrupted(f"cifartune: stopped; go on with: {run.resume_command}") from None
