"""Evaluated models."""

from evaluated import eight_runs, evaluation, make_run  # noqa: F401
