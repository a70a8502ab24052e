"""Run commands as jobs: on this machine as Kaldi's ``run.pl``, or on a cluster as ``slurm.pl``."""

from espnet_ext.jobs.local import run_local
from espnet_ext.jobs.request import JobRequest, parse_request
from espnet_ext.jobs.slurm import run_slurm

__all__ = ["JobRequest", "parse_request", "run_local", "run_slurm"]
