"""Seconds and peak memory of data preparation (stages 1 to 4) at the size of LibriSpeech-100.

A tree in LibriSpeech's layout is written: 28,539 files of 0.2 s, in 251 speakers and
585 chapters. Each command runs as asr.sh runs it. Memory is the largest sum over a command and its
workers of proportional resident sizes, sampled; a page that they share counts once.

    python benchmarks/data_prep.py --nj 2
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import soundfile

SPEAKERS, CHAPTERS, RATE = 251, 585, 16000
INTERVAL = 0.1  # seconds between two looks at the memory


def make_tree(corpus, utterances):
    """Write ``corpus``/train-clean-100 and SPEAKERS.TXT."""
    samples = 0.1 * np.random.default_rng(0).standard_normal(RATE // 5)
    content = io.BytesIO()
    soundfile.write(content, samples, RATE, format="FLAC")
    for chapter in range(CHAPTERS):
        speaker = 1000 + chapter % SPEAKERS
        folder = corpus / "train-clean-100" / str(speaker) / str(100000 + chapter)
        folder.mkdir(parents=True)
        name = f"{speaker}-{100000 + chapter}"
        lines = []
        for number in range(chapter, utterances, CHAPTERS):
            utt = f"{name}-{number // CHAPTERS:04d}"
            (folder / f"{utt}.flac").write_bytes(content.getbuffer())
            lines.append(f"{utt} {'THE WORDS OF AN UTTERANCE ' * 7}".rstrip() + "\n")
        (folder / f"{name}.trans.txt").write_text("".join(lines))
    speakers = (f"{1000 + n} | F | train-clean-100 | 25.0 | A\n" for n in range(SPEAKERS))
    (corpus / "SPEAKERS.TXT").write_text("".join(speakers))


def memory(process):
    """Proportional resident bytes of a process and its descendants."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except psutil.NoSuchProcess:
            pass
    return total


def run(program, *arguments):
    """Run ``espnet_ext.bin.<program>``; (seconds, peak bytes)."""
    command = [sys.executable, "-m", f"espnet_ext.bin.{program}", *map(str, arguments)]
    start, peak = time.perf_counter(), 0
    with psutil.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                peak = max(peak, memory(process))
            except psutil.NoSuchProcess:
                break
            time.sleep(INTERVAL)
        process.wait()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=28539)
    parser.add_argument("--nj", type=int, default=2, help="worker processes")
    parser.add_argument("--convert", action="store_true", help="write perturbed audio too")
    args = parser.parse_args()
    print(f"{args.utterances} utterances, --nj {args.nj}\n")
    print("| stage | does | s | MB |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        corpus, data, dump = root / "LibriSpeech", root / "data", root / "dump"
        start = time.perf_counter()
        make_tree(corpus, args.utterances)
        print(f"| | writing the tree | {time.perf_counter() - start:.1f} | |", flush=True)

        counts, nj = ("--check_counts", "false"), ("--nj", args.nj)
        split = (corpus / "train-clean-100", data / "train")
        rows = [
            ("1", does, "data_prep_librispeech", "--check_audio", check, *counts, *nj, *split)
            for does, check in (("ids and counts", "false"), ("and decoding every file", "true"))
        ]
        rows += [
            ("2", f"speed {factor}", "data_perturb_speed", "--factor", factor)
            + (data / "train", data / f"train_sp{factor}")
            for factor in ("0.9", "1.1")
        ]
        parts = [data / name for name in ("train_sp0.9", "train", "train_sp1.1")]
        rows.append(("2", "combining the three", "data_combine", data / "train_sp", *parts))
        rows.append(("3", "audio in place", "data_format", *nj, data / "train", dump / "train"))
        rows.append(("4", "length filter", "data_filter", dump / "train", dump / "filtered"))
        if args.convert:
            sources = (data / "train_sp", dump / "train_sp")
            rows.append(("3", "two thirds converted", "data_format", *nj, *sources))
            rows.append(("4", "length filter", "data_filter", dump / "train_sp", dump / "sp"))
        for stage, does, *command in rows:
            seconds, peak = run(*command)
            print(f"| {stage} | {does} | {seconds:.1f} | {peak / 2**20:.0f} |", flush=True)


if __name__ == "__main__":
    main()
