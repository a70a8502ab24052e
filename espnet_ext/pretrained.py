"""The small trained model in the package, and any other by its directory."""

from pathlib import Path
from typing import Any

from espnet_ext.packing import find_model

PRETRAINED = "fsdd_conformer_mla"
#: what it is shown on; the words are in the file of text beside it
RECORDING = Path(__file__).parent / "resources" / PRETRAINED / "recording.flac"


def model_files(model: str | Path = PRETRAINED) -> dict[str, Any]:
    """Config and weights of a trained or unpacked model, as ``StreamingSpeech2Text`` takes them."""
    config, checkpoint = find_model(RECORDING.parent if str(model) == PRETRAINED else model)
    return {"asr_train_config": config, "asr_model_file": checkpoint}
