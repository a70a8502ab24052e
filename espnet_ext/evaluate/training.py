"""Training time and throughput, from the logs of the run itself."""

import re
from pathlib import Path

from espnet_ext.audio import parse_rate
from espnet_ext.data.kaldi import read_lines
from espnet_ext.errors import UserError, about

EPOCH = re.compile(r"INFO: ([0-9]{1,9})epoch results: (.*)")
TIME = re.compile(r", time=([^=]+), total_count=([0-9]{1,15})")
UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800, "year": 31449600}
SPAN = re.compile(rf"([0-9]+(?:\.[0-9]+)?) ({'|'.join(UNITS)})s?")


def seconds(timespan: str) -> float:
    """Seconds of a time span in words, such as ``1 hour, 2 minutes and 3.5 seconds``."""
    return sum(float(n) * UNITS[unit] for n, unit in SPAN.findall(timespan))


def read_training(expdir, config: dict) -> dict | None:
    """Sum up the epochs in ``train.log`` and the logs of the parts before it was resumed.

    Args:
        expdir: Directory of the model.
        config: Its config.yaml; the shape files it names, which give the seconds of audio, are
            looked for from the current directory.

    Returns:
        ``seconds`` (training and validation), ``epochs``, ``batches``, ``audio_seconds`` of one
        epoch and ``audio_per_second`` (seconds of audio per second of training), the last two None
        where the shape file is gone; None where no epoch was logged.
    """
    epochs = {}
    logs = sorted(Path(expdir).glob("train*.log"), key=lambda path: path.stat().st_mtime)
    for log in logs:
        for number, results in EPOCH.findall(log.read_text(encoding="utf-8", errors="replace")):
            times = {  # "[train] a=1, ..., time=1 minute and 2 seconds, total_count=9, [valid] ..."
                part.split("]")[0]: TIME.search(part)
                for part in results.split("[")
                if TIME.search(part)
            }
            if "train" in times:  # a line may be cut
                epochs[int(number)] = times
    if not epochs:
        return None
    train = sum(seconds(times["train"][1]) for times in epochs.values())
    valid = sum(seconds(times["valid"][1]) for times in epochs.values() if "valid" in times)
    audio = _audio_seconds(config)
    return {
        "seconds": train + valid,
        "epochs": len(epochs),
        "batches": max(int(times["train"][2]) for times in epochs.values()),
        "audio_seconds": audio,
        "audio_per_second": audio and audio * len(epochs) / train if train else None,
    }


def _audio_seconds(config):
    found = config.get("train_shape_file")
    shapes = Path(str(found[0]) if isinstance(found, list) and found else "")
    if not shapes.is_file():
        return None
    try:
        samples = sum(int(line.split()[1].split(",")[0]) for line in read_lines(shapes))
    except (IndexError, ValueError):
        raise UserError(f"{shapes}: lines must be an id and a number of samples") from None
    return samples / sampling_rate(config)


def sampling_rate(config: dict) -> int:
    """The front end's rate in Hz; ESPnet writes it as 16000 or as 16k."""
    with about("frontend_conf: fs"):
        return parse_rate(str((config.get("frontend_conf") or {}).get("fs", 16000)))
