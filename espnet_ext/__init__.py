"""Attention variants with measured streaming caches for ESPnet's encoders.

``import espnet_ext`` is light; it makes ``kv_conformer``, ``kv_branchformer`` and
``kv_e_branchformer`` known to ESPnet as soon as ESPnet's ASR task is imported, before or after.
"""

from espnet_ext import register

__version__ = "0.1.0"

register.install()
