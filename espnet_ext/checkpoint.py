"""The one door for checkpoints: whole, of numbers, and of the model that they are loaded into.

ESPnet loads checkpoints with ``strict=False`` and goes on with random weights where names differ;
PyTorch reads them without comparing checksums.
"""

import zipfile
from argparse import Namespace
from pathlib import Path

import torch
from espnet2.layers.create_adapter import create_adapter
from espnet2.tasks import abs_task
from espnet2.tasks.asr import ASRTask
from espnet2.tasks.lm import LMTask

import espnet_ext  # noqa: F401
from espnet_ext.config import building, check_model, guard_espnet
from espnet_ext.errors import UserError, about, no_checkpoint, refuse_not_finite
from espnet_ext.relocate import check_files, read_training_config

#: where other trainers keep the tensors of a model: DeepSpeed, Lightning
INSIDE = ("module", "state_dict")


def damage(path):
    """What is wrong with a file that ``torch.save`` wrote.

    ``""`` if its checksums are right, or if it is of PyTorch's old kind, without any.
    """
    try:
        with open(path, "rb") as file:
            if file.read(2) == b"\x80\x02":
                return ""
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        return f"wrong checksum of {bad}" if bad else ""
    except FileNotFoundError:
        return "no such file"
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        return str(error)


def read_state(path, map_location="cpu") -> dict[str, torch.Tensor]:
    """Tensors of a model by name.

    Args:
        path: What a training wrote, such as ``valid.acc.ave.pth``.
        map_location: Device of the tensors.

    Raises:
        UserError: The file is missing, damaged or holds anything else, or a value that is no
            number; the message names it and says what to do.
    """
    if not Path(path).exists():
        raise no_checkpoint(path)
    if problem := damage(path):
        raise UserError(f"{path}: no whole checkpoint ({problem}); get it again")
    with about(path):
        try:
            state = torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:  # what is no tensor could run as a program
            raise UserError(
                "damaged, or holds other things than tensors; get it again from a source you trust"
            ) from error
        for key in INSIDE:
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
        _check_tensors(state)
        refuse_not_finite(state, "a tensor", "its training has failed; take an earlier epoch's")
    return state


def _check_tensors(state):
    advice = "give the checkpoint of a model, as valid.acc.ave.pth"
    if not isinstance(state, dict):
        raise UserError(f"holds a {type(state).__name__}, not tensors by name; {advice}")
    if {"model", "optimizers"} <= state.keys():
        raise UserError(f"is a training on its way; {advice}")
    for name, value in state.items():
        if not isinstance(name, str):
            raise UserError(f"holds {name!r}, which is no name of a tensor; {advice}")
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{name}: is a {type(value).__name__}, not a tensor; {advice}")
    if not state:
        raise UserError(f"holds no tensor; {advice}")


def refuse_mismatch(model, state, *_):
    """Compare the tensors of a checkpoint with the model that is about to load it.

    Raises:
        UserError: If a name is in one of the two only, a shape or kind of number differs, or a
            value is no number.
    """
    own = model.state_dict()
    both = [(name, own[name], state[name]) for name in own if name in state]
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [name for name, a, b in both if a.shape != b.shape],
        "of another kind of number": [
            name for name, a, b in both if a.is_floating_point() != b.is_floating_point()
        ],
    }
    if any(problems.values()):
        raise UserError(
            "the checkpoint does not fit the model of its config: "
            + "; ".join(
                f"{len(names)} {what} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
                for what, names in problems.items()
                if names
            )
        )
    refuse_not_finite(state, "a tensor", "its training has failed; take an earlier epoch's")


def load_model(config: dict, config_file, model_file=None, device="cpu", task=None):
    """The model of a training, in training mode, and its options, as ESPnet gives them.

    Args:
        config: What ``config_file`` says; see ``read_config``.
        config_file: Its name, for messages.
        model_file: Checkpoint; random weights without one.
        device: ``cpu`` or ``cuda``.
        task: Of ESPnet; ``StrictASRTask`` by default.

    Raises:
        UserError: The config is impossible, or the checkpoint is not its model's.
    """
    args = Namespace(**config)
    if model_file is not None:
        args.init = None  # for the checkpoint replaces what it would make
    with building(config_file), about(config_file):
        model = (task or StrictASRTask).build_model(args)
        if getattr(args, "use_adapter", False):
            create_adapter(model, args.adapter, args.adapter_conf)
    if model_file is not None:
        state = read_state(model_file)
        with about(model_file):
            model.load_state_dict(state, strict=False)
    return model.to(device), args


class _Strict:
    """An ESPnet task whose models are made of checked options and of checkpoints that fit."""

    @classmethod
    def build_model(cls, args):
        """Build the model of a training's options; see ESPnet's method."""
        check_model(vars(args), cls)
        model = super().build_model(args)
        if not getattr(args, "use_adapter", False):  # such a checkpoint holds the adapter alone
            model.register_load_state_dict_pre_hook(refuse_mismatch)
        return model

    @classmethod
    def build_model_from_file(cls, config_file=None, model_file=None, device="cpu"):
        """Build and load a model; see ESPnet's method."""
        if config_file is None:
            config_file = Path(model_file).with_name("config.yaml")
        config = read_training_config(config_file)
        if issubclass(cls, ASRTask):  # a language model is given tokens
            check_files(config, config_file)
        return load_model(config, config_file, model_file, device, cls)


class StrictASRTask(_Strict, ASRTask):
    """ESPnet's ASR task, refusing what is wrong with its files."""


class StrictLMTask(_Strict, LMTask):
    """ESPnet's task of language models, refusing what is wrong with its files."""

    @classmethod
    def build_model_from_file(cls, config_file=None, model_file=None, device="cpu"):
        """Build and load a model; see ESPnet's method. One of random weights is of no use."""
        if model_file is None:
            raise UserError(f"{config_file}: lm_file: a language model needs its checkpoint")
        return super().build_model_from_file(config_file, model_file, device)


def load_pretrained(init_param, model, ignore_init_mismatch, map_location="cpu"):
    """Start a model from another one's tensors; see ESPnet's ``load_pretrained_model``.

    ``init_param`` is ``FILE:SOURCE:TARGET:EXCLUDED``, the last three optional; with
    ``ignore_init_mismatch`` what fits is taken, and the rest left as it is.

    Raises:
        UserError: See ``read_state``; or what is asked for does not fit; the message names it.
    """
    path, source, target, excluded = (init_param.split(":", 3) + [""] * 3)[:4]
    state = read_state(path)
    with about(path):
        module = dict(model.named_modules()).get(target)
        if module is None:
            parts = ", ".join(name for name, _ in model.named_children())
            raise UserError(f"the model to train has no part {target}; it has {parts}")
        prefix = f"{source}." if source else ""
        left = tuple(excluded.split(",") if excluded else ())
        chosen = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.items()
            if name.startswith(prefix) and not name.startswith(left)
        }
        own = module.state_dict()
        if ignore_init_mismatch:
            chosen = {n: x for n, x in chosen.items() if n in own and x.shape == own[n].shape}
        if not chosen:
            parts = ", ".join(sorted({name.split(".")[0] for name in state}))
            raise UserError(f"has nothing of {source or 'the model to train'}; it has {parts}")
        if ignore_init_mismatch or excluded:
            chosen = own | chosen
        refuse_mismatch(module, chosen)
        module.load_state_dict(chosen)


abs_task.load_pretrained_model = load_pretrained
guard_espnet()
