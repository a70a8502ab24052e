"""Names that YAML files use, and the classes they stand for."""

import importlib
from collections import UserDict
from typing import Any


class Registry(UserDict):
    """Names to classes, in their order.

    A value is a class, or says where it is as ``module:class`` and is imported when it is asked
    for. So a command may list the names without importing PyTorch and ESPnet.
    """

    def __getitem__(self, name: str) -> Any:
        target = self.data[name]
        if isinstance(target, str):
            module, _, cls = target.partition(":")
            target = self.data[name] = getattr(importlib.import_module(module), cls)
        return target
