"""The variants of the public model, and the type that each of its tensors has in the file."""

from collections.abc import Iterator
from dataclasses import dataclass

from fishs2_daemon.engines.s2.config import ModelConfig
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.layout import Shape, expected_tensors


@dataclass(frozen=True, slots=True)
class Mix:
    """Most matrices are of type `base`. Those that an error harms most are of type `better`: the fast head and `w2`,
    and `w2` and `wqkv` of about half of the slow layers, the first and the last eighth among them."""

    base: GgmlType
    better: GgmlType


#: The variants of the public model by name. The mixtures are concluded from their sizes: with these, q8_0 and q4_k_m of
#: S2 Pro's shape are both 224 bytes, of the header, larger than the published files, and the others as large as those.
QUANTISATIONS: dict[str, GgmlType | Mix] = {
    "f32": GgmlType.F32,
    "f16": GgmlType.F16,
    "bf16": GgmlType.BF16,
    "q8_0": GgmlType.Q8_0,
    "q6_k": GgmlType.Q6_K,
    "q5_k_m": Mix(GgmlType.Q5_K, GgmlType.Q6_K),
    "q4_k_m": Mix(GgmlType.Q4_K, GgmlType.Q6_K),
    "q3_k": Mix(GgmlType.Q3_K, GgmlType.Q5_K),
    "q2_k": Mix(GgmlType.Q2_K, GgmlType.Q5_K),
}


def stored_tensors(config: ModelConfig, dtype: GgmlType | Mix) -> Iterator[tuple[str, Shape, GgmlType]]:
    """Every tensor of a file. Quantised types and BF16 are for the transformers' matrices: the rest is F16 then.

    Raises `ValueError` where the sizes do not suit the type.
    """
    for name, shape in expected_tensors(config):
        kind = dtype
        if isinstance(kind, Mix):
            kind = kind.better if _harms_most(name, config.slow.layers) else kind.base
        yield name, shape, _stored(name, shape, kind)


def _harms_most(name: str, layers: int) -> bool:
    if name == "fast_output.weight":
        return True
    stack, _, rest = name.partition(".")
    number, _, matrix = rest.partition(".")
    if stack == "fast_layers":
        return matrix == "feed_forward.w2.weight"
    if stack != "layers" or matrix not in ("feed_forward.w2.weight", "attention.wqkv.weight"):
        return False
    index, eighth = int(number), layers // 8
    return index < eighth or index >= 7 * layers // 8 or (index - eighth) % 3 == 2


def _stored(name: str, shape: Shape, dtype: GgmlType) -> GgmlType:
    if dtype in (GgmlType.F32, GgmlType.F16):
        return dtype
    if dtype.is_integer:
        raise ValueError(f"weights are no {dtype.name}")
    if name.startswith("c.") or len(shape) == 1:
        return GgmlType.F16
    if shape[0] % dtype.block_items:
        raise ValueError(f"{dtype.name} takes {dtype.block_items} values at a time, and {name} has rows of {shape[0]}")
    return dtype
