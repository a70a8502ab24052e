"""ESPnet's ASR training and statistics, with the encoders of this package."""

from espnet2.bin import asr_train
from espnet2.tasks import abs_task

import espnet_ext  # noqa: F401  spawned workers need the registration at module level
from espnet_ext.errors import cli
from espnet_ext.jobs.training import guard_training
from espnet_ext.options import data_triple

guard_training(asr_train.ASRTask, __name__)
abs_task.str2triple_str = data_triple  # a path may hold commas
main = cli(asr_train.main)

if __name__ == "__main__":
    main()
