"""Convert one model in many ways, decode each as it is and after fine-tuning."""

from dataclasses import asdict
from pathlib import Path

from espnet_ext.convert.model import Request, convert_model
from espnet_ext.errors import UserError
from espnet_ext.evaluate.driver import Driver, Model
from espnet_ext.evaluate.models import read_model_config
from espnet_ext.jobs import markers
from espnet_ext.relocate import data_table


def requests(ranks, budgets, groups, calibration_scp, num_utts: int) -> dict[str, Request]:
    """The conversions of a sweep by name, in the order of its table.

    Args:
        ranks: ``kv_lora_rank`` of MLA, each plain and activation-aware.
        budgets: KB of 1000 frames, for MLA with a rank per layer.
        groups: ``n_kv_head`` of GQA, each of neighbouring and of similar heads.
        calibration_scp: Recordings of what is fitted to layer inputs.
        num_utts: How many of them.
    """
    aware = {"calibration_scp": calibration_scp, "num_utts": num_utts}
    found = {}
    for rank in ranks:
        conf = {"kv_lora_rank": rank}
        found[f"mla_{rank}_plain"] = Request("mla", conf)
        found[f"mla_{rank}_aware"] = Request("mla", conf, **aware)
    for kb in budgets:
        found[f"mla_{kb:g}kb_aware"] = Request("mla", budget_kb=kb, **aware)
    for heads in groups:
        conf = {"n_kv_head": heads}
        found[f"gqa_{heads}"] = Request("gqa", conf)
        found[f"gqa_{heads}_similar"] = Request("gqa", conf, similar=True, **aware)
    return found


def sweep(
    driver: Driver, source, expdir, requested, finetune=(), options=(), scratch=()
) -> list[Model]:
    """Convert, decode and fine-tune; what is there is kept, and what fails stops no other.

    Args:
        driver: Of the recipe, whose settings say how each is decoded.
        source: Directory of the model to convert, which is decoded too.
        expdir: Where the conversions go.
        requested: See ``requests``.
        finetune: Names of those to fine-tune too, or ``all`` of them; ``source`` is the model to
            convert, which says what more training is worth by itself.
        options: Of ``run.sh``, for the fine-tuning.
        scratch: Directories of models that were trained without a conversion, to decode as well.

    Returns:
        Those of ``scratch``, the fine-tuned source, and the conversions, each followed by its
        fine-tuned one; ``failure`` says what went wrong.

    Raises:
        UserError: A name is unknown, or the model to convert cannot be decoded.
    """
    if unknown := [name for name in finetune if name not in (*requested, "source", "all")]:
        raise UserError(f"--finetune {unknown[0]}: is none of {' '.join(requested)} source all")
    driver.begin(original := Model(source.name, expdir=source), f"Decoding {source}")
    driver.decode([original])
    if original.failure:
        raise UserError(original.failure)
    models = [Model(path.name, expdir=path) for path in scratch]
    for model in models:
        driver.begin(model, f"Decoding {model.expdir}")
        driver.decode([model])

    def tune(name, start):
        models.append(tuned := Model(f"{name}_tuned", expdir=expdir / f"asr_{name}_tuned"))
        driver.begin(tuned, f"{name}: fine-tuning")
        tuned.expdir.mkdir(parents=True, exist_ok=True)
        driver.run([tuned], "--stage", 10, "--stop_stage", 11, "--init_from", start, *options)
        driver.decode([tuned])

    if "source" in finetune:
        tune("source", source)
    for name, request in requested.items():
        models.append(model := Model(name, expdir=expdir / f"asr_{name}"))
        driver.begin(model, name)
        driver.attempt(model, _convert, source, request, driver.settings.inference_asr_model)
        driver.decode([model])
        if (name in finetune or "all" in finetune) and not model.failure:
            tune(name, model.expdir)
    return models


def _convert(model, source, request, checkpoint):
    output, marker = model.expdir, model.expdir / ".done"
    if output.is_dir():
        if changed := markers.changed(marker):
            raise UserError(f"{output} was converted before {changed} changed: remove it")
        return
    options = "\n".join(f"{key}={value}" for key, value in asdict(request).items())
    inputs = [source / "config.yaml", source / checkpoint]
    work = markers.prepare(
        options, map(str, inputs), ["config.yaml", "conversion.json", checkpoint]
    )
    convert_model(source, output, request, checkpoint)
    markers.write(marker, work)


def calibration_recordings(source) -> str:
    """The recordings that a model was validated on."""
    found = data_table(read_model_config(Path(source) / "config.yaml"), "valid")
    if not Path(found).is_file():
        raise UserError(f"--calibration_scp is needed: {source}/config.yaml does not say it")
    return found
