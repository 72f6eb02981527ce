"""What the coder of graphs knows before it reads one: common operators of ONNX as exporters write them.

The text is read line by line into the fields of one model. It belongs to version 1 of .mira and must not change.
"""

from __future__ import annotations

import functools
import struct

from mirabelle.artifact.wire import Fields

# input NAME SIZES | output NAME SIZES | OPERATOR inputs > outputs [attribute=value …] | tensor NAME TYPE SIZES | meta KEY VALUE
PRIMER = """
input input batch,1,8,8
input input batch,3,16,16
input input_ids batch,sequence
input attention_mask batch,sequence
Cast conv1.codes > conv1:0 to=6
Gather conv1.values conv1:0 > conv1:1
Conv input conv1:1 conv1.bias > conv1 group=1 pads=0,0,0,0 auto_pad=NOTSET strides=1,1 dilations=1,1 kernel_shape=5,5
MaxPool conv1 > pool1 storage_order=0 dilations=1,1 ceil_mode=0 pads=0,0,0,0 auto_pad=NOTSET strides=2,2 kernel_shape=2,2
Cast conv2.codes > conv2:0 to=6
Gather conv2.values conv2:0 > conv2:1
Conv pool1 conv2:1 conv2.bias > conv2 group=1 pads=1,1,1,1 auto_pad=NOTSET strides=1,1 dilations=1,1 kernel_shape=3,3
Relu conv2 > relu1
MaxPool relu1 > pool2 storage_order=0 dilations=1,1 ceil_mode=0 pads=0,0,0,0 auto_pad=NOTSET strides=2,2 kernel_shape=2,2
Reshape pool2 val_5 > flatten allowzero=1
Cast fc1.codes > fc1:0 to=6
Gather fc1.values fc1:0 > fc1:1
Gemm flatten fc1:1 fc1.bias > fc1 beta=1.0 transB=1 alpha=1.0 transA=0
Relu fc1 > relu2
Cast fc2.codes > fc2:0 to=6
Gather fc2.values fc2:0 > fc2:1
Gemm relu2 fc2:1 fc2.bias > fc2 beta=1.0 transB=1 alpha=1.0 transA=0
Conv input layers.0.conv.weight layers.0.conv.bias > layers.0.conv group=1 pads=1,1,1,1 auto_pad=NOTSET \
strides=2,2 dilations=1,1 kernel_shape=3,3
Relu layers.0.conv > layers.0.relu
Conv layers.0.relu layers.1.conv.weight layers.1.conv.bias > layers.1.conv group=1 auto_pad=NOTSET \
strides=1,1 dilations=1,1 kernel_shape=1,1 pads=0,0,0,0
Add layers.1.conv layers.0.relu > layers.1:0
Relu layers.1:0 > layers.1.relu
BatchNormalization layers.1.relu bn1.weight bn1.bias bn1.running_mean bn1.running_var > bn1 momentum=0.9 epsilon=1e-5
AveragePool bn1 > avgpool count_include_pad=1 ceil_mode=0 pads=0,0,0,0 auto_pad=NOTSET strides=2,2 kernel_shape=2,2
GlobalAveragePool avgpool > mean
Reshape mean val_8 > flatten:0 allowzero=1
Gemm flatten:0 fc.weight fc.bias > fc beta=1.0 transB=1 alpha=1.0 transA=0
QuantizeLinear fc fc3.input_scale fc3.input_zero_point > fc3:0 axis=1
DequantizeLinear fc3:0 fc3.input_scale fc3.input_zero_point > fc3:1 axis=1
DequantizeLinear fc3.bias_codes fc3.bias_scale val_14 > fc3:2 axis=0
DequantizeLinear fc3.codes fc3.scale val_14 > fc3:3 axis=0
Gemm fc3:1 fc3:3 fc3:2 > fc3 beta=1.0 transB=1 alpha=1.0 transA=0
Relu fc3 > relu3
QuantizeLinear relu3 fc4.input_scale fc4.input_zero_point > fc4:0 axis=1
DequantizeLinear fc4:0 fc4.input_scale fc4.input_zero_point > fc4:1 axis=1
DequantizeLinear fc4.bias_codes fc4.bias_scale val_14 > fc4:2 axis=0
DequantizeLinear fc4.codes fc4.scale val_14 > fc4:3 axis=0
Gemm fc4:1 fc4:3 fc4:2 > output_0 beta=1.0 transB=1 alpha=1.0 transA=0
Gather embeddings.weight input_ids > embeddings:0 axis=0
Add embeddings:0 attention_mask > embeddings
LayerNormalization embeddings norm.weight norm.bias > norm stash_type=1 epsilon=1e-5 axis=-1
DynamicQuantizeLinear norm > linear:0 linear:1 linear:2
MatMulInteger linear:0 linear.codes linear:2 > linear:3
Cast linear:3 > linear:4 to=1
Mul linear:1 linear.scale > linear:5
Mul linear:4 linear:5 > linear:6
Add linear:6 linear.bias > linear
Reshape linear val_20 > attention:0 allowzero=1
Transpose attention:0 > attention:1 perm=0,2,1,3
MatMul attention:1 attention:0 > attention:2
Softmax attention:2 > attention:3 axis=-1
Sigmoid attention:3 > sigmoid
Concat sigmoid attention:3 > attention:4 axis=1
Gemm attention:4 classifier.weight classifier.bias > output beta=1.0 transB=1 alpha=1.0 transA=0
tensor conv1.codes uint4 8,1,5,5
tensor conv1.values float 7
tensor conv1.bias float 8
tensor conv2.codes uint2 12,8,3,3
tensor conv2.values float 4
tensor conv2.bias float 12
tensor val_5 int64 2
tensor fc1.codes uint2 40,48
tensor fc1.values float 3
tensor fc1.bias float 40
tensor fc2.codes uint8 24,40
tensor fc2.values float 17
tensor fc2.bias float 24
tensor layers.0.conv.weight float 8,3,3,3
tensor layers.0.conv.bias float 8
tensor layers.1.conv.weight float 8,8,1,1
tensor layers.1.conv.bias float 8
tensor bn1.weight float 8
tensor bn1.bias float 8
tensor bn1.running_mean float 8
tensor bn1.running_var float 8
tensor val_8 int64 2
tensor fc.weight float 24,8
tensor fc.bias float 24
tensor fc3.input_scale float
tensor fc3.input_zero_point uint8
tensor fc3.bias_codes int32 40
tensor fc3.bias_scale float 40
tensor val_14 int32
tensor fc3.codes int8 40,24
tensor fc3.scale float 40
tensor fc4.input_scale float
tensor fc4.input_zero_point uint8
tensor fc4.bias_codes int32 9
tensor fc4.bias_scale float 9
tensor fc4.codes int8 9,40
tensor fc4.scale float 9
tensor embeddings.weight float 99,8
tensor norm.weight float 8
tensor norm.bias float 8
tensor linear.codes int8 8,8
tensor linear.scale float 8
tensor linear.bias float 8
tensor val_20 int64 4
tensor classifier.weight float 9,8
tensor classifier.bias float 9
output output_0 batch,9
output output batch,9
meta decision {"threshold":0.5}
meta labels ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
meta labels ["no", "yes"]
meta preprocessing {"size":[8,8],"mean":[0.5],"deviation":[0.25]}
meta preprocessing {"size":[16,16],"mode":"RGB","mean":[0.5,0.5,0.5],"deviation":[0.25,0.25,0.25]}
"""

