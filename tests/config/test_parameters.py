import pytest
from pydantic import ValidationError

from cifartune.config import Choice, Range


def test_a_range_contains_its_bounds_and_its_grid() -> None:
    plain = Range(min=0.1, max=0.5)
    assert [plain.contains(x) for x in (0.1, 0.3, 0.5, 0.09, 0.51)] == [True] * 3 + [False] * 2
    grid = Range(min=0.1, max=0.7, step=0.2)
    assert [grid.contains(x) for x in (0.1, 0.3, 0.5, 0.7, 0.2)] == [True] * 4 + [False]
    assert not plain.contains("0.3")
    assert not Range(min=0, max=1).contains(True)


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"min": 1, "max": 1}, "min must be less than max, got 1 and 1"),
        (
            {"min": 0.0005, "max": 0.0005000000000000001},
            "min and max must differ by more than rounding, got 0.0005 and 0.0005000000000000001",
        ),
        ({"min": 0, "max": 1, "log": True}, "min must be above 0 where log is true, got 0"),
        ({"min": 1, "max": 3, "log": True, "step": 1}, "log and step exclude each other"),
        ({"min": 0, "max": 1, "step": 0.3}, "max must be min plus a multiple of step, got 1"),
        ({"min": 0, "max": 1, "step": 0}, "Input should be greater than 0"),
        ({"min": 0, "max": 1, "step": 1e-40}, "step must leave at most 100,000 values, got 1e-40"),
        ({"min": -1e300, "max": 1, "step": 0.5}, "step must leave at most 100,000 values"),
    ],
)
def test_a_range_refuses_what_cannot_be_sampled(values: dict[str, float], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        Range.model_validate(values)


def test_a_choice_refuses_repeated_values() -> None:
    with pytest.raises(ValidationError, match="values must differ from each other"):
        Choice(values=[1, 2, 1.0])


def test_a_choice_refuses_bounds() -> None:
    with pytest.raises(ValidationError, match="excludes values"):
        Choice.model_validate({"values": [1], "max": 3})


def test_a_parameter_applies_where_all_its_conditions_hold() -> None:
    parameter = Range.model_validate(
        {"min": 0, "max": 1, "when": {"optimizer.name": ["sgd", "muon"], "epochs": 3}}
    )
    assert parameter.applies({"optimizer.name": "muon", "epochs": 3})
    assert not parameter.applies({"optimizer.name": "muon", "epochs": 4})
    assert not parameter.applies({"optimizer.name": "adamw", "epochs": 3})


def test_largest_value() -> None:
    assert Range(min=3, max=12).largest() == 12
    assert Choice(values=[64, 512, 128]).largest() == 512
