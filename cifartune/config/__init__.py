"""What a user writes: search-space files, and the recipes that they span."""

from cifartune.config.load import load_space, make_recipe, make_space
from cifartune.config.parameters import Choice, Parameter, Range
from cifartune.config.recipe import Recipe
from cifartune.config.smoke import smoke_space
from cifartune.config.space import SearchSpace

__all__ = [
    "Choice",
    "Parameter",
    "Range",
    "Recipe",
    "SearchSpace",
    "load_space",
    "make_recipe",
    "make_space",
    "smoke_space",
]
