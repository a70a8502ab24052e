"""One archive of a trained model and all that decoding needs, in the format that ESPnet packs.

``meta.yaml`` says which members are the arguments of ``Speech2Text`` and which versions made the
archive; ESPnet's own ``Speech2Text.from_pretrained`` reads it too, after ``import espnet_ext``.
"""

import os
import platform
import time
import zipfile
import zlib
from importlib.metadata import version
from pathlib import Path

import yaml

import espnet_ext
from espnet_ext.config import read_config
from espnet_ext.errors import UserError, no_checkpoint, printable
from espnet_ext.files import MB, whole
from espnet_ext.relocate import read_training_config

#: the checkpoint that is decoded with, unless another is named
CHECKPOINT = "valid.acc.ave.pth"

#: an archive of a stranger may unpack to so many bytes, or to so many times its own
FEW_BYTES, MOST_TIMES = 64 * MB, 50

#: what an archive may hold, by the place in meta.yaml that says so: arguments of ``Speech2Text``
ARGUMENTS = {
    "yaml_files": ("asr_train_config", "lm_train_config"),
    "files": ("asr_model_file", "lm_file"),
}


def _change(value, change):
    """Apply a function to every string in nested dicts and lists."""
    if isinstance(value, dict):
        return {key: _change(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_change(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def _member(path):
    """Name of a file in the archive: its path from here, or from the root if it is not below."""
    path = os.path.abspath(path)
    below = os.path.relpath(path)
    return path.lstrip("/") if below.startswith("..") else below


def _inside(path):
    """Name of a member from what meta.yaml calls it: ESPnet packs absolute paths without "/"."""
    return os.path.normpath(path).lstrip("/")


def _versions():
    return {
        "espnet_ext": espnet_ext.__version__,
        "espnet": version("espnet"),
        "torch": version("torch"),
        "python": platform.python_version(),
    }


def pack(out, configs, files, options=()):
    """Write an archive, whole or not at all. Paths of packed files in the configs are adapted.

    Args:
        out: The ``.zip`` to write.
        configs: YAML files by argument of ``Speech2Text``, e.g. ``{"asr_train_config": path}``.
        files: Other files by argument, e.g. ``{"asr_model_file": path}``.
        options: Files that are packed as well: statistics, token model, results.

    Raises:
        UserError: A file is not there, or the archive cannot be written.
    """
    paths = [*configs.values(), *files.values(), *options]
    gone = [str(path) for path in paths if not Path(path).is_file()]
    if gone:
        raise UserError(f"{' '.join(gone)}: not there; train and score the model before packing it")
    members = {os.path.abspath(path): _member(path) for path in paths}
    meta = {
        "yaml_files": {key: members[os.path.abspath(path)] for key, path in configs.items()},
        "files": {key: members[os.path.abspath(path)] for key, path in files.items()},
        "timestamp": time.time(),
        **_versions(),
    }
    with whole(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr("meta.yaml", yaml.safe_dump(meta))
        for path, member in members.items():
            if member in meta["yaml_files"].values():
                config = read_training_config(path)
                config = _change(config, lambda text: members.get(os.path.abspath(text), text))
                archive.writestr(member, yaml.safe_dump(config, sort_keys=False))
            else:
                archive.write(path, member)


def unpack(archive, folder):
    """Unpack an archive into a new folder; the configs in it name the files where they are then.

    Args:
        archive: Packed here or by ESPnet, as ``.zip``.
        folder: Directory that is not there yet.

    Returns:
        (arguments, versions): arguments of ``Speech2Text``, e.g. ``{"asr_train_config": path,
        "asr_model_file": path}``, and the versions that packed the model by name.

    Raises:
        UserError: The archive is damaged or no packed model, or ``folder`` is there.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists():
        raise UserError(f"{folder}: is there already; give a directory that is not")
    with whole(folder) as temporary:
        return _extract(archive, temporary, folder)


def _extract(archive, temporary, folder):
    """Write what is in an archive to ``temporary``, for ``folder``; return what ``unpack`` does."""
    try:
        with zipfile.ZipFile(archive) as packed:
            names = set(packed.namelist())
            if outside := [name for name in names if name[:1] == "/" or ".." in Path(name).parts]:
                raise UserError(f"{archive}: {outside[0]} would be written elsewhere; refused")
            if odd := [name for name in names if not name.isprintable()]:
                raise UserError(f"{archive}: {odd[0]!r} is no file name (control characters)")
            size = sum(member.file_size for member in packed.infolist())  # no more is written
            if size > max(FEW_BYTES, MOST_TIMES * os.path.getsize(archive)):
                raise UserError(
                    f"{archive}: would unpack to {size // MB} MB, more than a model does that is "
                    f"packed into {os.path.getsize(archive) / MB:.1f} MB; refused"
                )
            packed.extractall(temporary)

        def place(text):
            member = _inside(text)
            return str(folder / member) if member in names else text

        meta = read_config(temporary / "meta.yaml")
        for part, known in ARGUMENTS.items():
            if other := [str(key) for key in meta[part] if key not in known]:
                raise UserError(
                    f"{archive}: {other[0]!r} in {part} of its meta.yaml is no argument of "
                    f"asr_inference; known are {', '.join(known)}; refused"
                )
        arguments = _change(meta["yaml_files"] | meta["files"], place)
        if gone := [path for path in arguments.values() if not path.startswith(f"{folder}/")]:
            raise UserError(f"{archive}: lacks {' '.join(gone)}; pack the model again")
        for key in meta["yaml_files"]:
            path = temporary / Path(arguments[key]).relative_to(folder)
            config = _change(read_config(path), place)
            path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    except UserError as error:
        raise UserError(str(error).replace(f"{temporary}/", f"{archive}: ")) from None
    # encrypted, or compressed as nobody packs models here
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive}: damaged or no .zip archive ({error}); get it again") from error
    except FileNotFoundError as error:
        raise UserError(f"{archive}: no packed model ({error.filename} is not there)") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"{archive}: no packed model, its meta.yaml is of another form") from error
    return arguments, {key: printable(str(meta[key])) for key in _versions() if key in meta}


def find_model(directory, checkpoint=CHECKPOINT):
    """(config, checkpoint) of a model's directory, of a training run or unpacked.

    Args:
        directory: The directory.
        checkpoint: File name of the checkpoint in a training run's; an archive has one.

    Raises:
        UserError: The directory is neither, or lacks one of them.
    """
    directory = Path(directory)
    config = directory / "config.yaml"
    if config.is_file():
        found = directory / checkpoint
    elif (directory / "meta.yaml").is_file():
        meta = read_config(directory / "meta.yaml")
        try:
            config = directory / _inside(meta["yaml_files"]["asr_train_config"])
            found = directory / _inside(meta["files"]["asr_model_file"])
        except (KeyError, TypeError):
            raise UserError(f"{directory}/meta.yaml: names no ASR model; unpack it again") from None
    else:
        raise UserError(
            f"{directory}: has no config.yaml of a training, nor meta.yaml of an unpacked model; "
            "give the directory of one"
        )
    if not found.is_file():
        raise no_checkpoint(found)
    return config, found
