"""ESPnet's language model training and statistics."""

from espnet2.bin.lm_train import LMTask, main

import espnet_ext  # noqa: F401
from espnet_ext.jobs.training import guard_training

guard_training(LMTask, __name__)

if __name__ == "__main__":
    main()
