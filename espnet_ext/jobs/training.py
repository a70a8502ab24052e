"""What makes a training survive: whole checkpoints, a lock, and a clear end when it diverges."""

import errno
import fcntl
import functools
import logging
import os
import signal
from pathlib import Path

import torch
from espnet2.main_funcs.average_nbest_models import average_nbest_models
from espnet2.train import trainer
from espnet2.train.reporter import Reporter
from espnet2.train.trainer import Trainer

from espnet_ext.checkpoint import damage
from espnet_ext.errors import NO_SPACE, DiskFull, UserError, disk_full
from espnet_ext.jobs.local import die_with_parent

CHECKPOINT, PREVIOUS = "checkpoint.pth", "checkpoint.previous.pth"
NOT_FINITE = 20  # steps in a row after which a training has diverged


def guard_training(task, module_name):
    """Prepare the process of a training program; call it at module level.

    ``torch.save`` writes to a temporary name and renames it, so that a checkpoint is whole or not
    there, and keeps the checkpoint before. The task's trainer is ``ResumingTrainer``. A worker
    process, one per GPU, dies with the process that started it.

    Args:
        task: ESPnet task of the program, e.g. ``ASRTask``.
        module_name: ``__name__`` of the program.
    """
    task.trainer = ResumingTrainer
    torch.save = _atomic(torch.save)
    trainer.average_nbest_models = average_kept
    if module_name == "__mp_main__":
        die_with_parent(signal.SIGKILL)


class ResumingTrainer(Trainer):
    """ESPnet's trainer, for one run per directory, that resumes from whatever it left behind."""

    @classmethod
    def run(cls, *, trainer_options, distributed_option, **parts):
        """Train; see ``Trainer.run``.

        Raises:
            UserError: If another training runs in the directory, no checkpoint in it is whole, or
                the training diverges.
            DiskFull: If a checkpoint cannot be written; the one before stays.
        """
        folder = Path(trainer_options.output_dir)
        lock = None
        if not distributed_option.distributed or distributed_option.dist_rank == 0:
            lock = _lock(folder)
            if trainer_options.resume and restore_checkpoint(folder):
                complete_epoch(folder / CHECKPOINT, trainer_options.best_model_criterion)
        if distributed_option.distributed:
            torch.distributed.barrier()  # all resume from the same checkpoint
        super().run(trainer_options=trainer_options, distributed_option=distributed_option, **parts)
        if lock is not None:
            os.close(lock)

    @classmethod
    def train_one_epoch(cls, *, model, reporter, options, **parts):
        """Train for an epoch; see ``Trainer.train_one_epoch``.

        Raises:
            UserError: If the loss stays infinite or not a number, or the weights never change.
        """
        steps = bad = 0

        def watch(module, inputs, output):
            nonlocal steps, bad
            loss = output["loss"] if isinstance(output, dict) else output[0]
            steps += 1
            bad = 0 if torch.isfinite(loss).all() else bad + 1
            if bad == NOT_FINITE:
                raise _diverged(reporter.epoch)

        hook = model.register_forward_hook(watch)
        try:
            unchanged = super().train_one_epoch(
                model=model, reporter=reporter, options=options, **parts
            )
        finally:
            hook.remove()
        if unchanged and steps < options.accum_grad:
            raise UserError(
                f"an epoch has {steps} batch(es), fewer than accum_grad {options.accum_grad}: the "
                "weights never change; lower accum_grad or the size of a batch (batch_bins)"
            )
        if unchanged:
            raise _diverged(reporter.epoch)
        return unchanged


def _diverged(epoch):
    return UserError(
        f"epoch {epoch}: the loss or its gradient is infinite or not a number, step after step; "
        f"{CHECKPOINT} keeps what was there before this epoch. The usual cause is the learning "
        "rate: lower optim_conf lr or raise warmup_steps, and train anew with another --asr_tag. "
        "If it happens in the first steps, look for broken audio or wrong text"
    )


