"""8-bit weights of an exported step."""

import tempfile
from pathlib import Path

import onnx

BLOCK = 32  # weights that share a scale


def quantized(model, kind):
    """A copy with the weights of matrix products in 8 bits.

    Args:
        model: From ``to_onnx``.
        kind: ``int8``, a scale for each block of weights, so that a stream's result does not depend
            on its neighbours; or ``int8_dynamic``, where the inputs of a product are rounded to 8
            bits as well, on one scale for all streams.
    """
    import logging

    metadata = {p.key: p.value for p in model.metadata_props}
    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    if kind == "int8":
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            onnx.ModelProto.FromString(model.SerializeToString()),
            bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=0,
        )  # fmt: skip
        quantizer.process()
        made = quantizer.model.model
    else:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in ("float32.onnx", "int8.onnx")]
            onnx.save(model, paths[0])
            two_dim = {i.name for i in model.graph.initializer if len(i.dims) == 2}
            nodes = [
                n.name
                for n in model.graph.node
                if n.op_type in ("MatMul", "Gemm") and n.input[1] in two_dim
            ]
            quantize_dynamic(
                *paths, weight_type=QuantType.QInt8, nodes_to_quantize=nodes,
                op_types_to_quantize=["MatMul"],
            )  # fmt: skip
            made = onnx.load(paths[1])
    del made.metadata_props[:]
    onnx.helper.set_model_props(made, metadata)
    return made
