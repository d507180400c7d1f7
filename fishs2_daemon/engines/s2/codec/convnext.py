"""ConvNeXt blocks, which follow every change of rate between latents and frames (7.1)."""

from fishs2_daemon.engines.s2.codec.convolution import DepthwiseConvolution
from fishs2_daemon.engines.s2.codec.passes import Pass
from fishs2_daemon.engines.s2.codec.state import StateLayout
from fishs2_daemon.engines.s2.codec.weights import upload_matrix
from fishs2_daemon.engines.s2.ggml import Tensor
from fishs2_daemon.engines.s2.model import Model

_NORM_EPS = 1e-6  # in no file


class ConvNext:
    """[channels, columns] -> the same: a depthwise convolution, then a perceptron on each column, added to it."""

    def __init__(self, model: Model, name: str, state: StateLayout) -> None:
        self._model, self._name = model, name
        self._widen = upload_matrix(model, model.values(f"{name}.pwconv1.weight"))
        self._narrow = upload_matrix(model, model.values(f"{name}.pwconv2.weight"))
        self._depthwise = DepthwiseConvolution(model, f"{name}.dwconv.conv", state)

    def __call__(self, p: Pass, x: Tensor) -> Tensor:
        g, weight = p.g, self._weight
        y = g.norm(self._depthwise(p, x), _NORM_EPS)
        y = g.add(g.mul(y, weight("norm.weight")), weight("norm.bias"))
        y = g.gelu_erf(p.linear(self._widen, y, weight("pwconv1.bias")))
        y = p.linear(self._narrow, y, weight("pwconv2.bias"))
        return g.add(x, g.mul(y, weight("gamma")))

    def _weight(self, part: str) -> Tensor:
        return self._model.tensor(f"{self._name}.{part}")
