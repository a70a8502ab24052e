"""ESPnet's ASR training and statistics, with the encoders of this package."""

import re

from espnet2.bin import asr_train
from espnet2.tasks import abs_task

import espnet_ext  # noqa: F401  spawned workers need the registration at module level
from espnet_ext.checkpoint import StrictASRTask
from espnet_ext.errors import UserError, cli
from espnet_ext.jobs.training import guard_training
from espnet_ext.options import data_triple

asr_train.ASRTask = StrictASRTask
guard_training(StrictASRTask, __name__)
abs_task.str2triple_str = data_triple  # a path may hold commas


@cli
def main(argv=None):
    """Train, or collect statistics, with ESPnet's options.

    An attention that does not take an option of its ``attention_conf`` is the user's mistake: on
    ESPnet's command line another attention keeps the options that a YAML has for its own.
    """
    try:
        asr_train.main(argv)
    except ValueError as error:
        if not (conf := re.match(r"((?:self_|src_)?attention_conf): \w+ takes ", str(error))):
            raise
        option = f"--{'encoder' if conf[1] == 'attention_conf' else 'decoder'}_conf {conf[1]}"
        raise UserError(
            f"{error}. If that is of a YAML's own attention, clear what the YAML has with "
            f"{option}={{}}, and set options after that, with {option}.KEY=VALUE"
        ) from error


if __name__ == "__main__":
    main()
