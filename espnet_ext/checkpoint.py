"""Loading that refuses a checkpoint which is damaged or does not fit its model.

ESPnet loads checkpoints with ``strict=False`` and goes on with random weights where names differ;
PyTorch reads them without comparing checksums.
"""

import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

import yaml
from espnet2.tasks.asr import ASRTask
from espnet2.torch_utils.safe_torch_load import UnsafeLoadRefusedError

import espnet_ext  # noqa: F401
from espnet_ext.errors import UserError, refuse_not_finite
from espnet_ext.relocate import beside


def damage(path):
    """Say what is wrong with a file that ``torch.save`` wrote.

    Args:
        path: The file.

    Returns:
        str: Empty if its checksums are right, or if it is of PyTorch's old kind, without any.
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
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError) as error:
        return str(error)


def refuse_mismatch(model, state, *_):
    """Compare a checkpoint with the model that is about to load it.

    Args:
        model: The model.
        state: Tensors of the checkpoint by name.

    Raises:
        UserError: If a name is in one of the two only, a shape differs, or a value is no number.
    """
    own = model.state_dict()
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            name for name in own if name in state and own[name].shape != state[name].shape
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


@contextmanager
def _where_it_lies(path):
    """Path of a ``config.yaml`` that names the files beside ``path``; see ``beside``."""
    config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if (moved := beside(config, Path(path).parent)) == config:
        yield path
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(moved, file)
        file.flush()
        yield file.name


class StrictASRTask(ASRTask):
    """ESPnet's ASR task, refusing checkpoints that do not fit."""

    @classmethod
    def build_model(cls, args):
        """Build the model of a config; see ``ASRTask.build_model``."""
        model = super().build_model(args)
        if not getattr(args, "use_adapter", False):  # such a checkpoint holds the adapter alone
            model.register_load_state_dict_pre_hook(refuse_mismatch)
        return model

    @classmethod
    def build_model_from_file(cls, config_file=None, model_file=None, device="cpu"):
        """Build and load a model; see ``ASRTask.build_model_from_file``."""
        if model_file is not None and (problem := damage(model_file)):
            raise UserError(f"{model_file}: no whole checkpoint ({problem})")
        try:
            with _where_it_lies(config_file or Path(model_file).with_name("config.yaml")) as path:
                return super().build_model_from_file(path, model_file, device)
        except UserError as error:
            raise UserError(f"{model_file}: {error}") from None
        except UnsafeLoadRefusedError as error:  # what is no tensor could run as a program
            raise UserError(
                f"{model_file}: damaged, or holds other things than tensors; get it again from a "
                "source you trust"
            ) from error
