"""The outcome of a search in a dozen numbers, by name."""

from typing import Any


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers that a search is asked for first; accuracies are shares in [0, 1].

    Args:
        result: What result.json holds.

    Returns:
        The winner; its validation accuracy; its out-of-fold accuracy with the interval of these
        models (`cv_low`, `cv_high`) and that of the recipe (`folds_low`, `folds_high`); the test
        accuracy with its interval, None where nobody looked; the verdict against the baseline,
        `baseline won` where there is no better one, empty where it was not refit; trials and
        seconds; the winner's changes; MLflow's run.
    """
    cv, folds, test = (
        result[name] or {} for name in ("cv_accuracy", "cv_accuracy_by_folds", "test_accuracy")
    )
    against = [verdict for verdict in result["verdicts"] if not verdict["rival"]]
    verdict = against[0]["verdict"] if against else ""
    is_real = result["test_set"] == "CIFAR-10 test"
    return {
        "name": result["name"],
        "winner": result["winner_trial"],
        "val_accuracy": result["validation_accuracy"],
        "cv_accuracy": cv.get("value"),
        "cv_low": cv.get("low"),
        "cv_high": cv.get("high"),
        "folds_low": folds.get("low"),
        "folds_high": folds.get("high"),
        "test_accuracy": test.get("value") if is_real else None,
        "test_low": test.get("low") if is_real else None,
        "test_high": test.get("high") if is_real else None,
        "verdict": verdict if result["winner_trial"] else "baseline won",
        "trials": result["trials"]["total"],
        "seconds": result["seconds"]["total"],
        "changed": result["changed"],
        "mlflow_run": result["mlflow"]["run_id"],
    }
