"""What can be wrong with a file, by what it is; each illness is drawn anew every time.

An illness is a function of the file's bytes and a ``random.Random`` that returns other bytes.
"""

import copy
import io
import json
import math
import re
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import yaml

BOMB = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)

# any file


def nothing(content, draw):
    return b""


def cut(content, draw):
    return content[: draw.randrange(max(1, len(content)))]


def flipped(content, draw):
    at = draw.randrange(max(1, len(content)))
    return (
        content[:at]
        + bytes(b ^ 1 << draw.randrange(8) for b in content[at : at + 1])
        + content[at + 1 :]
    )


def noise(content, draw):
    return draw.randbytes(300)


def zeros(content, draw):
    return bytes(len(content))


ANY = [nothing, cut, flipped, noise, zeros]

# text in lines


def _text(content):
    return content.decode(errors="replace")


def latin(content, draw):
    at = draw.randrange(len(content) + 1)
    return content[:at] + "é".encode("latin-1") + content[at:]


def control(content, draw):
    at = draw.randrange(len(content) + 1)
    return content[:at] + draw.choice([b"\0", b"\x1b[2J", b"\r", b"\x07"]) + content[at:]


def marked(content, draw):
    return b"\xef\xbb\xbf" + content


def carriage_returns(content, draw):
    return content.replace(b"\n", b"\r\n")


def unseen(content, draw):
    at = draw.randrange(len(content) + 1)
    mark = draw.choice(["\u200b", "\u00a0", "\u0301", "\u202e", "\ufeff", "\u2028"])
    return content[:at] + mark.encode() + content[at:]


def decomposed(content, draw):
    return unicodedata.normalize("NFD", "é" + _text(content)).encode()


def line(content, draw):
    """One line is missing, there twice, blank, of one word, moved, or very long."""
    rows = _text(content).split("\n")
    n = draw.randrange(len(rows))
    new = draw.choice(
        [
            [],
            [rows[n]] * 2,
            ["", rows[n]],
            [rows[n].split(" ")[0]],
            [rows[n] + " x"],
            [rows[n] * 9999],
        ]
    )
    rows[n : n + 1] = new
    return "\n".join(rows).encode()


def column(content, draw):
    """One word of a table is another."""
    words = re.split(r"(\s+)", _text(content))
    words[draw.randrange(len(words))] = draw.choice(
        [
            "x",
            "-1",
            "nan",
            "1e999",
            "../x",
            "/",
            "",
            "|",
            "cat x |",
            "a.ark:5",
            "<sos/eos>",
            "0" * 5000,
        ]
    )
    return "".join(words).encode()


TEXT = [*ANY, latin, control, marked, carriage_returns, unseen, decomposed, line, column]

# YAML and JSON

ILL = [
    *(None, "", "abc", 0, -1, 1.5, True, [], {}, [1], {"a": 1}, [[]], 10**12, -(10**12)),
    *(10**30, math.inf, math.nan, "x" * 9999, "../x", "/dev/zero", [None], {"": None}, 3, "1"),
]


