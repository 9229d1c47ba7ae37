"""The winner, as MLflow serves it: in a process where cifartune cannot be imported."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from cifartune.data import load_train
from cifartune.final_models import FinalModel, model_files
from cifartune.runs import RunFolder
from cifartune.tracking import outcome_of
from cifartune.tracking.model import ALIAS, publish, registered_name

pytestmark = [
    # mlflow's own tables, as SQLAlchemy sees them.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]

BLOCKER = """
import sys
sys.modules["cifartune"] = None  # an import fails
"""

START_SECONDS = 120.0


def test_the_winner_is_served_where_cifartune_is_not(
    smoke_run: Path, data_root: Path, tmp_path: Path
) -> None:
    run = RunFolder(smoke_run)
    images = np.ascontiguousarray(load_train(data_root).images[:5].transpose(0, 2, 3, 1))
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["-m", f"models:/{registered_name(run)}@{ALIAS}", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it calls uvicorn
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PATH": path}
    environment |= {"MLFLOW_TRACKING_URI": run.tracking_uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        answer = post(port, {"inputs": images.tolist()}, process)
    except AssertionError:
        pytest.fail((tmp_path / "log").read_text())
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    served = np.array(answer["predictions"])
    expected = FinalModel.load(model_files(run, run.winner)["folds"]).predict(images)
    np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-6)


def post(port: int, what: Any, process: "subprocess.Popen[bytes]") -> Any:
    """What the server answers, once it is up."""
    url = f"http://127.0.0.1:{port}/invocations"
    body, headers = json.dumps(what).encode(), {"Content-Type": "application/json"}
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            pytest.fail(error.read().decode())
        except OSError:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.2)


def test_the_registered_version(smoke_run: Path, data_root: Path) -> None:
    """Its card, its tags, its signature, its example; what is there already is not doubled."""
    run = RunFolder(smoke_run)
    client = mlflow.MlflowClient(run.tracking_uri)
    name, run_id = registered_name(run), run.outcome["mlflow"]["run_id"]
    version = client.get_model_version_by_alias(name, ALIAS)
    assert version.run_id == run_id
    assert version.description == run.model_card.read_text()
    assert "uint8 (N, 32, 32, 3)" in version.description
    accuracy = run.outcome["cv_accuracy"]["value"]
    assert (version.tags["trial"], version.tags["cv_accuracy"]) == (
        str(run.winner),
        f"{accuracy:.2%}",
    )
    publish(client, run.tracking_uri, run_id, run, run.program)
    assert len(client.search_model_versions(f"name = '{name}'")) == 1
    example = np.asarray(Image.open(run.example)).transpose(2, 0, 1)
    train = load_train(data_root).images
    with np.load(run.splits) as splits:
        np.testing.assert_array_equal(example, train[splits["train"][0]])


def test_a_store_without_a_registry_has_the_model_all_the_same(
    smoke_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is refused, and kept; the next try does the rest."""
    run = RunFolder(smoke_run)
    client = mlflow.MlflowClient(run.tracking_uri)

    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("there is no registry here", error_code=1)

    monkeypatch.setattr(client, "create_registered_model", refuse)
    run_id = run.outcome["mlflow"]["run_id"]
    with pytest.raises(MlflowException, match="there is no registry"):
        publish(client, run.tracking_uri, run_id, run, run.program)
    outputs = client.get_run(run_id).outputs
    assert outputs and len(outputs.model_outputs) == 1


def test_the_search_has_datasets_a_verdict_and_its_files(smoke_run: Path) -> None:
    run = RunFolder(smoke_run)
    client = mlflow.MlflowClient(run.tracking_uri)
    logged = client.get_run(run.outcome["mlflow"]["run_id"])
    assert logged.inputs
    [training, validation] = logged.inputs.dataset_inputs
    contexts = [one.tags[0].value for one in (training, validation)]
    assert contexts == ["training", "validation"]
    profiles = [json.loads(one.dataset.profile or "") for one in (training, validation)]
    assert [profile["num_rows"] for profile in profiles] == [512, 512]
    assert sum(profiles[0]["classes"].values()) == 512
    assert training.dataset.digest != validation.dataset.digest
    note = logged.data.tags["mlflow.note.content"]
    assert note.startswith(f"**Trial {run.winner} won.**")
    files = {file.path for file in client.list_artifacts(logged.info.run_id)}
    assert files >= {"result.json", "trials.csv", "space.yaml", "model_card.md", "mistakes"}
    _, told, _ = outcome_of(run)
    kept = {file.path for file in client.list_artifacts(logged.info.run_id, "mistakes")}
    assert kept == {f"mistakes/{file.name}" for file in told if file.parent == run.mistakes}
