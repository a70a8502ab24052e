"""Names that YAML files use, and the classes they stand for."""

import importlib
from collections.abc import Iterator, MutableMapping


class Registry(MutableMapping[str, type]):
    """Names to classes, in their order; a class is imported when it is asked for.

    So a command may list the names without importing PyTorch and ESPnet.

    Args:
        targets: Name to a class, or to where it is, as ``module:class``.
    """

    def __init__(self, targets: dict[str, str | type]):
        self._targets = dict(targets)

    def __getitem__(self, name: str) -> type:
        target = self._targets[name]
        if isinstance(target, str):
            module, _, cls = target.partition(":")
            target = self._targets[name] = getattr(importlib.import_module(module), cls)
        return target

    def __setitem__(self, name: str, target: str | type) -> None:
        self._targets[name] = target

    def __delitem__(self, name: str) -> None:
        del self._targets[name]

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)
