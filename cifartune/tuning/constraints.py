"""What is known of a recipe's network before it trains, and what the space allows of that."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cifartune.config import Recipe, SearchSpace
from cifartune.errors import UserError


def facts_of(space: SearchSpace, recipe: Recipe) -> dict[str, Any]:
    """Properties of the recipe's network by name; empty where the search asks for none.

    Raises:
        UserError: The network cannot be built.
    """
    if not space.asks_for_networks:
        return {}
    # Torch is loaded only where it is needed.
    from cifartune.models.facts import UnfitNetwork, network_facts

    try:
        return asdict(network_facts(recipe.model))
    except UnfitNetwork as error:
        raise UserError(str(error)) from None


def refusal(space: SearchSpace, metric: str, facts: Mapping[str, Any]) -> str:
    """Why a network with these facts is refused, which breaks the constraint of `metric`."""
    bound = space.constraints[metric]  # type: ignore[index]
    limit = f"at most {bound.max:,.0f}" if bound.max is not None else ""
    if bound.min is not None and facts[metric] < bound.min:
        limit = f"at least {bound.min:,.0f}"
    return f"constraints.{metric} allows {limit}, and the network has {facts[metric]:,}"


def check_given(space: SearchSpace) -> None:
    """Looks at the baseline and the points of the file.

    Raises:
        UserError: One of them breaks a constraint, or its network cannot be built.
    """
    for index, point in enumerate([{}, *space.points]):
        facts = facts_of(space, space.base.with_values(point))
        for metric, bound in space.constraints.items():
            if bound.excess(facts[metric]) > 0:
                where = f"points.{index - 1}" if index else "base"
                raise UserError(f"{where}: {refusal(space, metric, facts)}")
