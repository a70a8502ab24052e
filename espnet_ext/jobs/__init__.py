"""Run commands as jobs: the contract of Kaldi's ``run.pl``, on this machine."""

from espnet_ext.jobs.local import die_with_parent, run_local
from espnet_ext.jobs.request import JobRequest, parse_request

__all__ = ["JobRequest", "die_with_parent", "parse_request", "run_local"]
