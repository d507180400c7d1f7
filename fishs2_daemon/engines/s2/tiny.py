"""Makes models of random weights, of any geometry: small ones for tests and demos, a full-size one for benchmarks.

    python -m fishs2_daemon.engines.s2.tiny OUT_DIR [--shape bench] [--quant q4_k_m] [--width 256 ...]

They speak noise, through every part of the real engine. The same seed gives the same weights in files of every type:
each value is exact in F16.
"""

import argparse
import zlib
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.config import CodecTransformerConfig, ModelConfig
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.gguf import MetadataValue, TensorInfo
from fishs2_daemon.engines.s2.gguf_writer import lay_out, write_gguf
from fishs2_daemon.engines.s2.quantisations import QUANTISATIONS, Mix, stored_tensors
from fishs2_daemon.engines.s2.tiny_geometry import S2_PRO, SHAPES, TINY, Geometry

__all__ = ["QUANTISATIONS", "S2_PRO", "SHAPES", "TINY", "Geometry", "Mix", "make_model", "metadata", "plan"]

#: Rows of float32, `[rows, ne0]`, to the bytes of a ggml type, `[rows, ...]`.
Quantise = Callable[[npt.NDArray[np.float32], GgmlType], npt.NDArray[np.uint8]]

#: Values that are made at a time: a model may be larger than memory.
_CHUNK = 1 << 22

#: Spread of the logits: clear winners, and yet a tied head does not repeat the token it has just seen.
_LOGIT_STD = 3.0


def make_model(
    path: Path,
    geometry: Geometry = TINY,
    seed: int = 0,
    dtype: GgmlType | Mix = GgmlType.F16,
    quantise: Quantise | None = None,
) -> None:
    """Writes the model to `path`, and its tokenizer.json beside it.

    Quantised types and BF16 are for the transformers' matrices, as in the public files: the rest is F16 then.
    `quantise` replaces ggml's own. Raises `ValueError` where sizes contradict each other, or do not suit the type.
    """
    config = geometry.config()
    tensors = plan(config, dtype)

    def chunks(info: TensorInfo) -> Iterator[bytes]:
        return (_encoded(rows, info.type, quantise or _quantised_by_ggml) for rows in _weights(info, config, seed))

    write_gguf(path, metadata(config, dtype), tensors, chunks)
    geometry.vocabulary.write(path.with_name("tokenizer.json"))


def plan(config: ModelConfig, dtype: GgmlType | Mix) -> list[TensorInfo]:
    """The tensor table that `make_model` writes; offsets count from the start of the data."""
    return lay_out(stored_tensors(config, dtype))


