"""The winner in MLflow: a logged model, and a version of a registered one."""

from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifartune.errors import UserError
from cifartune.runs import RunFolder

if TYPE_CHECKING:  # a second to import
    import numpy as np
    import numpy.typing as npt
    from mlflow.entities import LoggedModel

ALIAS = "winner"
"""Points to the version of the last outcome: `models:/cifartune-quick@winner`."""

MOST_LETTERS = 5000
"""The registry's limit for a description."""


def registered_name(run: RunFolder) -> str:
    """The registered model of a search, whose versions are its winners, one after the other."""
    return f"cifartune-{run.name}"


def publish(client: Any, uri: str, run_id: str, run: RunFolder, program: Path) -> None:
    """Logs the exported ensemble as a model that needs PyTorch alone, and registers it.

    What is there already stays: the same program is logged once, and is one version.

    Args:
        client: MLflow's, of the store at `uri`.
        uri: The store.
        run_id: The search's own run in it.
        run: The folder, with the model card and an image for an example.
        program: The exported ensemble.
    """
    digest = sha256(program.read_bytes()).hexdigest()
    model = _logged(client, run_id, digest) or _log(client, uri, run_id, run, program, digest)
    _register(client, run_id, run, model, digest)


def _logged(client: Any, run_id: str, digest: str) -> "LoggedModel | None":
    from mlflow.entities import LoggedModelStatus

    outputs = client.get_run(run_id).outputs
    for output in outputs.model_outputs if outputs else ():
        model: LoggedModel = client.get_logged_model(output.model_id)
        if model.status == LoggedModelStatus.READY and model.tags.get("sha256") == digest:
            return model
    return None


def _log(
    client: Any, uri: str, run_id: str, run: RunFolder, program: Path, digest: str
) -> "LoggedModel":
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    mlflow.set_tracking_uri(uri)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, 32, 32, 3))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, 10))]),
    )
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"program": str(program)},
            signature=signature,
            input_example=_example(run.example),
            tags={"sha256": digest},
            pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "torch")],
        )
    model: LoggedModel = client.get_logged_model(info.model_id)
    return model


def _example(picture: Path) -> "npt.NDArray[np.uint8]":
    """An image as the model takes it, uint8 (1, 32, 32, 3); black where there is no picture."""
    import numpy as np
    from PIL import Image

    if not picture.exists():
        return np.zeros((1, 32, 32, 3), np.uint8)
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))[None]


def _register(client: Any, run_id: str, run: RunFolder, model: "LoggedModel", digest: str) -> None:
    from mlflow.exceptions import MlflowException

    name, card = registered_name(run), run.model_card
    text = card.read_text(encoding="utf-8")[:MOST_LETTERS] if card.exists() else ""
    try:
        client.create_registered_model(
            name, description=f"The winners of the cifartune search {run.name}, the last one last."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = [
        version.version
        for version in client.search_model_versions(f"name = '{name}'")
        if version.tags.get("sha256") == digest and version.run_id == run_id
    ]
    if not versions:
        made = client.create_model_version(
            name,
            model.artifact_location,
            run_id,
            tags={"sha256": digest, "cifartune.search": run.id, **_facts(run)},
            description=text,
            model_id=model.model_id,
        )
        versions = [made.version]
    client.set_registered_model_alias(name, ALIAS, versions[0])


def _facts(run: RunFolder) -> dict[str, str]:
    """What tells versions apart in the registry's table."""
    try:
        result = run.outcome
    except UserError:
        return {}
    is_real = result.get("test_set") == "CIFAR-10 test"
    shares = {
        "cv_accuracy": result.get("cv_accuracy"),
        "test_accuracy" if is_real else "stand_in_accuracy": result.get("test_accuracy"),
    }
    known = {name: f"{share['value']:.2%}" for name, share in shares.items() if share}
    return {"trial": str(result["winner_trial"]), **known}
