"""Add this package's classes to the choices of ESPnet's ASR tasks.

ESPnet has no entry points, and importing its ASR task takes many seconds. So the choices are
extended right after ESPnet's own import of the task, whenever that comes; a process that never
trains or decodes never pays for it.
"""

import importlib
import importlib.abc
import importlib.util
import sys

# ESPnet module -> choices attribute -> name in YAML -> our class as module:class
CHOICES = {
    task: {
        "encoder_choices": {
            "kv_conformer": "espnet_ext.encoder:ConformerEncoder",
            "kv_branchformer": "espnet_ext.encoder:BranchformerEncoder",
            "kv_e_branchformer": "espnet_ext.encoder:EBranchformerEncoder",
        },
        "decoder_choices": {"kv_transformer": "espnet_ext.decoder:TransformerDecoder"},
        "model_choices": {"kv_distilled": "espnet_ext.convert.distill:DistilledASRModel"},
    }
    for task in ("espnet2.tasks.asr", "espnet3.systems.esp2_asr.task")
}


def extend_choices(task):
    """Add our classes to an imported ESPnet task module.

    Args:
        task: The module object of one of the keys of ``CHOICES``.
    """
    for attribute, classes in CHOICES[task.__name__].items():
        for name, target in classes.items():
            module, _, cls = target.partition(":")
            getattr(task, attribute).classes[name] = getattr(importlib.import_module(module), cls)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Import finder that lets ESPnet's tasks load as usual, then extends their choices."""

    def find_spec(self, name, path=None, target=None):
        if name not in CHOICES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None:
            load = spec.loader.exec_module

            def exec_module(module):
                load(module)
                extend_choices(module)

            spec.loader.exec_module = exec_module
        return spec


def install():
    """Extend the tasks already imported, and the others when they are. Safe to call again."""
    for name in CHOICES:
        if name in sys.modules:
            extend_choices(sys.modules[name])
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
