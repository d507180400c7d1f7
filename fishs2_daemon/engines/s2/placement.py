"""Which tensors of the file lie where, and in which form: names and types alone, no memory."""

from collections.abc import Callable

from fishs2_daemon.engines.s2.ggml_type import GgmlType

Skip = Callable[[str], bool]

#: What CUDA can gather rows from; of other tables it gets F16.
_GATHERABLE = {
    GgmlType.F32, GgmlType.F16, GgmlType.BF16, GgmlType.Q4_0, GgmlType.Q4_1, GgmlType.Q5_0, GgmlType.Q5_1,
    GgmlType.Q8_0,
}  # fmt: skip

#: What embeds a frame's codes on the device; with the first layers elsewhere nobody does it there.
_INPUT_TABLES = ("codebook_embeddings.weight", "semantic_embeddings")

_CONVERTED = (".conv.weight", ".pwconv1.weight", ".pwconv2.weight", ".alpha", ".codebook.weight")

_PRODUCTS = (
    ".wqkv.weight", ".wo.weight", ".w1.weight", ".w2.weight", ".w3.weight", "fast_project_in.weight",
)  # fmt: skip

#: Parts of the codec that only sound to be encoded passes through, and those that only codes do.
_ENCODER = ("c.encoder.", "c.quantizer.downsample.", "c.quantizer.pre_module.")
_DECODER = ("c.decoder.", "c.quantizer.upsample.", "c.quantizer.post_module.")


def gatherable(dtype: GgmlType, *, on_gpu: bool) -> bool:
    """Whether rows of a table of this type can be gathered there; else it is F16 there."""
    return not on_gpu or dtype in _GATHERABLE


def of_encoder(name: str) -> bool:
    """Whether only the encoder uses a tensor of the file."""
    return name.startswith(_ENCODER) or (name.startswith("c.") and ".in_proj." in name)


def converted(name: str) -> bool:
    """Whether the codec has its own copy of a tensor of the file, in F32: what `Model.load` may skip."""
    return name.startswith("c.") and name.endswith(_CONVERTED)


def only_multiplied(name: str) -> bool:
    """Whether graphs use a matrix of the transformers for nothing but products with it."""
    return not name.startswith("c.") and name.endswith(_PRODUCTS)


def decoder_skips(name: str) -> bool:
    """What `Model.load` may skip for those who only decode."""
    return converted(name) or of_encoder(name)


def encoder_skips(name: str) -> bool:
    """What `Model.load` may skip for those who only encode."""
    return converted(name) or name.startswith(_DECODER)


def lower_skips(layers: int) -> Skip:
    """What `Model.load` may skip of a model that is to hold the first `layers` layers, and nothing else."""
    return lambda name: not _is_lower(name, layers)


def upper_skips(layers: int) -> Skip:
    """What `Model.load` may skip where the first `layers` layers are elsewhere: nothing, if there are none of them."""
    return lambda name: layers > 0 and (_is_lower(name, layers) or name in _INPUT_TABLES)


def _is_lower(name: str, layers: int) -> bool:
    parts = name.split(".")
    return parts[0] == "layers" and int(parts[1]) < layers
