"""ESPnet's language model training and statistics."""

from espnet2.bin import lm_train

import espnet_ext  # noqa: F401
from espnet_ext.errors import cli
from espnet_ext.jobs.training import guard_training

guard_training(lm_train.LMTask, __name__)
main = cli(lm_train.main)

if __name__ == "__main__":
    main()
