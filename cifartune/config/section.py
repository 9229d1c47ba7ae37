"""What every group of settings has in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen group of settings that rejects unknown keys and values of another type."""

    # Strict: "3" and true are no numbers. A whole number is still a float where one is wanted.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
