"""A step as an ONNX file that names nothing of the machine it was made on."""

import logging
import warnings
from contextlib import contextmanager

import onnx
import torch
from onnxscript import opset18 as op
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


def attend(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
    """Scaled dot-product attention in plain operators.

    The exporter's own scales the keys as well as the queries, which copies the whole cache.
    """
    scores = op.MatMul(op.Mul(q, scale), op.Transpose(k, perm=[0, 1, 3, 2]))
    return op.MatMul(op.Softmax(op.Add(scores, attn_mask), axis=-1), v)


@contextmanager
def _quiet():
    """The exporter speaks of packages that nobody asked for, and of its own inner life."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@torch.no_grad()
def to_onnx(step, container, metadata):
    """The graph of a step.

    Args:
        step: A ``Step`` in float32.
        container: Its ``Container``.
        metadata: Name to text, written into the file.

    Returns:
        An ``onnx.ModelProto`` that passes ONNX's full check.
    """
    streams = 2  # with an example of one stream, the file would take one stream alone
    tensors = container.zeros(streams)
    feats = torch.zeros(streams, step.frames, step.encoder.input_size)
    dim = torch.export.Dim("streams")
    dynamic = [{1 if x.dim() > 1 and x.size(0) == 1 else 0: dim} for x in tensors]
    with _quiet():
        made = torch.onnx.export(
            Graph(step, container).eval(),
            (feats, tensors),
            dynamo=True,
            opset_version=OPSET,
            input_names=["feats", *container.names],
            output_names=["log_probs", *(f"next.{name}" for name in container.names)],
            dynamic_shapes=({0: dim}, dynamic),
            custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: attend},
            verbose=False,
        ).model_proto
    return _finished(made, metadata)


def _finished(model, metadata):
    """The file without paths and stack traces, with its metadata, checked."""
    del model.metadata_props[:], model.functions[:]
    graph = model.graph
    del graph.metadata_props[:], graph.value_info[:]
    graph.name, graph.doc_string, model.doc_string = "step", "", ""
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.helper.set_model_props(model, metadata)
    for value in (*graph.input, *graph.output):
        dims = [d.dim_param for d in value.type.tensor_type.shape.dim if d.dim_param]
        if dims != ["streams"]:
            raise RuntimeError(f"{value.name}: takes a fixed number of streams")
    onnx.checker.check_model(model, full_check=True)
    return model
