"""What a repository keeps of a trained model, gathered; see ``espnet_ext.report.kept``."""

from pathlib import Path

from espnet_ext.config import read_config
from espnet_ext.errors import UserError
from espnet_ext.evaluate.training import EPOCH
from espnet_ext.files import read_bytes, write_together
from espnet_ext.packing import find_model
from espnet_ext.relocate import beside
from espnet_ext.report import schema
from espnet_ext.report.compare import GRID
from espnet_ext.report.kept import REFERENCES
from espnet_ext.results import read_json, to_json
from espnet_ext.scoring import scored

#: lines of a training's log that are kept from its end
LAST_LINES = 10


def gather(expdir, results, dumpdir="dump", weights=False, checkpoint="valid.acc.ave.pth") -> Path:
    """Copy what is kept of a trained and decoded model.

    Args:
        expdir: Its directory.
        results: Directory of the kept results.
        dumpdir: Formatted data, with the references in ``raw/<test set>``.
        weights: Keep the checkpoint, too, and what it needs.
        checkpoint: File name of the weights.

    Returns:
        The directory that was written.

    Raises:
        UserError: There are no results, one is of no use, or the references are not those of
            the models that are there already. Nothing is written then.
    """
    expdir, results = Path(expdir), Path(results)
    config = read_config(expdir / "config.yaml")
    # as the YAML is called that trained it
    name = Path(config.get("config") or expdir.name).stem.removeprefix("train_asr_")
    target = results / f"seed{config.get('seed', 0)}" / name
    files = {}
    for decoded in scored(expdir):
        place = Path(decoded, "text")
        files[target / place] = read_bytes(expdir / place)
        for table in REFERENCES:
            dataset = Path(*place.parts[1:-1], table)
            content = read_bytes(Path(dumpdir) / "raw" / dataset)
            kept = results / "data" / dataset
            if kept.is_file() and kept.read_bytes() != content:
                raise UserError(f"{expdir}: was decoded on other data than {kept}")
            files[kept] = content
    for file, indent in ((schema.NAME, 1), (GRID, None)):
        if (expdir / file).is_file():
            content = read_json(expdir / file) | {"model": name}
            files[target / file] = to_json(content, indent).encode()
    if not files:
        raise UserError(f"{expdir}: no results; run stages 12 and 13, asr_evaluate or asr_grid")
    files[target / "train.log"] = _log(expdir).encode()
    if weights:
        _, found = find_model(expdir, checkpoint)
        files[target / checkpoint] = read_bytes(found)
        found = beside(config, expdir)
        for path in (found.get("bpemodel"), found.get("normalize_conf", {}).get("stats_file")):
            if path:
                files[target / Path(path).name] = read_bytes(path)
    files[target / "config.yaml"] = read_bytes(expdir / "config.yaml")
    write_together(files)
    return target


def _log(expdir):
    """The lines of the training's logs about its epochs, and the last ones."""
    logs = sorted(expdir.glob("train*.log"), key=lambda path: path.stat().st_mtime)
    lines = [
        line
        for log in logs
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    ]
    last = len(lines) - LAST_LINES
    return "".join(line for n, line in enumerate(lines) if n >= last or EPOCH.search(line))
