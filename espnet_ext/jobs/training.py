"""What makes a training survive: whole checkpoints, a lock, and a clear end when it goes wrong."""

import logging
import math
import multiprocessing
import os
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from pathlib import Path

import torch
from espnet2.main_funcs import average_nbest_models as averaging
from espnet2.train import trainer
from espnet2.train.reporter import Reporter
from espnet2.train.trainer import Trainer

from espnet_ext import files
from espnet_ext.checkpoint import damage
from espnet_ext.data.kaldi import normal_space
from espnet_ext.errors import UserError, refuse_not_finite
from espnet_ext.processes import die_with_parent

CHECKPOINT, PREVIOUS = "checkpoint.pth", "checkpoint.previous.pth"
NOT_FINITE = 20  # steps in a row after which a training has diverged
CRITERIA = {"acc": "max", "cer_ctc": "min", "cer": "min", "wer": "min", "loss": "min"}


def guard_training(task, module_name):
    """Prepare the process of a training program; call it at module level.

    ``torch.save`` writes to a temporary name and renames it, so that a checkpoint is whole or not
    there, and keeps the checkpoint before. The task's trainer is ``ResumingTrainer``. A worker
    process, one per GPU, dies with the process that started it. See also ``guard_data``.

    Args:
        task: ESPnet task of the program, e.g. ``ASRTask``.
        module_name: ``__name__`` of the program.
    """
    guard_data(task)
    task.trainer = ResumingTrainer
    torch.save = _atomic(torch.save)
    averaging.safe_torch_load = _sound(averaging.safe_torch_load)
    trainer.average_nbest_models = average_kept
    if module_name == "__mp_main__":
        die_with_parent(multiprocessing.parent_process().pid)


def guard_data(task):
    """Have a task refuse utterances that are not numbers, and see white space as tokens do."""
    collate, preprocess = task.build_collate_fn, task.build_preprocess_fn
    task.build_collate_fn = lambda args, train: partial(_collate, collate(args, train))
    task.build_preprocess_fn = lambda args, train: partial(_preprocess, preprocess(args, train))


def _collate(collate, utterances):
    """A batch of utterances whose values are all finite."""
    for utt, parts in utterances:
        advice = "mend its file, or take it out of the data"
        refuse_not_finite(parts, f"the utterance {utt}", advice)
    return collate(utterances)


def _preprocess(preprocess, utt, parts):
    """Tokens of text with normal white space."""
    parts = {k: normal_space(v) if isinstance(v, str) else v for k, v in parts.items()}
    return preprocess(utt, parts) if preprocess else parts


