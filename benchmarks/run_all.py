"""Run every benchmark; write ``benchmarks/RESULTS.md`` and a plot of time and memory by length.

make bench                                          everything, 26 minutes on two cores
python benchmarks/run_all.py --only offline --quick one of them, fewer lengths and pairs
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from espnet_ext.evaluate.process import commit, device_name

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
PLOT = HERE / "offline.png"
#: name: (script, title, options of the whole run, options of the quick one)
BENCHMARKS = {
    "offline": (
        "offline.py",
        "Whole recordings and the training step against ESPnet with use_sdpa: true",
        ["--pairs", "3"],
        ["--seconds", "10", "60", "--pairs", "1"],
    ),
    "long_audio": (
        "long_audio.py",
        "One hour in 4 GB",
        ["--seconds", "900", "1800", "3600"],
        ["--seconds", "900"],
    ),
    "streaming": (
        "streaming.py",
        "Streaming steps",
        [],
        ["--contexts", "64", "--repeats", "5", "--variants", "mha", "mla, rank 128"],
    ),
    "export": (
        "export.py",
        "Exported steps",
        [],
        ["--contexts", "64", "--repeats", "5", "--variants", "mha", "--layers", "2"],
    ),
    "streams": (
        "streams.py",
        "Many streams in one step",
        [],
        [
            *("--contexts", "64", "--streams", "8", "--repeats", "3"),
            *("--variants", "mha", "linear", "--clients", "20", "--seconds", "5"),
        ],
    ),
    "beam_search": (
        "beam_search.py",
        "Beam search against ESPnet's",
        [],
        ["--frames", "250", "--beams", "10", "--pairs", "2", "--steps", "20"],
    ),
    "data_prep": ("data_prep.py", "Data preparation", [], ["--utterances", "500"]),
}


def run(script, options):
    """Output of one benchmark, or what went wrong with it."""
    command = [sys.executable, str(HERE / script), *options]
    shown = " ".join(["python", f"benchmarks/{script}", *options])
    print(f"{shown} ...", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
    text = re.sub("^#", r"\\#", done.stdout.strip(), flags=re.MULTILINE)  # headings are ours
    if done.returncode:
        text += f"\n\n**Failed with status {done.returncode}; see above for why.**"
    return f"`{shown}`\n\n{text}\n"


def plot(text):
    """Time and peak memory against length, from the table of ``offline.py``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = re.findall(r"^\| (\w+) \| forward \| ([\d.]+) \| (.*) \|$", text, re.MULTILINE)
    if len({seconds for _, seconds, _ in rows}) < 2:
        return
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4))
    for marker, name in zip("os^", dict.fromkeys(r[0] for r in rows), strict=False):
        cells = [(float(r[1]), r[2].split(" | ")) for r in rows if r[0] == name]
        lengths = [length for length, _ in cells]
        for style, side, seconds, memory in (("-", "ours", 0, 3), ("--", "ESPnet", 1, 4)):
            for axis, column in zip(axes, (seconds, memory), strict=True):
                values = [float(c[column]) for _, c in cells]
                color = "black" if side == "ours" else "gray"
                axis.loglog(lengths, values, style + marker, color=color, label=f"{name}, {side}")
    for axis, label in zip(axes, ("seconds", "peak memory over the weights, MB"), strict=True):
        axis.set_xlabel("seconds of audio")
        axis.set_ylabel(label)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=120)


def main(argv=None):
    """Write the results; what was not run keeps the section of the last run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="fewer lengths and pairs")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="for the scripts")
    args = parser.parse_args(argv)
    sections = {}
    if RESULTS.exists():
        for section in RESULTS.read_text().split("\n## ")[1:]:
            title, _, body = section.partition("\n")
            sections[title] = body.strip() + "\n"
    where = f"{device_name()}; commit {commit(RESULTS, PLOT)}; {datetime.now(UTC):%Y-%m-%d}"
    for name in args.only:
        script, title, whole, quick = BENCHMARKS[name]
        if not (HERE / script).exists():
            continue
        load = os.getloadavg()[0]
        body = run(script, (quick if args.quick else whole) + args.options)
        sections[title] = f"{where}; load average at the beginning {load:.1f}\n\n{body}"
        if name == "offline" and importlib.util.find_spec("matplotlib"):
            plot(body)
        write(sections)


def write(sections):
    """Write ``RESULTS.md`` from the text of each title."""
    text = "# Benchmarks\n\n" + (
        "Written by `benchmarks/run_all.py` (`make bench`). Two sides alternate in one process; a "
        "ratio is the median of pairs, with its spread.\n"
        "All on the CPU; for CUDA see [RESULTS_cuda.md](RESULTS_cuda.md).\n"
    )
    for _, title, _, _ in BENCHMARKS.values():
        if title in sections:
            text += f"\n## {title}\n\n{sections[title]}"
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(RESULTS)
    print(f"wrote {RESULTS}", flush=True)


if __name__ == "__main__":
    main()
