"""Run a command, or an array of commands, as Kaldi's ``run.pl`` or ``slurm.pl`` does.

    run_jobs [--backend local] [--max-jobs-run K] [--gpu N] [JOB=1:N] LOG command [argument]...
    run_jobs --backend slurm [--config FILE] [--max-jobs-run K] [--gpu N] [--mem M] [--time T]
        [--num_threads N] [--num_nodes N] [--name NAME] [JOB=1:N] LOG command [argument]...

``JOB``, or what is put in its place, becomes the job's number in LOG and in the command, except as
a part of a longer word such as JOBS. The command is run as it stands, not through a shell. On this
machine, other ``--name value`` pairs are ignored; for Slurm, the file ``conf/slurm.conf`` says what
each means. The exit status is 0 when every job succeeded, else 1.
"""

import contextlib
import shutil
import sys
from pathlib import Path

from espnet_ext.errors import NO_SPACE, UserError, cli
from espnet_ext.jobs import parse_request, run_local, run_slurm

BACKENDS = {"local": run_local, "slurm": run_slurm}


def reason(log):
    """Say why the job of ``log`` failed: the last line that it wrote, or that the disk is full."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(Path(log).parent).free < 2**16:  # then the log lacks its end
            return NO_SPACE
        lines = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in reversed(lines) if line and not line.startswith("#")), "")
    return "no log"


@cli
def main(argv=None):
    """Run the request in ``argv`` (default: the program's arguments)."""
    argv = sys.argv[1:] if argv is None else argv
    if argv in (["-h"], ["--help"]):
        print(__doc__)
        return
    request = parse_request(argv)
    backend = request.options.get("backend", "local")
    if backend not in BACKENDS:
        raise UserError(f"--backend {backend}: give {' or '.join(BACKENDS)}")
    if failed := BACKENDS[backend](request):
        total = request.last - request.first + 1
        raise UserError(
            f"{len(failed)} of {total} job(s) failed; see {' '.join(failed)}\n"
            f"  {failed[0]}: {reason(failed[0])}"
        )


if __name__ == "__main__":
    main()
