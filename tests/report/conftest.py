"""Evaluated models, for the report on them."""

from evaluated import eight_runs, make_run  # noqa: F401
