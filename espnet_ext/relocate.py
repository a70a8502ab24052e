"""A trained model may be moved: what its config names is looked for beside the config first."""

from pathlib import Path

from espnet_ext.config import read_config
from espnet_ext.errors import UserError


def beside(config: dict, folder) -> dict:
    """A training run's config that names the files of its own directory, where they are there.

    Args:
        config: Content of ``config.yaml``.
        folder: Directory that it is in. Of the statistics of features and of the BPE model, those
            that lie in it under their own names are meant, wherever the training found them.
    """

    def place(path):
        own = Path(folder) / Path(path).name if path and isinstance(path, str) else None
        return str(own) if own and own.is_file() else path

    normalize = config.get("normalize_conf") or {}
    changed = {"bpemodel": place(config["bpemodel"])} if config.get("bpemodel") else {}
    if stats := normalize.get("stats_file"):
        changed["normalize_conf"] = normalize | {"stats_file": place(stats)}
    return config | changed


def read_training_config(path) -> dict:
    """A training run's ``config.yaml`` with its files where they are; see ``beside``."""
    return beside(read_config(path), Path(path).parent)


def data_table(config: dict, part: str, name: str = "wav.scp") -> str:
    """A table that a model was trained (``train``) or validated (``valid``) on, "" where none is.

    ``name`` is how its path ends.
    """
    paths = (str(entry[0]) for entry in config.get(f"{part}_data_path_and_name_and_type") or ())
    return next((path for path in paths if path.endswith(name)), "")


def check_files(config: dict, path) -> None:
    """Find the files that a trained model needs beside its checkpoint.

    Args:
        config: See ``read_training_config``.
        path: Of the config, for messages.

    Raises:
        UserError: One is neither beside the config nor where the config says.
    """
    conf = config.get("normalize_conf")
    named = {"stats_file": conf.get("stats_file") if isinstance(conf, dict) else None}
    if config.get("token_type") == "bpe":
        named["bpemodel"] = config.get("bpemodel")
    for key, file in named.items():
        if isinstance(file, str) and not Path(file).is_file():
            raise UserError(
                f"{path}: {key}: {file}: no such file here; go to the recipe's directory, or put "
                f"{Path(file).name} beside {Path(path).name}"
            )
