"""Reads the model's sizes from its file, and checks them against every tensor that the engine needs.

Keys that a file lacks take S2 Pro's values. Where a part of the model is optional, its tensor's presence counts as much
as its key: older exports lack keys, and none carries tensors that it does not use. Keys that only repeat what the
tensors say are not read: `hop_length`, `frame_length`, `quantizer_residual_codebook_size`,
`quantizer_semantic_codebook_size`; nor is `decoder_transformer_layers`, whose transformer no file holds.
"""

from typing import NoReturn

from fishs2_daemon.engines.s2.config import (
    ENCODER_WINDOW,
    CodecConfig,
    CodecTransformerConfig,
    FastConfig,
    ModelConfig,
    SlowConfig,
    TransformerConfig,
    contradiction,
)
from fishs2_daemon.engines.s2.errors import ModelFileError
from fishs2_daemon.engines.s2.gguf import GgufFile
from fishs2_daemon.engines.s2.layout import codebook_name, expected_tensors

# Far above any model of this family; what lies beyond is a damaged or hostile file.
_MAX_LAYERS = 512
_MAX_HEADS = 512
_MAX_HEAD_DIM = 1024
_MAX_WIDTH = 1 << 16
_MAX_FFN = 1 << 18
_MAX_CONTEXT = 1 << 20
_MAX_VOCAB = 1 << 22
_MAX_CODEBOOKS = 64
_MAX_CODEBOOK_SIZE = 1 << 16
_MAX_STAGES = 8
_MAX_RATE = 64
_MAX_SAMPLE_RATE = 192_000

# What memory grows with and the file's own size does not bound: an attention's width (S2 Pro: 4096), the keys of one
# position in all layers (36,864), the positions that a stream of the codec keeps (128), the samples of a frame (2048).
_MAX_ATTENTION_WIDTH = 1 << 14
_MAX_KEYS = 1 << 18
_MAX_WINDOW = 1 << 12
_MAX_FRAME_SAMPLES = 1 << 16
_ROPE_BASES = 1.0, 1e12
_NORM_EPSES = 1e-12, 0.1


def read_config(file: GgufFile) -> ModelConfig:
    """Raises `ModelFileError` naming the key or tensor that is wrong; tensors that are not needed are ignored."""
    keys = _Keys(file)
    match file.metadata.get("general.architecture"):
        case "fish-speech":
            pass
        case "fish-speech-codec":
            keys.fail("holds a codec alone; the combined file is needed")
        case other:
            keys.fail(f"architecture {ascii(other)[:60]}, not 'fish-speech'")
    slow = _slow(keys)
    config = ModelConfig(slow=slow, fast=_fast(keys, slow), codec=_codec(keys))
    if problem := contradiction(config):
        keys.fail(problem)
    _check_memory(keys, config)
    for name, shape in expected_tensors(config):
        keys.check_tensor(name, shape)
    return config


