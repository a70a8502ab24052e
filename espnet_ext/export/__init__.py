"""One step of a stream as an ONNX file, for onnxruntime and for sherpa-onnx."""
