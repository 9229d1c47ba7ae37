"""Every network, ours and timm's, from one registry: timm's."""

from cifartune.models.build import build_model

__all__ = ["build_model"]