class ResumingTrainer(Trainer):
    """ESPnet's trainer, for one run per directory, that resumes from whatever it left behind."""

    @classmethod
    def run(cls, *, trainer_options, distributed_option, **parts):
        """Train; see ``Trainer.run``.

        Raises:
            UserError: If another training runs in the directory, no checkpoint in it is whole, the
                training diverges, or an epoch leaves a tensor or a criterion that is not a number.
            DiskFull: If a checkpoint cannot be written; the one before stays.
        """
        folder = Path(trainer_options.output_dir)
        first = not distributed_option.distributed or distributed_option.dist_rank == 0
        refuse_not_finite(
            parts["model"].state_dict(),
            "the model to train",
            "its features have broken statistics (run stage 10 again), or it starts from a broken "
            "model (--pretrained_model)",
        )
        with files.locked(folder / ".train.lock", "training works") if first else nullcontext():
            if first and trainer_options.resume and restore_checkpoint(folder):
                complete_epoch(folder / CHECKPOINT, trainer_options)
            if distributed_option.distributed:
                torch.distributed.barrier()  # all resume from the same checkpoint
            with _epochs_checked(trainer_options):
                super().run(
                    trainer_options=trainer_options, distributed_option=distributed_option, **parts
                )

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

    Returns:
        Whether there is a checkpoint in the folder.

    Raises:
        UserError: If there are damaged ones only.
    """
    damaged = []
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        if not path.exists():
            continue
        if problem := damage(path):
            logging.warning(f"{path} is corrupt ({problem}): set aside as {path.name}.corrupt")
            files.replace(path, f"{path}.corrupt")
            damaged.append(str(path))
        else:
            if path.name == PREVIOUS:
                logging.warning(f"The training goes on from {path}, the last good checkpoint")
                files.replace(path, folder / CHECKPOINT)
            return True
    if damaged:
        raise UserError(
            f"{' and '.join(damaged)}: corrupt, and no whole checkpoint is left. The same command "
            "again trains from the start; --pretrained_model takes an epoch's model to start from"
        )
    return False


def refuse_epoch(states, options, what, advice):
    """Look into a checkpoint for tensors and criteria that are not numbers.

    No order of epochs holds where a criterion is not a number: the first ones would pass for the
    best, and the others would be deleted.

    Args:
        states: What ``checkpoint.pth`` holds.
        options: ``TrainerOptions``.
        what: The epoch or the file, for the message.
        advice: What to do about a tensor that is not finite.

    Returns:
        The checkpoint's ``Reporter``.

    Raises:
        UserError: If there are any, or no ``best_model_criterion`` is measured at all.
    """
    refuse_not_finite(states["model"], what, advice)
    reporter = Reporter()
    reporter.load_state_dict(states["reporter"])
    if options.no_forward_run:
        return reporter
    asked = {"best_model_criterion": options.best_model_criterion}
    if options.patience is not None:
        asked["early_stopping_criterion"] = [options.early_stopping_criterion]
    for option, criteria in asked.items():
        values = {(phase, key): _value(reporter, phase, key) for phase, key, _ in criteria}
        # ESPnet's own default names some that not every model has
        if all(value is None for value in values.values()) or any(
            value is not None and not math.isfinite(value) for value in values.values()
        ):
            raise UserError(f"{what}: {_no_criterion(option, values, reporter)}")
    return reporter


def _value(reporter, phase, key):
    """What an epoch measured as a number, ``None`` if nothing."""
    value = reporter.get_value(phase, key) if reporter.has(phase, key) else None
    return value if isinstance(value, (int, float)) else None


def _no_criterion(option, values, reporter):
    bad = [
        f"{phase} {key} is {'not measured' if value is None else value}"
        for (phase, key), value in values.items()
        if value is None or not math.isfinite(value)
    ]
    good = [
        (key, mode)
        for key, mode in CRITERIA.items()
        if (value := _value(reporter, "valid", key)) is not None and math.isfinite(value)
    ]
    use = "look into the log"
    if good:
        key, mode = good[0]
        example = f"[valid, {key}, {mode}]"
        if option == "best_model_criterion":
            example = f"[{example}], and then --inference_asr_model valid.{key}.ave.pth"
        names = " or ".join(f"valid {key} {mode}" for key, mode in good)
        use = f"ask for {names}, as in {option}: {example}"
    return (
        f"{', '.join(bad)}, and {option} asks for it, so that no epoch can be called the best "
        f"(accuracy is the decoder's: with ctc_weight 1.0 there is none): {use}"
    )


@contextmanager
def _epochs_checked(options):
    """Look into every checkpoint before it replaces the one before."""
    save = torch.save

    def checked(obj, f, *args, **kwargs):
        if isinstance(f, (str, os.PathLike)) and Path(f).name == CHECKPOINT:
            advice = (
                f"one batch is enough for that. {CHECKPOINT} keeps what was there before. Look for "
                "broken audio; half precision overflows (use_amp false helps); or lower the "
                "learning rate"
            )
            refuse_epoch(obj, options, f"epoch {obj['reporter']['epoch']}", advice)
        return save(obj, f, *args, **kwargs)

    torch.save = checked
    try:
        yield
    finally:
        torch.save = save


def complete_epoch(checkpoint, options):
    """Write what ESPnet writes right after a checkpoint: the epoch's model and the links to models.

    Raises:
        UserError: See ``refuse_epoch``.
    """
    states = torch.load(checkpoint, map_location="cpu")
    advice = "no training can go on from it; start anew with another --asr_tag"
    reporter = refuse_epoch(states, options, checkpoint, advice)
    model = checkpoint.with_name(f"{reporter.get_epoch()}epoch.pth")
    if not model.exists() or damage(model):
        torch.save(states["model"], model)
    links = {"latest.pth": reporter.get_epoch()}
    for phase, key, mode in options.best_model_criterion:
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
    """ESPnet's ``average_nbest_models`` of the epochs whose models are there.

    A training that goes on with a larger ``keep_nbest_models`` wants epochs whose models were
    removed while it was smaller.

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
        averaging.average_nbest_models(
            output_dir=output_dir,
            reporter=_Kept(reporter, there),
            best_model_criterion=[criterion],
            nbest=sorted({min(n, len(there)) for n in numbers}),
            **more,
        )


def _sound(load):
    @wraps(load)
    def sound(path, *args, **kwargs):
        states = load(path, *args, **kwargs)
        advice = "it cannot be averaged, nor used: train anew from an epoch that is sound"
        refuse_not_finite(states, path, advice)
        return states

    return sound


def _atomic(save):
    @wraps(save)
    def atomic(obj, f, *args, **kwargs):
        if not isinstance(f, (str, os.PathLike)):
            return save(obj, f, *args, **kwargs)
        with files.whole(f, sync=True) as temporary:
            with open(temporary, "wb") as file:
                save(obj, file, *args, **kwargs)
            if Path(f).name == CHECKPOINT and Path(f).exists():
                files.replace(f, Path(f).with_name(PREVIOUS))

    return atomic
