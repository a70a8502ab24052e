"""ESPnet's perplexity of a language model on a text."""

from espnet2.bin.lm_calc_perplexity import main

import espnet_ext  # noqa: F401

if __name__ == "__main__":
    main()
