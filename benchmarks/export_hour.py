"""An hour of stream through exported models in sherpa-onnx: memory and time, minute by minute.

python benchmarks/export_hour.py onnx ... --recording speech.flac
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import sherpa_onnx

from espnet_ext.audio import read_audio


def memory_mb():
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main(argv=None):
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exports", nargs="+", metavar="DIR", help="directories of exports")
    parser.add_argument("--recording", required=True, help="is repeated")
    parser.add_argument("--minutes", type=int, default=60)
    args = parser.parse_args(argv)
    print("| export | minutes | MB after 1 minute | MB at the end | tokens | real-time factor |")
    print("|---|---|---|---|---|---|")
    for folder in map(Path, args.exports):
        certificate = json.loads((folder / "certificate.json").read_text())
        rate, dim = certificate["sample_rate"], certificate["feature_dim"]
        recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
            tokens=str(folder / "tokens.txt"), model=str(folder / "model.onnx"), num_threads=1,
            sample_rate=rate, feature_dim=dim,
        )  # fmt: skip
        minute = np.resize(read_audio(args.recording, rate), 60 * rate)
        stream, used, begun = recognizer.create_stream(), [], time.process_time()
        for _ in range(args.minutes):
            for packet in np.split(minute, 600):
                stream.accept_waveform(rate, packet)
                while recognizer.is_ready(stream):
                    recognizer.decode_stream(stream)
            used.append(memory_mb())
        spent = (time.process_time() - begun) / (60 * args.minutes)
        tokens = len(recognizer.tokens(stream))
        print(
            f"| {folder} | {args.minutes} | {used[0]:.1f} | {used[-1]:.1f} | {tokens} | "
            f"{spent:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
