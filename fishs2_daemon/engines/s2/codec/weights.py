"""Weights that the codec keeps in a form of its own."""

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.ggml import Tensor
from fishs2_daemon.engines.s2.model import Model

_CONVERTED = (".conv.weight", ".pwconv1.weight", ".pwconv2.weight", ".alpha", ".codebook.weight")


#: Parts of the codec that only sound to be encoded passes through, and those that only codes do.
_ENCODER = ("c.encoder.", "c.quantizer.downsample.", "c.quantizer.pre_module.")
_DECODER = ("c.decoder.", "c.quantizer.upsample.", "c.quantizer.post_module.")


def of_encoder(name: str) -> bool:
    """Whether only the encoder uses a tensor of the file."""
    return name.startswith(_ENCODER) or (name.startswith("c.") and ".in_proj." in name)


def decoder_skips(name: str) -> bool:
    """What `Model.load` may skip for those who only decode."""
    return converted(name) or of_encoder(name)


def encoder_skips(name: str) -> bool:
    """What `Model.load` may skip for those who only encode."""
    return converted(name) or name.startswith(_DECODER)


def converted(name: str) -> bool:
    """Whether the codec has its own copy of a tensor of the file: what `Model.load` may skip."""
    return name.startswith("c.") and name.endswith(_CONVERTED)


def upload_matrix(model: Model, rows: npt.NDArray[np.float32]) -> Tensor:
    """`[outputs, inputs]` -> [inputs, outputs], as f32 whatever the file has.

    With f16 weights ggml rounds a product's inputs to f16, too. On the golden f16 file that is an rms error of 9e-4 of
    the sound; of 3e-4 with convolutions in f32, and of 1e-4 with these and the ConvNeXt blocks. It is not slower. The
    transformers, more than half of the decoder's weights, keep the file's type.
    """
    return model.upload({"matrix": np.ascontiguousarray(rows)})["matrix"]
