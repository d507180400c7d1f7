"""Weights that the codec keeps in a form of its own."""

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.ggml import Tensor
from fishs2_daemon.engines.s2.model import Model


def upload_matrix(model: Model, rows: npt.NDArray[np.float32]) -> Tensor:
    """`[outputs, inputs]` -> [inputs, outputs], as f32 whatever the file has.

    With f16 weights ggml rounds a product's inputs to f16, too. On the golden f16 file that is an rms error of 9e-4 of
    the sound; of 3e-4 with convolutions in f32, and of 1e-4 with these and the ConvNeXt blocks. It is not slower. The
    transformers, more than half of the decoder's weights, keep the file's type.
    """
    return model.upload({"matrix": np.ascontiguousarray(rows)})["matrix"]
