"""``python -m espnet_ext`` is ``espnet-ext``."""

from espnet_ext.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
