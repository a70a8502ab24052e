"""Configurations: YAML files of options."""

from pathlib import Path

import yaml

from espnet_ext.errors import UserError


def read_yaml(path) -> dict:
    """Mapping in a YAML file.

    Raises:
        UserError: The file is unreadable or no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of options")
    return content
