"""Libraries' own messages go to a file, which is named on the screen, and not to the terminal."""

import logging
from pathlib import Path

LOGGERS = ("cifartune", "ray", "ray.tune", "ray.train", "ray.data", "mlflow", "alembic")


def log_to(path: Path) -> None:
    """Sends the messages of Ray, MLflow and this package to `path` alone.

    Ray and MLflow give their loggers handlers when they are imported: call this after that.
    """
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO)
