"""The refit: the best recipes, cross-validated, and which of them is the best."""

from cifartune.refit.candidates import Candidate, SnapshotEnsemble, refit_recipe
from cifartune.refit.out_of_fold import OutOfFold
from cifartune.refit.run import Refit, fold_folders
from cifartune.refit.verdicts import Verdict, verdicts

__all__ = [
    "Candidate",
    "OutOfFold",
    "Refit",
    "SnapshotEnsemble",
    "Verdict",
    "fold_folders",
    "refit_recipe",
    "verdicts",
]
