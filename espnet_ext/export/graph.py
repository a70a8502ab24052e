"""A step as an ONNX file."""

import io
import warnings

import torch
from torch import nn

OPSET = 18


class Graph(nn.Module):
    """A step whose past is in the tensors of a ``Container``."""

    def __init__(self, step, container):
        super().__init__()
        self.step, self.container = step, container

    def forward(self, feats, tensors):
        """Features (B, T, n_mels) and the tensors -> log probabilities and the tensors after."""
        log_probs, pasts = self.step(feats, *self.container.unpack(tensors))
        return log_probs, *self.container.pack(pasts, tensors, self.step.chunk_size)


def attention_operators():
    """Scaled dot-product attention as plain operators, the keys neither scaled nor copied.

    The exporter's own scales queries and keys alike, so that a step would copy the whole cache.
    """
    from onnxscript import opset18 as op

    def attend(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        scores = op.MatMul(op.Mul(q, scale), op.Transpose(k, perm=[0, 1, 3, 2]))
        return op.MatMul(op.Softmax(op.Add(scores, attn_mask), axis=-1), v)

    return {torch.ops.aten.scaled_dot_product_attention.default: attend}


@torch.no_grad()
def to_onnx(graph):
    import onnx

    step, container = graph.step, graph.container
    # with an example of one stream the file would take one stream alone
    streams = 2
    tensors = container.zeros(streams)
    feats = torch.zeros(streams, step.frames, step.encoder.input_size)
    dim = torch.export.Dim("streams")
    on = [{x.shape.index(streams, 1 if x.dim() > 1 and x.size(0) == 1 else 0): dim} for x in tensors]
    program = torch.onnx.export(
        graph.eval(),
        (feats, tensors),
        dynamo=True,
        opset_version=OPSET,
        input_names=["feats", *container.names],
        output_names=["log_probs", *(f"next.{name}" for name in container.names)],
        dynamic_shapes=({0: dim}, on),
        custom_translation_table=attention_operators(),
        verbose=False,
    )
    return program.model_proto
