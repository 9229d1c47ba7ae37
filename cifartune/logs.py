"""Libraries' own messages go to a file, which is named on the screen, and not to the terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOGGERS = ("cifartune", "ray", "ray.tune", "ray.train", "ray.data", "mlflow", "alembic")


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Sends the messages of Ray, MLflow and this package to `path` alone, for the `with` block.

    Ray gives its loggers handlers when it is imported: import it first.
    """
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
            logger.setLevel(logging.INFO)
        yield
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        handler.close()