def metadata(config: ModelConfig, dtype: GgmlType | Mix) -> dict[str, MetadataValue]:
    """Every key that an exporter writes."""
    slow, fast, codec = config.slow, config.fast, config.codec
    encoder = next((stack for stack in codec.encoder_transformers if stack), codec.quantizer_transformer)
    ar, own, sound = "fish-speech.", "fish_speech.", "fish_speech.codec."
    return {
        "general.architecture": "fish-speech",
        "general.name": "Made-up Fish Speech",
        "general.file_type": 0 if dtype is GgmlType.F32 else 1,
        f"{ar}context_length": slow.context,
        f"{ar}embedding_length": slow.width,
        f"{ar}feed_forward_length": slow.ffn,
        f"{ar}block_count": slow.layers,
        f"{ar}attention.head_count": slow.heads,
        f"{ar}attention.head_count_kv": slow.kv_heads,
        f"{ar}rope.freq_base": slow.rope_base,
        f"{ar}attention.layer_norm_rms_epsilon": slow.norm_eps,
        f"{ar}vocab_size": slow.vocab,
        f"{own}model_type": "dual_ar",
        f"{own}codebook_size": slow.codebook_size,
        f"{own}num_codebooks": slow.codebooks,
        f"{own}semantic_begin_id": slow.semantic_begin,
        f"{own}semantic_end_id": slow.semantic_end,
        f"{own}audio_pad_token_id": slow.semantic_begin - 1,
        f"{own}scale_codebook_embeddings": slow.scale_embeddings,
        f"{own}norm_fastlayer_input": fast.normed_input,
        f"{own}tie_word_embeddings": slow.tied_head,
        f"{own}attention_qk_norm": slow.qk_norm,
        f"{own}fast_context_length": fast.context,
        f"{own}fast_embedding_length": fast.width,
        f"{own}fast_feed_forward_length": fast.ffn,
        f"{own}fast_block_count": fast.layers,
        f"{own}fast_head_count": fast.heads,
        f"{own}fast_head_count_kv": fast.kv_heads,
        f"{own}fast_head_dim": fast.head_dim,
        f"{own}fast_rope_freq_base": fast.rope_base,
        f"{own}fast_layer_norm_rms_eps": fast.norm_eps,
        f"{own}fast_tie_word_embeddings": fast.tied_head,
        f"{own}fast_attention_qk_norm": fast.qk_norm,
        f"{own}fast_attention_qkv_bias": fast.qkv_bias,
        f"{own}fast_attention_o_bias": fast.o_bias,
        f"{own}fast_project_in": fast.project_in,
        f"{sound}sample_rate": codec.sample_rate,
        f"{sound}hop_length": prod(codec.encoder_rates),
        f"{sound}frame_length": prod(codec.encoder_rates),
        f"{sound}encoder_dim": codec.encoder_width,
        f"{sound}decoder_dim": codec.decoder_width,
        f"{sound}latent_dim": codec.latent,
        f"{sound}encoder_rates": codec.encoder_rates,
        f"{sound}decoder_rates": codec.decoder_rates,
        f"{sound}encoder_transformer_layers": tuple(
            stack.layers if stack else 0 for stack in codec.encoder_transformers
        ),
        f"{sound}decoder_transformer_layers": len(codec.decoder_rates) * (0,),
        f"{sound}quantizer_type": "downsample_residual_vector_quantize",
        f"{sound}quantizer_input_dim": codec.latent,
        f"{sound}quantizer_codebook_dim": codec.codebook_width,
        f"{sound}quantizer_residual_codebooks": len(codec.codebook_sizes) - 1,
        f"{sound}quantizer_residual_codebook_size": codec.codebook_sizes[-1],
        f"{sound}quantizer_semantic_codebook_size": codec.codebook_sizes[0],
        f"{sound}quantizer_downsample_factor": codec.downsample,
        **_transformer_metadata(f"{sound}transformer.", encoder),
        **_transformer_metadata(f"{sound}rvq_transformer.", codec.quantizer_transformer),
        f"{sound}rvq_transformer.window_size": codec.quantizer_transformer.window,
        f"{sound}rvq_transformer.n_layer": codec.quantizer_transformer.layers,
        f"{sound}rvq_transformer.n_head": codec.quantizer_transformer.heads,
        f"{sound}rvq_transformer.dim": codec.quantizer_transformer.width,
        f"{sound}rvq_transformer.feed_forward_length": codec.quantizer_transformer.ffn,
    }


def _transformer_metadata(prefix: str, stack: CodecTransformerConfig) -> dict[str, MetadataValue]:
    return {
        f"{prefix}block_size": stack.context,
        f"{prefix}n_local_heads": -1,
        f"{prefix}head_dim": stack.head_dim,
        f"{prefix}rope_freq_base": stack.rope_base,
        f"{prefix}layer_norm_rms_eps": stack.norm_eps,
    }


