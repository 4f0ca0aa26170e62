"""A small library of the shape that a policy_constructor checkout has, with blocks of the tests' own."""

from model_constructor.build import build_model

__all__ = ["build_model"]