def restore_checkpoint(folder):
    """Make ``checkpoint.pth`` the newest checkpoint that is whole; damaged ones are set aside.

    Args:
        folder: Directory of the model.

    Returns:
        bool: Whether there is a checkpoint.

    Raises:
        UserError: If there are damaged ones only.
    """
    damaged = []
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        if not path.exists():
            continue
        if problem := damage(path):
            logging.warning(f"{path} is corrupt ({problem}): set aside as {path.name}.corrupt")
            os.replace(path, f"{path}.corrupt")
            damaged.append(str(path))
        else:
            if path.name == PREVIOUS:
                logging.warning(f"The training goes on from {path}, the last good checkpoint")
                os.replace(path, folder / CHECKPOINT)
            return True
    if damaged:
        raise UserError(
            f"{' and '.join(damaged)}: corrupt, and no whole checkpoint is left. The same command "
            "again trains from the start; --pretrained_model takes an epoch's model to start from"
        )
    return False


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
    if not model.exists() or damage(model):
        torch.save(states["model"], model)
    links = {"latest.pth": reporter.get_epoch()}
    for phase, key, mode in criteria:
        if reporter.has(phase, key):
            links[f"{phase}.{key}.best.pth"] = reporter.get_best_epoch(phase, key, mode)
    for name, epoch in links.items():
        link = checkpoint.with_name(name)
        link.unlink(missing_ok=True)
        link.symlink_to(f"{epoch}epoch.pth")


class _Kept(Reporter):
    """A reporter that knows the values of some epochs only."""

    def __init__(self, reporter, epochs):
        super().__init__()
        self.load_state_dict(reporter.state_dict())
        self.epochs = epochs

    def sort_epochs_and_values(self, *criterion):
        """Sort the epochs; see ``Reporter.sort_epochs_and_values``."""
        pairs = super().sort_epochs_and_values(*criterion)
        return [pair for pair in pairs if pair[0] in self.epochs]


def average_kept(*, output_dir, reporter, best_model_criterion, nbest, **more):
    """Average the best epochs as ESPnet does, of those whose models are there.

    A training that goes on with a larger ``keep_nbest_models`` wants epochs whose models were
    removed while it was smaller.

    Args:
        output_dir: Directory of the model.
        reporter: Values of every epoch.
        best_model_criterion: ``(phase, key, mode)`` of each average.
        nbest: Numbers of epochs to average.
        **more: Other options of ESPnet's ``average_nbest_models``.

    Raises:
        UserError: If there is no model of the best epochs at all.
    """
    for criterion in best_model_criterion:
        if not reporter.has(*criterion[:2]):
            continue
        epochs = reporter.sort_epochs(*criterion)
        numbers = [n for n in nbest if n <= len(epochs)] or [1]  # ESPnet's rule
        best = epochs[: max(numbers)]
        there = [epoch for epoch in best if (output_dir / f"{epoch}epoch.pth").exists()]
        if len(there) < len(best):
            name = ".".join(criterion[:2])
            if not there:
                raise UserError(
                    f"{output_dir}: none of the {len(best)} best epochs by {name} is there to "
                    "average: keep_nbest_models cannot be raised any more, train with "
                    "another --asr_tag"
                )
            logging.warning(
                f"averages {len(there)} of the {len(best)} best epochs by {name}, "
                f"{', '.join(map(str, there))}: the others were removed while keep_nbest_models "
                "was smaller"
            )
        average_nbest_models(
            output_dir=output_dir,
            reporter=_Kept(reporter, there),
            best_model_criterion=[criterion],
            nbest=sorted({min(n, len(there)) for n in numbers}),
            **more,
        )


def _lock(folder):
    """Refuse a second training in a directory; the kernel gives the lock back with the process."""
    file = os.open(folder / ".train.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            owner = os.read(file, 200).decode().strip()
            raise UserError(
                f"{folder}: another training works there ({owner}); wait for it or stop it"
            ) from error
        logging.warning(f"{folder}: its file system has no locks, start no other training there")
        return file
    os.truncate(file, 0)
    os.write(file, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
    return file


def _atomic(save):
    @functools.wraps(save)
    def atomic(obj, f, *args, **kwargs):
        if not isinstance(f, (str, os.PathLike)):
            return save(obj, f, *args, **kwargs)
        target = Path(f)
        temporary = f"{target}.tmp"
        try:
            with open(temporary, "wb") as file:
                save(obj, file, *args, **kwargs)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            Path(temporary).unlink(missing_ok=True)
            if disk_full(error):
                raise DiskFull(f"{target}: {NO_SPACE}") from error
            raise
        if target.name == CHECKPOINT and target.exists():
            os.replace(target, target.with_name(PREVIOUS))
        os.replace(temporary, target)

    return atomic
