"""Names that YAML files use, and the classes they stand for."""

import importlib
from collections.abc import Iterator, MutableMapping


class Registry(MutableMapping[str, type]):
    """Names to classes, in their order; a class is imported when it is asked for.

    So a command may list the names without importing PyTorch and ESPnet.

    Args:
        targets: Name to a class, or to where it is, as ``module:class``. Also an attribute.
    """

    def __init__(self, targets: dict[str, str | type]):
        self.targets = dict(targets)

    def __getitem__(self, name: str) -> type:
        target = self.targets[name]
        if isinstance(target, str):
            module, _, cls = target.partition(":")
            target = self.targets[name] = getattr(importlib.import_module(module), cls)
        return target

    def __setitem__(self, name: str, target: str | type) -> None:
        self.targets[name] = target

    def __delitem__(self, name: str) -> None:
        del self.targets[name]

    def __contains__(self, name: object) -> bool:
        return name in self.targets

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)
