"""ESPnet's perplexity of a language model on a text."""

from espnet2.bin import lm_calc_perplexity

import espnet_ext  # noqa: F401
from espnet_ext.checkpoint import StrictLMTask
from espnet_ext.errors import cli
from espnet_ext.jobs.training import guard_data
from espnet_ext.options import data_triple

lm_calc_perplexity.LMTask = StrictLMTask
guard_data(StrictLMTask)
lm_calc_perplexity.str2triple_str = data_triple  # a path may hold commas
main = cli(lm_calc_perplexity.main)

if __name__ == "__main__":
    main()
