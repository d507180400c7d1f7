"""Causal convolutions as matrix products, and the activation between them (7.1)."""

import numpy as np

from fishs2_daemon.engines.s2.codec.passes import Pass
from fishs2_daemon.engines.s2.codec.state import StateLayout
from fishs2_daemon.engines.s2.codec.weights import upload_matrix
from fishs2_daemon.engines.s2.ggml import Tensor
from fishs2_daemon.engines.s2.model import Model


class Convolution:
    """[inputs, columns] -> [outputs, columns / stride]; columns come in whole strides."""

    def __init__(self, model: Model, name: str, state: StateLayout, *, stride: int = 1, dilation: int = 1) -> None:
        weight = model.values(f"{name}.weight")  # [outputs, inputs, kernel]
        outputs, inputs, self._kernel = weight.shape
        self._stride, self._dilation = stride, dilation
        self._history = state.history(inputs, (self._kernel - 1) * dilation + 1 - stride)
        # A window holds all channels of its first column, then of the next one.
        rows = weight.transpose(0, 2, 1).reshape(outputs, -1)
        self._weight = upload_matrix(model, rows)  # [inputs * kernel, outputs]
        self._bias = model.tensor(f"{name}.bias")

    def __call__(self, p: Pass, x: Tensor) -> Tensor:
        if self._kernel > 1:
            x = p.preceded(self._history, p.by_stream(x))
            x = p.windows(x, self._kernel, self._stride, self._dilation)
        return p.linear(self._weight, x, self._bias)


class TransposedConvolution:
    """[inputs, columns] -> [outputs, columns * rate].

    Its kernel is a whole number of strides: with two, y[t * rate + j] = W[j] x[t] + W[rate + j] x[t - 1]. So one
    product on each column and those before it makes `rate` columns, one below the other, which is where they belong.
    """

    def __init__(self, model: Model, name: str, state: StateLayout, rate: int) -> None:
        weight = model.values(f"{name}.weight")  # [inputs, outputs, kernel]
        inputs, self._outputs, kernel = weight.shape
        self._reach = kernel // rate
        self._history = state.history(inputs, self._reach - 1)
        oldest_first = weight.reshape(inputs, self._outputs, self._reach, rate)[:, :, ::-1]
        rows = oldest_first.transpose(3, 1, 2, 0).reshape(rate * self._outputs, -1)
        self._weight = upload_matrix(model, rows)  # [inputs * reach, outputs * rate]
        self._bias = model.tensor(f"{name}.bias")

    def __call__(self, p: Pass, x: Tensor) -> Tensor:
        if self._reach > 1:
            x = p.windows(p.preceded(self._history, p.by_stream(x)), self._reach, 1, 1)
        y = p.linear(self._weight, x)  # [outputs * rate, columns]
        return p.g.add(p.g.reshape(y, self._outputs, y.n_elements // self._outputs), self._bias)


class DepthwiseConvolution:
    """[channels, columns] -> the same; each channel has a kernel of its own."""

    def __init__(self, model: Model, name: str, state: StateLayout) -> None:
        weight = model.values(f"{name}.weight")  # [channels, 1, kernel]
        channels, _, self._kernel = weight.shape
        self._history = state.history(channels, self._kernel - 1)
        taps = np.ascontiguousarray(weight[:, 0].T)
        self._weight = model.upload({"taps": taps})["taps"]  # [channels, kernel]
        self._bias = model.tensor(f"{name}.bias")

    def __call__(self, p: Pass, x: Tensor) -> Tensor:
        g, (channels, columns, _, _) = p.g, x.shape
        seen = p.windows(p.preceded(self._history, p.by_stream(x)), self._kernel, 1, 1)
        products = g.mul(g.reshape(seen, channels, self._kernel, columns), self._weight)
        sums = g.sum_rows(g.cont(g.transpose(products)))  # [1, channels, columns]
        return g.add(g.reshape(sums, channels, columns), self._bias)


class Snake:
    """x + sin(alpha x)^2 / (alpha + 1e-9), an alpha for each channel."""

    def __init__(self, model: Model, name: str) -> None:
        alpha = model.values(f"{name}.alpha").ravel()
        made = model.upload({"alpha": alpha, "inverse": 1 / (alpha + np.float32(1e-9))})
        self._alpha, self._inverse = made["alpha"], made["inverse"]

    def __call__(self, p: Pass, x: Tensor) -> Tensor:
        g = p.g
        return g.add(g.mul(g.sqr(g.sin(g.mul(x, self._alpha))), self._inverse), x)


class ResidualUnit:
    """x + conv(snake(conv(snake(x)))): the first one dilated, the second of kernel 1."""

    def __init__(self, model: Model, name: str, state: StateLayout, dilation: int) -> None:
        self._snakes = Snake(model, f"{name}.block.0"), Snake(model, f"{name}.block.2")
        self._dilated = Convolution(model, f"{name}.block.1.conv", state, dilation=dilation)
        self._mixing = Convolution(model, f"{name}.block.3.conv", state)

    def __call__(self, p: Pass, x: Tensor) -> Tensor:
        y = self._dilated(p, self._snakes[0](p, x))
        return p.g.add(x, self._mixing(p, self._snakes[1](p, y)))
