"""ESPnet's encoders with a choice of attention, offline and streaming."""

from espnet_ext.encoder.branchformer import BranchformerEncoder
from espnet_ext.encoder.conformer import ConformerEncoder
from espnet_ext.encoder.e_branchformer import EBranchformerEncoder

__all__ = ["BranchformerEncoder", "ConformerEncoder", "EBranchformerEncoder"]
