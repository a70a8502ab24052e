"""The small trained model in the package, and any other by its directory."""

from pathlib import Path
from typing import Any

from espnet_ext.errors import UserError

PRETRAINED = "fsdd_conformer_mla"
#: what it is shown on; the words are in the file of text beside it
RECORDING = Path(__file__).parent / "resources" / PRETRAINED / "recording.flac"


def model_files(model: str | Path = PRETRAINED) -> dict[str, Any]:
    """Config and weights of a trained model as arguments of ``StreamingSpeech2Text``.

    Args:
        model: Directory with ``config.yaml`` and ``valid.acc.ave.pth``, or ``PRETRAINED``.

    Raises:
        UserError: It lacks one of them.
    """
    folder = RECORDING.parent if str(model) == PRETRAINED else Path(model)
    files = {
        "asr_train_config": folder / "config.yaml",
        "asr_model_file": folder / "valid.acc.ave.pth",
    }
    for path in files.values():
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; give the directory of a trained model, or {PRETRAINED}, "
                "which is in the package"
            )
    return files
