"""What a search will cost, said before it starts."""

from cifartune.planning.plan import Plan, make_plan, recipes_to_measure

__all__ = ["Plan", "make_plan", "recipes_to_measure"]