class _Keys:
    """Look-ups that check; integers may be of any width, and flags may be integers."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file

    def fail(self, reason: str) -> NoReturn:
        raise ModelFileError(f"{self._file.path.name}: {reason}")

    def size(self, key: str, default: int, most: int, *, least: int = 1) -> int:
        value = self._file.metadata.get(key, default)
        if type(value) is not int or not least <= value <= most:
            self.fail(f"key {key}: {ascii(value)[:60]} is no whole number from {least} to {most}")
        return value

    def sizes(self, key: str, default: tuple[int, ...], most: int, *, least: int = 1) -> tuple[int, ...]:
        values = self._file.metadata.get(key, default)
        if not isinstance(values, tuple) or not 1 <= len(values) <= _MAX_STAGES:
            self.fail(f"key {key}: {ascii(values)[:60]} is no list of 1 to {_MAX_STAGES} numbers")
        for value in values:
            if type(value) is not int or not least <= value <= most:
                self.fail(f"key {key}: {ascii(value)[:60]} is no whole number from {least} to {most}")
        return tuple(int(value) for value in values)

    def real(self, key: str, default: float, least: float, most: float) -> float:
        value = self._file.metadata.get(key, default)
        if isinstance(value, bool | str | tuple) or not least <= value <= most:
            self.fail(f"key {key}: {ascii(value)[:60]} is no number from {least:g} to {most:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._file.metadata.get(key, default)
        if not isinstance(value, int):
            self.fail(f"key {key}: {ascii(value)[:60]} is neither true nor false")
        return bool(value)

    def has(self, tensor: str) -> bool:
        return tensor in self._file.tensors

    def dimension(self, tensor: str, dim: int) -> int:
        """Of a tensor that a size is derived from."""
        info = self._file.tensors.get(tensor)
        if info is None:
            self.fail(f"tensor {tensor} is missing")
        if dim >= len(info.shape):
            self.fail(f"tensor {tensor}: shape {info.shape} has no dimension {dim}")
        return info.shape[dim]

    def check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        info = self._file.tensors.get(name)
        if info is None:
            self.fail(f"tensor {name} is missing")
        # Exporters differ in whether they write trailing dimensions of 1.
        if _significant(info.shape) != _significant(shape):
            self.fail(f"tensor {name}: found shape {info.shape}, expected {shape}")
        if info.type.is_integer:
            self.fail(f"tensor {name}: found type {info.type.name}, expected floats")


def _check_memory(keys: _Keys, config: ModelConfig) -> None:
    codec = config.codec
    stacks: list[tuple[str, TransformerConfig | None]] = [("slow", config.slow), ("fast", config.fast)]
    stacks += [("quantizer's", codec.quantizer_transformer)]
    stacks += [("encoder's", stack) for stack in codec.encoder_transformers]
    for name, stack in stacks:
        if stack and stack.q_width > _MAX_ATTENTION_WIDTH:
            keys.fail(f"the {name} transformer's attention is {stack.q_width} wide; {_MAX_ATTENTION_WIDTH} is the most")
        if stack and stack.layers * stack.kv_width > _MAX_KEYS:
            keys.fail(f"the {name} transformer has {stack.layers * stack.kv_width} keys; {_MAX_KEYS} is the most")
    if codec.frame_samples > _MAX_FRAME_SAMPLES:
        keys.fail(f"the codec's frames have {codec.frame_samples} samples; {_MAX_FRAME_SAMPLES} is the most")


def _significant(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _slow(keys: _Keys) -> SlowConfig:
    heads = keys.size("fish-speech.attention.head_count", 32, _MAX_HEADS)
    layer = "layers.0.attention"
    return SlowConfig(
        layers=keys.size("fish-speech.block_count", 36, _MAX_LAYERS),
        width=keys.size("fish-speech.embedding_length", 2560, _MAX_WIDTH),
        heads=heads,
        kv_heads=keys.size("fish-speech.attention.head_count_kv", 8, _MAX_HEADS),
        head_dim=_slow_head_dim(keys, heads),
        ffn=keys.size("fish-speech.feed_forward_length", 9728, _MAX_FFN),
        context=keys.size("fish-speech.context_length", 32768, _MAX_CONTEXT),
        rope_base=keys.real("fish-speech.rope.freq_base", 1e6, *_ROPE_BASES),
        norm_eps=keys.real("fish-speech.attention.layer_norm_rms_epsilon", 1e-6, *_NORM_EPSES),
        qk_norm=keys.flag("fish_speech.attention_qk_norm", False) or keys.has(f"{layer}.q_norm.weight"),
        qkv_bias=keys.has(f"{layer}.wqkv.bias"),
        o_bias=keys.has(f"{layer}.wo.bias"),
        vocab=keys.size("fish-speech.vocab_size", 155776, _MAX_VOCAB),
        codebooks=keys.size("fish_speech.num_codebooks", 10, _MAX_CODEBOOKS),
        codebook_size=keys.size("fish_speech.codebook_size", 4096, _MAX_CODEBOOK_SIZE),
        semantic_begin=keys.size("fish_speech.semantic_begin_id", 151678, _MAX_VOCAB, least=0),
        semantic_end=keys.size("fish_speech.semantic_end_id", 155773, _MAX_VOCAB, least=0),
        scale_embeddings=keys.flag("fish_speech.scale_codebook_embeddings", True),
        tied_head=keys.flag("fish_speech.tie_word_embeddings", True) and not keys.has("output.weight"),
    )


def _slow_head_dim(keys: _Keys, heads: int) -> int:
    """No key holds it, and it is not width / heads."""
    norm, wo = "layers.0.attention.q_norm.weight", "layers.0.attention.wo.weight"
    if keys.has(norm):
        tensor, head_dim = norm, keys.dimension(norm, 0)
    else:
        tensor, q_width = wo, keys.dimension(wo, 0)
        if q_width % heads:
            keys.fail(f"tensor {wo}: rows of {q_width} for {heads} heads")
        head_dim = q_width // heads
    if head_dim > _MAX_HEAD_DIM:
        keys.fail(f"tensor {tensor}: a head dimension of {head_dim}; {_MAX_HEAD_DIM} is the most")
    return head_dim


def _fast(keys: _Keys, slow: SlowConfig) -> FastConfig:
    layer = "fast_layers.0.attention"
    width = keys.size("fish_speech.fast_embedding_length", 2560, _MAX_WIDTH)
    project_in = (
        keys.flag("fish_speech.fast_project_in", False) or keys.has("fast_project_in.weight") or width != slow.width
    )
    return FastConfig(
        layers=keys.size("fish_speech.fast_block_count", 4, _MAX_LAYERS),
        width=width,
        heads=keys.size("fish_speech.fast_head_count", 32, _MAX_HEADS),
        kv_heads=keys.size("fish_speech.fast_head_count_kv", 8, _MAX_HEADS),
        head_dim=keys.size("fish_speech.fast_head_dim", 128, _MAX_HEAD_DIM),
        ffn=keys.size("fish_speech.fast_feed_forward_length", 9728, _MAX_FFN),
        context=keys.size("fish_speech.fast_context_length", 11, _MAX_CONTEXT),
        rope_base=keys.real("fish_speech.fast_rope_freq_base", 1e6, *_ROPE_BASES),
        norm_eps=keys.real("fish_speech.fast_layer_norm_rms_eps", 1e-6, *_NORM_EPSES),
        qk_norm=keys.flag("fish_speech.fast_attention_qk_norm", False) or keys.has(f"{layer}.q_norm.weight"),
        qkv_bias=keys.flag("fish_speech.fast_attention_qkv_bias", False) or keys.has(f"{layer}.wqkv.bias"),
        o_bias=keys.flag("fish_speech.fast_attention_o_bias", False) or keys.has(f"{layer}.wo.bias"),
        codebook_size=slow.codebook_size,
        normed_input=keys.flag("fish_speech.norm_fastlayer_input", True),
        project_in=project_in,
        project_in_bias=project_in and keys.has("fast_project_in.bias"),
        tied_head=keys.flag("fish_speech.fast_tie_word_embeddings", False) and not keys.has("fast_output.weight"),
    )


def _codec(keys: _Keys) -> CodecConfig:
    codec = "fish_speech.codec"
    latent = keys.size(f"{codec}.latent_dim", 1024, _MAX_WIDTH)
    if (inputs := keys.size(f"{codec}.quantizer_input_dim", 1024, _MAX_WIDTH)) != latent:
        keys.fail(f"key {codec}.quantizer_input_dim: {inputs}, but {codec}.latent_dim: {latent}")
    residual = keys.size(f"{codec}.quantizer_residual_codebooks", 9, _MAX_CODEBOOKS)
    encoder_width = keys.size(f"{codec}.encoder_dim", 64, _MAX_WIDTH)
    layers = keys.sizes(f"{codec}.encoder_transformer_layers", (0, 0, 0, 4), _MAX_LAYERS, least=0)
    return CodecConfig(
        sample_rate=keys.size(f"{codec}.sample_rate", 44100, _MAX_SAMPLE_RATE),
        encoder_width=encoder_width,
        decoder_width=keys.size(f"{codec}.decoder_dim", 1536, _MAX_WIDTH),
        latent=latent,
        encoder_rates=keys.sizes(f"{codec}.encoder_rates", (2, 4, 8, 8), _MAX_RATE),
        decoder_rates=keys.sizes(f"{codec}.decoder_rates", (8, 8, 4, 2), _MAX_RATE),
        downsample=keys.sizes(f"{codec}.quantizer_downsample_factor", (2, 2), _MAX_RATE),
        encoder_transformers=tuple(
            _encoder_transformer(keys, index + 1, encoder_width << (index + 1), count) if count else None
            for index, count in enumerate(layers)
        ),
        quantizer_transformer=_quantizer_transformer(keys),
        codebook_width=keys.size(f"{codec}.quantizer_codebook_dim", 8, _MAX_WIDTH),
        codebook_sizes=tuple(
            keys.dimension(f"{codebook_name(index)}.codebook.weight", 1) for index in range(1 + residual)
        ),
    )


def _encoder_transformer(keys: _Keys, block: int, width: int, layers: int) -> CodecTransformerConfig:
    """Its width is its block's; it fills it with heads of the given size. Its inner width is in no key."""
    prefix = "fish_speech.codec.transformer"
    head_dim = keys.size(f"{prefix}.head_dim", 64, _MAX_HEAD_DIM)
    if width % head_dim:
        keys.fail(f"key {prefix}.head_dim: {head_dim} does not divide the width {width} of encoder block {block}")
    heads = width // head_dim
    return CodecTransformerConfig(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=_kv_heads(keys, f"{prefix}.n_local_heads", heads),
        head_dim=head_dim,
        ffn=keys.dimension(f"c.encoder.block.{block}.block.5.layers.0.feed_forward.w1.weight", 1),
        context=keys.size(f"{prefix}.block_size", 8192, _MAX_CONTEXT),
        rope_base=keys.real(f"{prefix}.rope_freq_base", 1e4, *_ROPE_BASES),
        norm_eps=keys.real(f"{prefix}.layer_norm_rms_eps", 1e-5, *_NORM_EPSES),
        window=ENCODER_WINDOW,
    )


