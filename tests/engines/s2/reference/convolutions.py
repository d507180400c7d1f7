"""The codec's building blocks. Everything is `[channels, T]` and causal (specification, sections 7.1 and 7.5).

Blocks that look back take `carried`: the last input columns of every convolution, by its name. It is read and brought
up to date, so that a stream may come in pieces; empty or None, it stands for zero columns.
"""

import math

import numpy as np

from tests.engines.s2.reference.transformer import linear
from tests.engines.s2.reference.weights import Array, Model

Carried = dict[str, Array]

_erf = np.frompyfunc(math.erf, 1, 1)


def conv(
    model: Model, name: str, x: Array, carried: Carried | None = None, *, stride: int = 1, dilation: int = 1
) -> Array:
    """Depthwise if its kernels have one input of several. Zeros complete the last stride."""
    weight, bias = model[f"{name}.weight"], model[f"{name}.bias"]  # [out, in / groups, k], [out]
    kernel, columns = weight.shape[2], -(-x.shape[1] // stride)
    missing = columns * stride - x.shape[1]
    x = _preceded(name, x, (kernel - 1) * dilation + 1 - stride, carried)
    x = np.concatenate([x, _zeros(x, missing)], axis=1)
    y = np.zeros((len(weight), columns), x.dtype)
    for tap in range(kernel):
        seen = x[:, tap * dilation :][:, : (columns - 1) * stride + 1 : stride]  # [in, columns]
        y += weight[:, :, tap] @ seen if weight.shape[1] == len(x) else weight[:, 0, tap, None] * seen
    return y + bias[:, None]


def transposed_conv(model: Model, name: str, x: Array, stride: int, carried: Carried | None = None) -> Array:
    """`stride` times as many columns; the last `kernel - stride`, which need a later input, are removed. The kernel is
    a whole number of strides, one of which looks at the input column itself, the next at the one before it."""
    weight, bias = model[f"{name}.weight"], model[f"{name}.bias"]  # [in, out, k], [out]
    columns, outputs, reach = x.shape[1], weight.shape[1], weight.shape[2] // stride
    x = _preceded(name, x, reach - 1, carried)
    y = np.zeros((outputs, columns, stride), x.dtype)
    for back in range(reach):
        seen = x[:, reach - 1 - back :][:, :columns]  # [in, columns]
        taps = weight[:, :, back * stride : (back + 1) * stride]
        y += np.tensordot(taps, seen, (0, 0)).transpose(0, 2, 1)
    return y.reshape(outputs, -1) + bias[:, None]


def snake(model: Model, name: str, x: Array) -> Array:
    alpha = model[f"{name}.alpha"].reshape(-1, 1)
    return x + np.sin(alpha * x) ** 2 / (alpha + 1e-9)


def residual_unit(model: Model, name: str, x: Array, dilation: int, carried: Carried | None = None) -> Array:
    y = conv(model, f"{name}.block.1.conv", snake(model, f"{name}.block.0", x), carried, dilation=dilation)
    return x + conv(model, f"{name}.block.3.conv", snake(model, f"{name}.block.2", y))


def convnext(model: Model, name: str, x: Array, carried: Carried | None = None) -> Array:
    y = conv(model, f"{name}.dwconv.conv", x, carried).T  # [T, C]
    y = _layer_norm(y, model[f"{name}.norm.weight"], model[f"{name}.norm.bias"])
    y = _gelu(linear(y, model[f"{name}.pwconv1.weight"], model[f"{name}.pwconv1.bias"]))
    y = linear(y, model[f"{name}.pwconv2.weight"], model[f"{name}.pwconv2.bias"])
    return x + (y * model[f"{name}.gamma"]).T


def _gelu(x: Array) -> Array:
    return x * (1 + _erf(x / 2**0.5).astype(x.dtype)) / 2


def _layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-6) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + eps) * weight + bias


def _preceded(name: str, x: Array, columns: int, carried: Carried | None) -> Array:
    """The input after the `columns` that came before it; the last of both are carried on."""
    before = (carried or {}).get(name)
    x = np.concatenate([_zeros(x, columns) if before is None else before, x], axis=1)
    if carried is not None:
        carried[name] = x[:, x.shape[1] - columns :]
    return x


def _zeros(x: Array, columns: int) -> Array:
    return np.zeros((len(x), columns), x.dtype)
