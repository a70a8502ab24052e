"""Add this package's classes to the choices of ESPnet's ASR tasks.

ESPnet has no entry points, and importing its ASR task takes many seconds. So the choices are
extended right after ESPnet's own import of the task, whenever that comes; a process that never
trains or decodes never pays for it.

Importing ESPnet also imports torch.compile's machinery, a quarter of the time it takes, for three
functions that are marked as not to be compiled. They are marked when something can be compiled.
One of its modules says on standard error that an optional package is not there; nobody asked.
"""

import contextlib
import functools
import importlib.abc
import importlib.util
import io
import sys
from contextlib import contextmanager

from espnet_ext.registry import Registry

# The names that YAML files use. A new encoder is one file, and one line here.
ENCODERS = Registry(
    {
        "kv_conformer": "espnet_ext.encoder.conformer:ConformerEncoder",
        "kv_branchformer": "espnet_ext.encoder.branchformer:BranchformerEncoder",
        "kv_e_branchformer": "espnet_ext.encoder.e_branchformer:EBranchformerEncoder",
    }
)
FRONTENDS = Registry({"kaldi_fbank": "espnet_ext.frontend:KaldiFbank"})

# ESPnet module -> choices attribute -> what is added to it
CHOICES = {
    task: {
        "encoder_choices": ENCODERS,
        "frontend_choices": FRONTENDS,
        "decoder_choices": Registry({"kv_transformer": "espnet_ext.decoder:TransformerDecoder"}),
        "model_choices": Registry({"kv_distilled": "espnet_ext.convert.distill:DistilledASRModel"}),
    }
    for task in ("espnet2.tasks.asr", "espnet3.systems.esp2_asr.task")
}

# ESPnet modules that mark functions as not to be compiled
UNCOMPILED = (
    "espnet2.legacy.nets.pytorch_backend.nets_utils",
    "espnet2.legacy.nets.pytorch_backend.fastspeech.length_regulator",
    "espnet2.tts.fastspeech2.fastspeech2",
)

# ESPnet module that says, and nothing else, that a package it can do without is not there
CHATTY = ("espnet2.legacy.nets.pytorch_backend.transformer.attention",)


@contextmanager
def _uncompiled_later():
    """``torch.compiler.disable`` takes effect when ``torch.compile`` is there to be kept out."""
    import torch

    disable = torch.compiler.disable

    def disable_later(function):
        marked = None

        @functools.wraps(function)
        def call(*args, **kwargs):
            nonlocal marked
            if marked is None:
                if "torch._dynamo" not in sys.modules:
                    return function(*args, **kwargs)
                marked = disable(function)
            return marked(*args, **kwargs)

        return call

    torch.compiler.disable = disable_later
    try:
        yield
    finally:
        torch.compiler.disable = disable


def extend_choices(task):
    """Add our classes to an imported task, a module that is a key of ``CHOICES``."""
    for attribute, classes in CHOICES[task.__name__].items():
        getattr(task, attribute).classes.update(classes)


class _Importer(importlib.abc.MetaPathFinder):
    """Import finder: ESPnet's tasks load as usual, then get our choices; see also the others."""

    def find_spec(self, name, path=None, target=None):
        if not any(name in names for names in (CHOICES, UNCOMPILED, CHATTY)):
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None:
            load = spec.loader.exec_module

            def exec_module(module):
                if name in UNCOMPILED:
                    with _uncompiled_later():
                        load(module)
                elif name in CHATTY:
                    with contextlib.redirect_stderr(io.StringIO()):
                        load(module)
                else:
                    load(module)
                    extend_choices(module)

            spec.loader.exec_module = exec_module
        return spec


def install():
    """Extend the tasks already imported, and the others when they are. Safe to call again."""
    for name in CHOICES:
        if name in sys.modules:
            extend_choices(sys.modules[name])
    if not any(isinstance(finder, _Importer) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Importer())
