"""Weights laid out once an evaluation as oneDNN multiplies them, not once a product."""
import contextlib
import functools

import torch
from torch import nn

from common.precision import bf16_instructions


@contextlib.contextmanager
def packed_weights(encoder, bf16):
    """Inside it the layers of a BertEncoder on a CPU with bfloat16 instructions compute with bfloat16 weights that are packed
    beforehand, and with the bias added inside the product: to the bits of F.linear under autocast. In float32, elsewhere and
    compiled nothing changes."""
    layers = [module for module in encoder.modules() if isinstance(module, nn.Linear)]
    if not (bf16 and layers[0].weight.device.type == "cpu" and bf16_instructions()) or encoder.compiled:
        yield
        return
    with torch.no_grad():
        for layer in layers:
            layer.forward = functools.partial(product, weight=torch.ops.mkldnn._reorder_linear_weight(layer.weight.bfloat16()),
                                              bias=layer.bias.bfloat16())
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def is_packed(layer):
    """Whether a linear layer has such weights now."""
    return "forward" in vars(layer)


def product(x, weight, bias):
    """The states [rows, inputs] times a packed weight, plus the bias: bfloat16 [rows, outputs]."""
    return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), weight, bias, "none", [], "")
