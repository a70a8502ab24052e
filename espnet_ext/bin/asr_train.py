"""ESPnet's ASR training and statistics, with the encoders of this package."""

from espnet2.bin.asr_train import ASRTask, main

import espnet_ext  # noqa: F401  spawned workers need the registration at module level
from espnet_ext.jobs.training import guard_training

guard_training(ASRTask, __name__)

if __name__ == "__main__":
    main()