def places(tree, path=()):
    """The way to every value of nested mappings and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def changed(tree, draw):
    """A tree with one value replaced or missing, or with a key more."""
    tree = copy.deepcopy(tree)
    ways = list(places(tree))
    if not ways or draw.random() < 0.02:
        return copy.deepcopy(draw.choice(ILL))
    if draw.random() < 0.5:  # what is on top, or just below, is used most
        ways = [way for way in ways if len(way) < 3]
    *above, key = draw.choice(ways)
    inside = tree
    for name in above:
        inside = inside[name]
    how = draw.random()
    if how < 0.2:
        del inside[key]
    elif how < 0.25 and isinstance(inside, dict):
        inside["unknown"] = 1
    else:
        inside[key] = copy.deepcopy(draw.choice(ILL))
    return tree


def yaml_tree(content, draw):
    return yaml.safe_dump(changed(yaml.safe_load(content), draw)).encode()


def yaml_odd(content, draw):
    return draw.choice(
        [
            f"{BOMB}encoder: *a11\n",
            "a: " + "[" * 1000,
            "a: &a [*a]\n",
            "- 1\n",
            "1: a\n",
            "encoder_conf:\n",
            "a: !!python/object/apply:os.system ['touch pwned']\n",
            f"x: {'y' * 2**24}",
            f"a: {'9' * 5000}\n",
            "a: 2024-13-45\n",
        ]
    ).encode()


def json_tree(content, draw):
    return json.dumps(changed(json.loads(content), draw)).encode()


def json_odd(content, draw):
    return draw.choice([b"[" * 10**5, b"1" * 5000, b'"\xed\xa0\x80"', b"null", b'{"version": 2}'])


# arrays and tensors


def arrays(content, draw):
    """Statistics of features without an array, or with one of another shape or kind."""
    found = dict(np.load(io.BytesIO(content)))
    name = draw.choice(list(found))
    one = np.asarray(found[name])
    found[name] = draw.choice(
        [
            one * math.nan,
            one * 0,
            -one,
            one.astype(str),
            np.array([None, {}]),
            np.append(one, 1),
            one[None],
            one.astype(complex),
            np.zeros(0),
        ]
    )
    if draw.random() < 0.2:
        del found[name]
    made = io.BytesIO()
    np.savez(made, **found)
    return made.getvalue()


def tensors(content, draw):
    """A checkpoint that holds other things than the tensors of its model."""
    good = torch.load(io.BytesIO(content), weights_only=True)
    name = draw.choice(list(good))
    one = good[name]
    others = [
        one[None],
        one.flatten()[:1],
        one * math.nan,
        one.to(torch.complex64),
        one.to_sparse(),
    ]
    others += [one.bool(), one.tolist(), None, 3, str(one), {name: one}]
    value = draw.choice(
        [
            [1, 2],
            one,
            {},
            None,
            {1: one},
            {"model": good, "optimizers": []},
            {"state_dict": {}},
            {"module": {"state_dict": 3}},
            {"a": print},
            {n: x for n, x in good.items() if n != name},
            {f"x{n}": x for n, x in good.items()},
            good | {"new": one},
            *(good | {name: other} for other in others),
        ]
    )
    made = io.BytesIO()
    torch.save(value, made)
    return made.getvalue()


# recordings


def recording(content, draw):
    """Another recording than asked for."""
    samples, rate = sf.read(io.BytesIO(content), dtype="float32", always_2d=True)
    kind = draw.choice(["WAV", "FLAC", "AIFF", "OGG", "MP3", "W64", "CAF"])
    subtype = None
    how = draw.choice(["rate", "channels", "nothing", "short", "nan", "same"])
    if how == "rate":
        kind, rate = draw.choice([("WAV", 1), ("WAV", 999983), ("WAV", 11025), ("FLAC", 48000)])
    elif how == "channels":
        kind, samples = "WAV", np.repeat(samples, draw.choice([2, 255]), axis=1)
    elif how == "nothing":
        kind, samples = "WAV", samples[:0]
    elif how == "short":
        kind, samples = "WAV", samples[:3]
    elif how == "nan":
        kind, subtype = "WAV", "DOUBLE"
        samples = samples.astype(float)
        samples[draw.randrange(len(samples))] = draw.choice([math.nan, math.inf, 1e300])
    made = io.BytesIO()
    sf.write(made, samples, rate, format=kind, subtype=subtype)
    return made.getvalue()


def header(content, draw):
    """A header that lies."""
    at = draw.randrange(4, min(44, len(content)))
    return content[:at] + draw.randbytes(draw.choice([1, 2, 4])) + content[at + 4 :]


def container(content, draw):
    return draw.choice(
        [
            b"\0\0\0 ftypM4A " + bytes(2000),
            b"\x1aE\xdf\xa3" + bytes(2000),
            b"ID3" + bytes(500),
            b"RIFF" + bytes(40),
            b"fLaC" + bytes(400),
            b"OggS" + bytes(400),
        ]
    )


# archives


def zipped(content, draw):
    """A packed model with a member more, less or another."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(members))
    how = draw.choice(
        ["less", "tree", "odd", "more", "link", "bomb", "twice", "compressed", "locked"]
    )
    made, kind = io.BytesIO(), zipfile.ZIP_STORED
    if how == "less":
        del members[name]
    elif how == "tree":
        name = draw.choice([n for n in members if n.endswith(".yaml")])
        members[name] = yaml_tree(members[name], draw)
    elif how == "odd":
        members[name] = draw.choice([b"", b"\xff", BOMB.encode(), b"- 1"])
    elif how == "more":
        members[draw.choice(["../x", "/tmp/x", "a\nb", "a/../../x", "meta.yaml/x", "x" * 300])] = (
            b"y"
        )
    elif how == "bomb":
        kind, members["bomb"] = zipfile.ZIP_DEFLATED, bytes(2**24)
    with zipfile.ZipFile(made, "w", kind) as archive:
        for one, data in members.items():
            info = zipfile.ZipInfo(one)
            if how == "link" and one == name:
                info.create_system, info.external_attr, data = 3, 0o120777 << 16, b"/etc/passwd"
            archive.writestr(info, data, kind)
        if how == "twice":
            archive.writestr(name, b"another")
    made = made.getvalue()
    if how in ("compressed", "locked"):  # in the list of members, by a method that is unknown
        offset, value = (10, 99) if how == "compressed" else (8, 1)
        at = made.index(b"PK\x01\x02") + offset
        made = made[:at] + bytes([value]) + made[at + 1 :]
    return made


def tarred(content, draw):
    """An archive with a member more, less or another."""
    made = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as old,
        tarfile.open(fileobj=made, mode="w:gz") as new,
    ):
        members = old.getmembers()
        one = draw.choice(members)
        how = draw.choice(["less", "link", "hard", "outside", "device", "name", "pipe"])
        for member in members:
            if member is one:
                if how == "less":
                    continue
                if how in ("outside", "name"):
                    kinds = {"outside": ["../x", "/tmp/x"], "name": ["x" * 300, "a\nb", "é"]}
                    member.name = draw.choice(kinds[how])
                elif how != "less":
                    types = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}
                    types |= {"device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE}
                    member.type, member.size = types[how], 0
                    member.linkname = draw.choice(["/etc/passwd", "../../..", member.name, ""])
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
    return made.getvalue()


#: the last suffix, or the whole name, of a file -> what may be wrong with it
KINDS = {
    ".yaml": [*TEXT, *[yaml_tree] * 12, yaml_odd],
    ".json": [*TEXT, *[json_tree] * 12, json_odd],
    ".npz": [*ANY, *[arrays] * 4],
    ".pth": [*ANY, *[tensors] * 6],
    ".zip": [*ANY, *[zipped] * 6],
    ".gz": [*ANY, *[tarred] * 6],
    ".model": ANY,
    **dict.fromkeys([".wav", ".flac", ".WAV"], [*ANY, *[recording] * 4, *[header] * 3, container]),
}


def of(path):
    """The illnesses of a file."""
    return KINDS.get(Path(path).suffix, TEXT)
