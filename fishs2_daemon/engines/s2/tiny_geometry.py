"""Sizes for made-up models: a tiny one with every feature of S2 Pro, one to measure with, and S2 Pro's own."""

from dataclasses import dataclass, replace

from fishs2_daemon.engines.s2.config import (
    ENCODER_WINDOW,
    CodecConfig,
    CodecTransformerConfig,
    FastConfig,
    ModelConfig,
    SlowConfig,
    contradiction,
)
from fishs2_daemon.engines.s2.tiny_tokenizer import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The default is as small as a model gets that has every feature of S2 Pro, head dimension and clamped residual
    codes included. `vocab` 0 is what the tokenizer needs; a projection exists where the fast width differs."""

    layers: int = 3
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 160
    context: int = 4096
    qk_norm: bool = True
    tied_head: bool = True
    fast_layers: int = 2
    fast_width: int = 64
    fast_heads: int = 4
    fast_kv_heads: int = 2
    fast_head_dim: int = 32
    fast_ffn: int = 160
    project_in_bias: bool = True
    rope_base: float = 1e6
    vocab: int = 0
    text_pieces: int = 0
    reserved_tokens: int = 0
    codebooks: int = 10
    codebook_size: int = 64
    residual_size: int = 16
    codebook_width: int = 8
    latent: int = 64
    encoder_width: int = 4
    decoder_width: int = 48
    encoder_rates: tuple[int, ...] = (2, 4, 8, 8)
    decoder_rates: tuple[int, ...] = (8, 8, 4, 2)
    downsample: tuple[int, ...] = (2, 2)
    encoder_layers: tuple[int, ...] = (0, 0, 0, 2)
    encoder_head_dim: int = 64
    encoder_ffn: int = 192
    codec_layers: int = 3
    codec_heads: int = 4
    codec_head_dim: int = 16
    codec_ffn: int = 96
    codec_window: int = 8

    @property
    def vocabulary(self) -> Vocabulary:
        least = Vocabulary(codes=self.codebook_size, reserved=self.reserved_tokens)
        return replace(least, base=self.text_pieces) if self.text_pieces else least

    def config(self) -> ModelConfig:
        """Raises `ValueError` where the sizes contradict each other."""
        words = self.vocabulary
        slow = SlowConfig(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            ffn=self.ffn,
            context=self.context,
            rope_base=self.rope_base,
            norm_eps=1e-6,
            qk_norm=self.qk_norm,
            vocab=self.vocab or words.size,
            codebooks=self.codebooks,
            codebook_size=self.codebook_size,
            semantic_begin=words.semantic_begin,
            semantic_end=words.size - 1,
            scale_embeddings=True,
            tied_head=self.tied_head,
        )
        fast = FastConfig(
            layers=self.fast_layers,
            width=self.fast_width,
            heads=self.fast_heads,
            kv_heads=self.fast_kv_heads,
            head_dim=self.fast_head_dim,
            ffn=self.fast_ffn,
            context=self.codebooks + 1,
            rope_base=self.rope_base,
            norm_eps=1e-6,
            codebook_size=self.codebook_size,
            normed_input=True,
            project_in=self.fast_width != self.width,
            project_in_bias=self.fast_width != self.width and self.project_in_bias,
            tied_head=False,
        )
        config = ModelConfig(slow=slow, fast=fast, codec=self._codec())
        if problem := contradiction(config):
            raise ValueError(problem)
        return config

    def _codec(self) -> CodecConfig:
        return CodecConfig(
            sample_rate=44100,
            encoder_width=self.encoder_width,
            decoder_width=self.decoder_width,
            latent=self.latent,
            encoder_rates=self.encoder_rates,
            decoder_rates=self.decoder_rates,
            downsample=self.downsample,
            encoder_transformers=tuple(
                self._encoder_transformer(self.encoder_width << (index + 1), layers) if layers else None
                for index, layers in enumerate(self.encoder_layers)
            ),
            quantizer_transformer=CodecTransformerConfig(
                layers=self.codec_layers,
                width=self.latent,
                heads=self.codec_heads,
                kv_heads=self.codec_heads,
                head_dim=self.codec_head_dim,
                ffn=self.codec_ffn,
                context=2048,
                rope_base=1e4,
                norm_eps=1e-5,
                window=self.codec_window,
            ),
            codebook_width=self.codebook_width,
            codebook_sizes=(self.codebook_size, *(self.codebooks - 1) * (self.residual_size,)),
        )

    def _encoder_transformer(self, width: int, layers: int) -> CodecTransformerConfig:
        if width % self.encoder_head_dim:
            raise ValueError(f"an encoder block of width {width} has no heads of {self.encoder_head_dim}")
        heads = width // self.encoder_head_dim
        return CodecTransformerConfig(
            layers=layers,
            width=width,
            heads=heads,
            kv_heads=heads,
            head_dim=self.encoder_head_dim,
            ffn=self.encoder_ffn,
            context=8192,
            rope_base=1e4,
            norm_eps=1e-5,
            window=ENCODER_WINDOW,
        )


TINY = Geometry()

#: 145 million parameters, for benchmarks on a processor. Every row suits every quantisation, and as many candidates are
#: sorted as S2 Pro's.
BENCH = Geometry(
    layers=12,
    width=768,
    heads=8,
    kv_heads=2,
    head_dim=128,
    ffn=1536,
    fast_layers=4,
    fast_width=768,
    fast_heads=8,
    fast_kv_heads=2,
    fast_head_dim=128,
    fast_ffn=1536,
    codebook_size=4096,
    residual_size=1024,
    latent=256,
    encoder_width=16,
    decoder_width=384,
    encoder_ffn=768,
    codec_layers=4,
    codec_heads=4,
    codec_head_dim=64,
    codec_ffn=768,
    codec_window=128,
)

S2_PRO = Geometry(
    layers=36,
    width=2560,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn=9728,
    context=32768,
    fast_layers=4,
    fast_width=2560,
    fast_heads=32,
    fast_kv_heads=8,
    fast_head_dim=128,
    fast_ffn=9728,
    vocab=155776,
    text_pieces=151643,
    reserved_tokens=23,
    codebook_size=4096,
    residual_size=1024,
    latent=1024,
    encoder_width=64,
    decoder_width=1536,
    encoder_layers=(0, 0, 0, 4),
    encoder_ffn=3072,
    codec_layers=8,
    codec_heads=16,
    codec_head_dim=64,
    codec_ffn=3072,
    codec_window=128,
)

SHAPES = {"tiny": TINY, "bench": BENCH, "s2-pro": S2_PRO}