def _quantizer_transformer(keys: _Keys) -> CodecTransformerConfig:
    prefix = "fish_speech.codec.rvq_transformer"
    heads = keys.size(f"{prefix}.n_head", 16, _MAX_HEADS)
    return CodecTransformerConfig(
        layers=keys.size(f"{prefix}.n_layer", 8, _MAX_LAYERS),
        width=keys.size(f"{prefix}.dim", 1024, _MAX_WIDTH),
        heads=heads,
        kv_heads=_kv_heads(keys, f"{prefix}.n_local_heads", heads),
        head_dim=keys.size(f"{prefix}.head_dim", 64, _MAX_HEAD_DIM),
        ffn=keys.size(f"{prefix}.feed_forward_length", 3072, _MAX_FFN),
        context=keys.size(f"{prefix}.block_size", 2048, _MAX_CONTEXT),
        rope_base=keys.real(f"{prefix}.rope_freq_base", 1e4, *_ROPE_BASES),
        norm_eps=keys.real(f"{prefix}.layer_norm_rms_eps", 1e-5, *_NORM_EPSES),
        window=keys.size(f"{prefix}.window_size", 128, _MAX_WINDOW),
    )


def _kv_heads(keys: _Keys, key: str, heads: int) -> int:
    """-1 stands for as many as there are query heads."""
    count = keys.size(key, -1, _MAX_HEADS, least=-1)
    if count == 0:
        keys.fail(f"key {key}: 0 heads")
    return heads if count == -1 else count
