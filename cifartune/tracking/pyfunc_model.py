"""The code of the logged MLflow model, kept with it: it needs torch and mlflow, not cifartune."""

from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class FoldEnsemble(PythonModel):
    """Maps uint8 images (N, 32, 32, 3) to class probabilities, float32 (N, 10)."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the exported program that lies beside the model."""
        self.program = torch.export.load(context.artifacts["program"]).module()

    # The bare hint is the one that mlflow knows for arrays; their shape is in the signature.
    def predict(
        self,
        context: PythonModelContext,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """The mean probability of each class over the fold models."""
        with torch.inference_mode():
            images = torch.from_numpy(np.array(model_input, dtype=np.uint8))
            probabilities: np.ndarray = self.program(images).numpy()
        return probabilities


mlflow.models.set_model(FoldEnsemble())
