"""Write scores as people and programs read them: trn files, result.txt, score.json, RESULTS.md."""

from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from platform import python_version

from espnet_ext.data.kaldi import read_scp, write_scp
from espnet_ext.errors import UserError
from espnet_ext.files import write_atomic
from espnet_ext.jobs.markers import BESIDE
from espnet_ext.results import SCORE, read_json, to_json
from espnet_ext.scoring.counting import UNITS, Score, score, tokenizer
from espnet_ext.scoring.resampling import nesting

COLUMNS = ("corr", "sub", "del", "ins", "err", "s_err")
TITLE = "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|"


def score_files(
    references, hypotheses, output, utt2spk=None, token_type="bpe", bpemodel=None
) -> dict[str, Score]:
    """Score decoded text and write ``OUTPUT/score_{cer,wer,ter}``, TER where tokens are BPE's.

    Args:
        references: Kaldi-style text file.
        hypotheses: Another one, of the same utterances.
        output: Directory of the scores.
        utt2spk: Table of the speakers; one speaker without it.
        token_type: ``bpe``, ``char`` or ``word``.
        bpemodel: sentencepiece model of ``bpe``.

    Returns:
        A score for each of ``UNITS``.

    Raises:
        UserError: The tables do not fit each other; the message names one.
    """
    if token_type == "bpe" and not bpemodel:
        raise UserError("token_type: bpe needs bpemodel")
    texts, found = [read_scp(path) for path in (references, hypotheses)], {}
    speakers = read_scp(utt2spk) if utt2spk else dict.fromkeys(texts[0], "all")
    if unknown := texts[0].keys() - speakers.keys():
        raise UserError(f"{utt2spk}: no speaker for {min(unknown)}")
    for unit in UNITS:
        if unit == "ter" and token_type != "bpe":
            continue
        try:
            found[unit] = score(*texts, tokenizer(unit, bpemodel))
        except UserError as error:
            raise UserError(f"{hypotheses}: {error}") from None
        write_score(Path(output) / f"score_{unit}", found[unit], speakers)
    return found


def write_score(directory, score, speakers):
    """Write ``ref.trn``, ``hyp.trn``, ``utt2spk``, ``result.txt`` and, last, ``score.json``."""
    directory = Path(directory)
    names = [f"({speakers[i]}-{i})" for i in score.ids]
    for file, texts in (("ref.trn", score.references), ("hyp.trn", score.hypotheses)):
        lines = (f"{' '.join(t)}\t{name}\n" for t, name in zip(texts, names, strict=True))
        write_atomic(directory / file, "".join(lines).encode())
    speakers = {i: speakers[i] for i in score.ids}
    write_scp(directory / "utt2spk", speakers)
    low, high = score.interval(speakers)
    _, drawn = nesting(speakers)
    parts = [_speaker_table(score, speakers)]
    parts += [f"95% interval of Err: {low:.2f} to {high:.2f} ({drawn} drawn)\n"]
    parts += [_alignment(score, i, name) for i, name in enumerate(names)]
    write_atomic(directory / "result.txt", "\n".join(parts).encode())
    numbers = {**score.summary(), "err_interval_95": [low, high], "drawn": drawn}
    write_atomic(directory / "score.json", to_json(numbers, indent=2).encode())


def read_numbers(path):
    """Return what a ``score.json`` holds; one of before speakers were drawn drew utterances."""
    return {"drawn": "utterances"} | read_json(path, SCORE)


def scored(directory, unit="wer"):
    """Paths of every ``score.json`` of a unit below a directory, sorted, by what was decoded.

    Results that are not whole yet do not count.
    """
    directory = Path(directory)
    return {
        str(path.parent.parent.relative_to(directory)): path
        for path in sorted(directory.glob(f"**/score_{unit}/score.json"))
        if BESIDE not in path.parts
    }


def write_results(expdir):
    """Gather a model's scores in ``RESULTS.md``, and return the tables of words."""
    expdir = Path(expdir)
    sections = {}
    for unit in ("wer", "cer", "ter"):
        rows = {name: read_numbers(path) for name, path in scored(expdir, unit).items()}
        if rows:
            sections[unit] = f"### {unit.upper()}\n\n{_markdown(rows)}"
        if rows and unit == "wer":
            sections[unit] += f"\nErr with its 95% bootstrap interval:\n\n{_intervals(rows)}"
    if not sections:
        raise UserError(f"{expdir}: no score_*/score.json below it; run stage 13")
    versions = [f"- {name} {metadata.version(name)}" for name in ("espnet", "torch", "jiwer")]
    head = ["# RESULTS", "", f"- python {python_version()}", *versions, "", f"## {expdir}", ""]
    results, content = expdir / "RESULTS.md", "\n".join([*head, *sections.values()]).encode()
    if not results.exists() or results.read_bytes() != content:
        write_atomic(results, content)
    return sections.get("wer", "")


def _row(summary, decimals=1):
    return [summary["snt"], summary["wrd"], *(f"{summary[c]:.{decimals}f}" for c in COLUMNS)]


def _markdown(rows):
    lines = [TITLE, "|---" * 9 + "|"]
    lines += [f"|{_cell(n)}|{'|'.join(str(v) for v in _row(row))}|" for n, row in rows.items()]
    return "\n".join(lines) + "\n"


def _cell(name):
    return name.replace("\\", "\\\\").replace("|", "\\|")  # as Markdown reads it


def _intervals(rows):
    lines = ["|dataset|Err|low|high|drawn|", "|---" * 5 + "|"]
    for name, row in rows.items():
        low, high = row["err_interval_95"]
        lines.append(f"|{_cell(name)}|{row['err']:.2f}|{low:.2f}|{high:.2f}|{row['drawn']}|")
    return "\n".join(lines) + "\n"


def _speaker_table(score, speakers):
    """Return the table per speaker, laid out as sclite's so that its readers find ``Sum/Avg``."""
    members = {}
    for index, utterance in enumerate(score.ids):
        members.setdefault(speakers[utterance], []).append(index)
    rows = [(speaker, _row(score.summary(index))) for speaker, index in sorted(members.items())]
    rows.append(("Sum/Avg", _row(score.summary())))
    width = max(len(name) for name, _ in rows)
    rule = f"|{'-' * (width + 2)}+{'-' * 15}+{'-' * 44}|"
    lines = [f"| {'SPKR':{width}} | # Snt   # Wrd |  Corr    Sub    Del    Ins    Err   S.Err |"]
    for name, (snt, wrd, *rates) in rows:
        if name == "Sum/Avg" or len(lines) == 1:
            lines.append(rule)
        cells = " ".join(f"{rate:>6}" for rate in rates)
        lines.append(f"| {name:{width}} | {snt:>5} {wrd:>7} | {cells} |")
    return "\n".join(lines) + "\n"


def _alignment(score, index, name):
    """Return the three lines REF, HYP, Eval of an utterance, pairs one below the other."""
    correct, substituted, deleted, inserted = score.counts[index]
    lines = [["REF: "], ["HYP: "], ["Eval:"]]
    for kind, ref, hyp in score.alignments[index]:
        for r, h in zip_longest(ref, hyp):
            width = max(len(r or ""), len(h or ""))
            mark = "" if kind == "equal" else kind[0].upper()
            for line, word in zip(lines, (r or "*" * width, h or "*" * width, mark), strict=True):
                line.append(f"{word:{width}}")
    return (
        f"id: {name}\n"
        f"Scores: (#C #S #D #I) {correct} {substituted} {deleted} {inserted}\n"
        + "".join(" ".join(line).rstrip() + "\n" for line in lines)
    )
