#!/usr/bin/env python3
"""Lay evaluated models side by side; see ``python -m espnet_ext.bin.asr_compare --help``."""

from espnet_ext.bin.asr_compare import main

if __name__ == "__main__":
    main()
