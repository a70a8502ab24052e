"""What makes a training survive SIGKILL: whole checkpoints, and no process that lives on."""

import functools
import os
import signal
from pathlib import Path

import torch
from espnet2.train.reporter import Reporter
from espnet2.train.trainer import Trainer

from espnet_ext.jobs.local import die_with_parent


def guard_training(task, module_name):
    """Prepare the process of a training program; call it at module level.

    ``torch.save`` writes to a temporary name and renames it, so that a checkpoint is whole or not
    there. The task's trainer completes the last epoch before it resumes. A worker process, one per
    GPU, dies with the process that started it.

    Args:
        task: ESPnet task of the program, e.g. ``ASRTask``.
        module_name: ``__name__`` of the program.
    """
    task.trainer = ResumingTrainer
    torch.save = _atomic(torch.save)
    if module_name == "__mp_main__":
        die_with_parent(signal.SIGKILL)


class ResumingTrainer(Trainer):
    """ESPnet's trainer, resuming also where it was killed between a checkpoint and its model."""

    @classmethod
    def run(cls, *, trainer_options, distributed_option, **parts):
        """Train; see ``Trainer.run``."""
        first = not distributed_option.distributed or distributed_option.dist_rank == 0
        checkpoint = Path(trainer_options.output_dir, "checkpoint.pth")
        if trainer_options.resume and first and checkpoint.exists():
            complete_epoch(checkpoint, trainer_options.best_model_criterion)
        super().run(trainer_options=trainer_options, distributed_option=distributed_option, **parts)


def complete_epoch(checkpoint, criteria):
    """Write what ESPnet writes right after a checkpoint: the epoch's model and the links to models.

    Args:
        checkpoint: Path of ``checkpoint.pth``.
        criteria: ``(phase, key, mode)`` of each best model, e.g. ``("valid", "acc", "max")``.
    """
    states = torch.load(checkpoint, map_location="cpu")
    reporter = Reporter()
    reporter.load_state_dict(states["reporter"])
    model = checkpoint.with_name(f"{reporter.get_epoch()}epoch.pth")
    if not model.exists():
        torch.save(states["model"], model)
    links = {"latest.pth": reporter.get_epoch()}
    for phase, key, mode in criteria:
        if reporter.has(phase, key):
            links[f"{phase}.{key}.best.pth"] = reporter.get_best_epoch(phase, key, mode)
    for name, epoch in links.items():
        link = checkpoint.with_name(name)
        link.unlink(missing_ok=True)
        link.symlink_to(f"{epoch}epoch.pth")


def _atomic(save):
    @functools.wraps(save)
    def atomic(obj, f, *args, **kwargs):
        if not isinstance(f, (str, os.PathLike)):
            return save(obj, f, *args, **kwargs)
        temporary = f"{os.fspath(f)}.tmp"
        save(obj, temporary, *args, **kwargs)
        os.replace(temporary, f)

    return atomic