_TYPES = {"float": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "uint4": 21, "int4": 22, "uint2": 25}
_IR, _OPSET = 10, 25


@functools.cache
def primer() -> Fields:
    """The fields of the model that the text describes."""
    nodes: Fields = []
    tensors: Fields = []
    ends: dict[str, Fields] = {"input": [], "output": []}
    metadata: Fields = []
    for line in PRIMER.strip().splitlines():
        word, _, rest = line.partition(" ")
        if word == "tensor":
            name, kind, sizes = [*rest.split(" "), ""][:3]
            dims = [(1 << 3, int(size)) for size in sizes.split(",") if size]
            tensors.append((5 << 3 | 2, [*dims, (2 << 3, _TYPES[kind]), (8 << 3 | 2, name.encode())]))
        elif word in ends:
            ends[word].append(((11 if word == "input" else 12) << 3 | 2, _value(*rest.split(" "))))
        elif word == "meta":
            key, _, value = rest.partition(" ")
            metadata.append((14 << 3 | 2, [(1 << 3 | 2, key.encode()), (2 << 3 | 2, value.encode())]))
        else:
            nodes.append((1 << 3 | 2, _node(word, rest)))
    graph = [*nodes, (2 << 3 | 2, b"main"), *tensors, *ends["input"], *ends["output"]]
    opset = (8 << 3 | 2, [(1 << 3 | 2, b""), (2 << 3, _OPSET)])
    return [(1 << 3, _IR), (2 << 3 | 2, b"mirabelle"), (7 << 3 | 2, graph), opset, *metadata]


def _node(operator: str, rest: str) -> Fields:
    before, _, after = rest.partition(" > ")
    outputs = [word for word in after.split(" ") if "=" not in word]
    attributes = [word.split("=") for word in after.split(" ") if "=" in word]
    return [
        *((1 << 3 | 2, name.encode()) for name in before.split(" ")),
        *((2 << 3 | 2, name.encode()) for name in outputs),
        (4 << 3 | 2, operator.encode()),
        *((5 << 3 | 2, _attribute(name, value)) for name, value in attributes),
    ]


def _attribute(name: str, value: str) -> Fields:
    head = (1 << 3 | 2, name.encode())
    if "," in value:
        return [head, *((8 << 3, int(each)) for each in value.split(",")), (20 << 3, 7)]
    if value.lstrip("-").isdigit():
        return [head, (3 << 3, int(value) % (1 << 64)), (20 << 3, 2)]
    if value[0].isdigit():
        return [head, (2 << 3 | 5, struct.pack("<f", float(value))), (20 << 3, 1)]
    return [head, (4 << 3 | 2, value.encode()), (20 << 3, 3)]


def _value(name: str, sizes: str) -> Fields:
    dims = [(1 << 3 | 2, [(1 << 3, int(size)) if size.isdigit() else (2 << 3 | 2, size.encode())]) for size in sizes.split(",")]
    tensor: Fields = [(1 << 3, 7 if name in ("input_ids", "attention_mask") else 1), (2 << 3 | 2, dims)]
    return [(1 << 3 | 2, name.encode()), (2 << 3 | 2, [(1 << 3 | 2, tensor)])]
