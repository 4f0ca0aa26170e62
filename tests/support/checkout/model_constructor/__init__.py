"""A small library of the shape that the policy_constructor backend knows; tests copy it and change the copy."""

from model_constructor.build import build_model

__all__ = ["build_model"]
