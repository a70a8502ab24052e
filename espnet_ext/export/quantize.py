"""8-bit weights of an exported step."""

import tempfile
from pathlib import Path

import onnx

BLOCK = 32  # weights that share a scale
PRODUCTS_IN_INT8 = 4  # inputs are rounded too, a block of a frame at a time; twice as fast as 0


def quantized(model, kind):
    """A copy with the weights of matrix products in 8 bits.

    Args:
        model: From ``to_onnx``.
        kind: ``int8``, a scale for each block of weights and of a frame's inputs, so that a
            stream's result does not depend on its neighbours; or ``int8_dynamic``, one scale for
            the inputs of all streams.
    """
    import logging

    metadata = {p.key: p.value for p in model.metadata_props}
    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    if kind == "int8":
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            onnx.ModelProto.FromString(model.SerializeToString()),
            bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=PRODUCTS_IN_INT8,
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
