"""Pack a trained model, its config and what decoding needs in one archive, as ESPnet does."""

import sys

from espnet2.bin import pack

import espnet_ext  # noqa: F401
from espnet_ext.errors import UserError, cli


@cli
def main(argv=None):
    """Pack the files in ``argv`` (options of ESPnet's ``pack asr``)."""
    try:
        pack.main(["asr", *(sys.argv[1:] if argv is None else argv)])
    except FileNotFoundError as error:
        raise UserError(f"{error}; train and score the model before it is packed") from None


if __name__ == "__main__":
    main()
