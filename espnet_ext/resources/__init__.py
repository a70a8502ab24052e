"""Files that an installed package needs."""

from pathlib import Path

RESOURCES = Path(__file__).parent
#: word error rates that others have published
PUBLISHED_BASELINES = RESOURCES / "published_baselines.yaml"
#: what is measured of a model, where a recipe has no conf/profile.yaml
PROFILE = RESOURCES / "profile.yaml"
