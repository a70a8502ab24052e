"""Tensors of a stream's past in the order and the shapes that sherpa-onnx asks for.

Its loader of streaming Zipformer2 CTC models takes six tensors per encoder layer, whose sizes the
file's metadata gives, then one of a fixed shape, then a counter. It binds them by their order,
fills them with zeros before a stream begins, and hands each step's outputs to the next; what is in
them is the graph's own affair. So each layer's cache has a tensor to itself, and no step takes
apart or puts together one large one.
"""

import math

import torch

#: encoder_dims of the metadata: the least that leaves no tensor of that size empty
ENCODER_DIM = 2
#: of the tensor after the layers
FIXED = (128, 3, 19)


class Container:
    """Where the tensors of a stream's past are, layer by layer.

    Keys and values, which are of one size, have a tensor each; any other attention has all of its
    own in one. The past of the convolutions is cut in two halves. What is left over is the least
    that the loader allows; the first such tensor says how many frames of the last chunk are padding
    (sherpa-onnx pads nothing, so it says 0).

    Args:
        shapes: ``Step.shapes``.
    """

    def __init__(self, shapes):
        self.shapes = shapes
        self.layers = [self._slots(layer) for layer in shapes]
        #: names of the tensors, in their order
        self.names = [f"layer{i}.{s[0]}" for i, layer in enumerate(self.layers) for s in layer]
        self.names[1] = "padding"
        self.names += ["unused", "frames"]

    @staticmethod
    def _slots(shapes):
        """(name, names of the parts, their values, values) for each of a layer's six tensors."""
        own = {name: math.prod(shape) for name, shape in shapes.items() if "." not in name}
        past = {name: math.prod(shape) for name, shape in shapes.items() if name not in own}
        pair = len(own) == 2 and len(set(own.values())) == 1
        parts = [[name] for name in own] if pair else [[], []]
        one = [] if pair else list(own)
        half = max(1, -(-sum(past.values()) // (2 * ENCODER_DIM))) * ENCODER_DIM
        value = max(1, max(own.values())) if pair else 1
        slots = [
            (one, max(1, sum(own[name] for name in one))),
            ([], 1),
            (parts[0], value),
            (parts[1], value),
            (["convolution"] if past else [], half),
            (["convolution"] if past else [], half),
        ]
        names = ["_".join(names) or f"unused{i}" for i, (names, _) in enumerate(slots)]
        if past:
            names[4:] = ["convolution.first", "convolution.second"]
        return [(name, names_, size) for name, (names_, size) in zip(names, slots, strict=True)]

    def sizes(self, slot):
        """Values of one slot, layer by layer."""
        return [layer[slot][2] for layer in self.layers]

    def metadata(self, frames, shift):
        """What sherpa-onnx reads from the file.

        Args:
            frames: Feature frames of a step.
            shift: Feature frames from one step to the next.
        """
        layers = len(self.layers)

        def listed(values):
            return ",".join(map(str, values))

        return {
            "model_type": "zipformer2",
            "encoder_dims": listed([ENCODER_DIM] * layers),
            "query_head_dims": listed(self.sizes(0)),
            "value_head_dims": listed(self.sizes(2)),
            "num_heads": listed([1] * layers),
            "num_encoder_layers": listed([1] * layers),
            "cnn_module_kernels": listed(2 * size // ENCODER_DIM for size in self.sizes(4)),
            "left_context_len": listed([1] * layers),
            "T": str(frames),
            "decode_chunk_len": str(shift),
        }

    def zeros(self, streams):
        """Tensors of streams that have not begun."""
        tensors = []
        for layer in self.layers:
            sizes = [size for _, _, size in layer]
            tensors += [
                torch.zeros(1, streams, sizes[0]),
                torch.zeros(1, streams, 1, 1),
                torch.zeros(1, streams, sizes[2]),
                torch.zeros(1, streams, sizes[3]),
                torch.zeros(streams, ENCODER_DIM, sizes[4] // ENCODER_DIM),
                torch.zeros(streams, ENCODER_DIM, sizes[5] // ENCODER_DIM),
            ]
        return [*tensors, torch.zeros(streams, *FIXED), torch.zeros(streams, dtype=torch.int64)]

    def unpack(self, tensors):
        """Pasts as ``Step`` takes them, its frames so far, and its padding."""
        pasts = []
        for i, shapes in enumerate(self.shapes):
            slots = tensors[6 * i : 6 * i + 6]
            past = {}
            for tensor, (_, names, _) in zip(slots[:4], self.layers[i], strict=False):
                past |= _cut(tensor.flatten(0, 1), {name: shapes[name] for name in names})
            convolutions = {name: s for name, s in shapes.items() if name not in past}
            halves = torch.cat([x.flatten(1) for x in slots[4:]], dim=1)
            pasts.append(past | _cut(halves, convolutions))
        return pasts, tensors[-1], tensors[1].flatten()

    def pack(self, pasts, tensors, n):
        """The tensors after a step of n frames.

        Args:
            pasts: From ``Step``.
            tensors: Those before the step; what is not used stays as it is.
        """
        packed = list(tensors)
        for i, past in enumerate(pasts):
            for j, (_, names, _) in enumerate(self.layers[i][:4]):
                if names and all(past[name] is not None for name in names):
                    packed[6 * i + j] = _joined([past[name] for name in names])[None]
            convolutions = [x for name, x in past.items() if "." in name]
            if convolutions:
                flat = _joined(convolutions)
                half = self.layers[i][4][2]
                flat = torch.nn.functional.pad(flat, (0, 2 * half - flat.size(1)))
                for j, part in enumerate(flat.split(half, dim=1), 4):
                    packed[6 * i + j] = part.unflatten(1, (ENCODER_DIM, -1))
        packed[-1] = tensors[-1] + n
        return packed


def _cut(flat, shapes):
    """Tensors (B, ...) out of one (B, values), in the order of their shapes; None for empty."""
    found, start = {}, 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        part = flat if (start, stop) == (0, flat.size(1)) else flat[:, start:stop]
        found[name] = part.unflatten(1, shape) if stop > start else None
        start = stop
    return found


def _joined(tensors):
    flat = [x.flatten(1) for x in tensors]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
