"""ESPnet's language model training and statistics."""

from espnet2.bin import lm_train
from espnet2.tasks import abs_task

import espnet_ext  # noqa: F401
from espnet_ext.checkpoint import StrictLMTask
from espnet_ext.errors import cli
from espnet_ext.jobs.training import guard_training
from espnet_ext.options import data_triple

lm_train.LMTask = StrictLMTask
guard_training(StrictLMTask, __name__)
abs_task.str2triple_str = data_triple  # a path may hold commas
main = cli(lm_train.main)

if __name__ == "__main__":
    main()