def _weights(info: TensorInfo, config: ModelConfig, seed: int) -> Iterator[npt.NDArray[np.float16]]:
    """`[rows, ne0]` at a time. A tensor's values depend on the seed and on its name, not on the other tensors."""
    mean, std = _spread(info.name, info.shape, config)
    random = np.random.Generator(np.random.SFC64([seed, zlib.crc32(info.name.encode())]))
    width, rows = info.shape[0], prod(info.shape[1:])
    step = max(1, _CHUNK // width)
    # Evenly spread, from 16 bits: several times as fast as a normal distribution, and sums of them are normal.
    scale = np.float32(std * 3**0.5 / 2**15)
    for start in range(0, rows, step):
        values = random.integers(-(2**15), 2**15, (min(step, rows - start), width), np.int16) * scale
        values += np.float32(mean)
        yield values.astype(np.float16)


def _spread(name: str, shape: tuple[int, ...], config: ModelConfig) -> tuple[float, float]:
    """Mean and standard deviation, such that every activation is of the order of 1 and the sound is not clipped."""
    layer, kind = name.split(".")[-2:]
    if layer in ("embeddings", "codebook_embeddings", "output", "fast_output"):
        return 0.0, _LOGIT_STD / shape[0] ** 0.5
    if kind == "bias":
        return 0.0, 0.05
    if kind == "alpha":
        return 1.0, 0.15
    if kind == "gamma":
        return 0.3, 0.05
    if layer == "norm" or layer.endswith("_norm"):
        return 1.0, 0.1
    if layer in ("fast_embeddings", "codebook"):
        return 0.0, 1.0
    # Values that one output sums up. A transposed convolution's are its inputs, times the strides in its kernel.
    inputs = prod(shape[:-1])
    if name.startswith("c.quantizer.upsample") and layer == "conv" and shape[1] != 1:
        inputs = shape[-1]
    if name.startswith("c.decoder.model") and name.endswith(".block.1.conv.weight") and name.count(".block.") == 1:
        inputs = 2 * shape[-1]
    gain = 1.0
    if layer == "out_proj":
        gain = config.slow.codebooks**-0.5
    elif name.endswith(".block.3.conv.weight"):
        gain = 0.3
    elif name == f"c.decoder.model.{len(config.codec.decoder_rates) + 2}.conv.weight":
        gain = 0.05
    return 0.0, gain * inputs**-0.5


def _encoded(rows: npt.NDArray[np.float16], kind: GgmlType, quantise: Quantise) -> bytes:
    match kind:
        case GgmlType.F16:
            return rows.astype("<f2", copy=False).tobytes()
        case GgmlType.F32:
            return rows.astype("<f4").tobytes()
        case GgmlType.BF16:
            bits = rows.astype(np.float32).view(np.uint32)
            return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    return quantise(rows.astype(np.float32), kind).tobytes()


def _quantised_by_ggml(rows: npt.NDArray[np.float32], kind: GgmlType) -> npt.NDArray[np.uint8]:
    # Loads native code, which plain types do without.
    from fishs2_daemon.engines.s2.ggml.dtypes import DType
    from fishs2_daemon.engines.s2.ggml.quantize import quantize

    return quantize(rows, DType[kind.name])


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fishs2_daemon.engines.s2.tiny", description="Make up a model.")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="the sizes to start from")
    parser.add_argument("--quant", choices=QUANTISATIONS, default="f16", help="types of the weights")
    parser.add_argument("--seed", type=int, default=0)
    for field in fields(Geometry):
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
        elif isinstance(field.default, tuple):
            parser.add_argument(flag, type=_numbers, metavar="N,N,...", default=argparse.SUPPRESS)
        else:
            parser.add_argument(flag, type=type(field.default), metavar="N", default=argparse.SUPPRESS)
    given = vars(parser.parse_args())
    folder, shape, quant, seed = (given.pop(name) for name in ("out_dir", "shape", "quant", "seed"))
    path = folder / f"{shape}-{quant}.gguf"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        make_model(path, replace(SHAPES[shape], **given), seed, QUANTISATIONS[quant])
    except ValueError as error:
        parser.error(str(error))
    print(path)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    _main()
