"""A trained model may be moved: what its config names is looked for beside the config first."""

from pathlib import Path

from espnet_ext.config import read_config


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
