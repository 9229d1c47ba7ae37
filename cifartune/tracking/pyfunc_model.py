"""The code of the logged MLflow model, kept with it: it needs torch and mlflow, not cifartune."""

import warnings

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext

with warnings.catch_warnings():
    # mlflow asks for type hints on `predict`, but knows none for arrays: the signature says it.
    warnings.simplefilter("ignore", UserWarning)

    class FoldEnsemble(PythonModel):
        """Maps uint8 images (N, 32, 32, 3) to class probabilities, float32 (N, 10)."""

        def load_context(self, context: PythonModelContext) -> None:
            """Loads the exported program that lies beside the model."""
            self.program = torch.export.load(context.artifacts["program"]).module()

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            """The mean probability of each class over the fold models."""
            with torch.inference_mode():
                images = torch.from_numpy(np.array(model_input, dtype=np.uint8))
                return self.program(images).numpy()


mlflow.models.set_model(FoldEnsemble())
