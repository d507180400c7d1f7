"""The model's sizes. Nothing here is S2 Pro's: every number comes from a file, or from a test."""

from dataclasses import dataclass
from math import prod

#: The encoder's attention window is in no file; found on the official encoder.
ENCODER_WINDOW = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """A stack of pre-norm layers. `context` is in positions; queries are `heads * head_dim` wide, which need not be
    `width`."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    rope_base: float
    norm_eps: float
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def qkv_rows(self) -> int:
        """Rows of `wqkv`: queries, keys and values, in this order."""
        return self.q_width + 2 * self.kv_width


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowConfig(TransformerConfig):
    """`semantic_begin` is the token of code 0; the head is `embeddings.weight` if tied, else `output.weight`."""

    vocab: int
    codebooks: int
    codebook_size: int
    semantic_begin: int
    semantic_end: int  # inclusive
    scale_embeddings: bool
    tied_head: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FastConfig(TransformerConfig):
    """`normed_input`: it receives the slow hidden state after the final norm. Its head is `fast_output.weight`, or
    `fast_embeddings.weight` if tied."""

    codebook_size: int
    normed_input: bool
    project_in: bool
    project_in_bias: bool
    tied_head: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecTransformerConfig(TransformerConfig):
    """Layers whose two outputs are scaled per channel; a position sees `window` positions, itself included."""

    window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecConfig:
    sample_rate: int
    encoder_width: int
    decoder_width: int
    latent: int
    encoder_rates: tuple[int, ...]
    decoder_rates: tuple[int, ...]
    downsample: tuple[int, ...]
    encoder_transformers: tuple[CodecTransformerConfig | None, ...]  # one for each of the encoder's blocks
    quantizer_transformer: CodecTransformerConfig  # of the pre_module and of the post_module
    codebook_width: int
    codebook_sizes: tuple[int, ...]  # the semantic one first

    @property
    def frame_samples(self) -> int:
        return prod(self.decoder_rates) * prod(self.downsample)

    @property
    def upsample(self) -> tuple[int, ...]:
        """Rates of `upsample.0`, `upsample.1`, …: the way back."""
        return self.downsample[::-1]

    @property
    def encoder_channels(self) -> tuple[int, ...]:
        """Before the first block, and after each."""
        return tuple(self.encoder_width << i for i in range(len(self.encoder_rates) + 1))

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        return tuple(self.decoder_width >> i for i in range(len(self.decoder_rates) + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    slow: SlowConfig
    fast: FastConfig
    codec: CodecConfig


def contradiction(config: ModelConfig) -> str | None:
    """Why no model can have these sizes together, if so. Each of them alone is taken to be at least 1."""
    slow, fast, codec = config.slow, config.fast, config.codec
    stacks = [("slow", slow), ("fast", fast), ("quantizer's", codec.quantizer_transformer)]
    stacks += [("encoder's", stack) for stack in codec.encoder_transformers if stack]
    for name, stack in stacks:
        if stack.heads % stack.kv_heads:
            return f"the {name} transformer's {stack.heads} heads do not share {stack.kv_heads} key/value heads evenly"
        if stack.head_dim % 2:
            return f"the {name} transformer's head dimension {stack.head_dim} is odd; rotary embedding needs pairs"
    codes = slow.semantic_end - slow.semantic_begin + 1
    checks = [
        (codes == slow.codebook_size, f"{codes} semantic tokens for a codebook of {slow.codebook_size}"),
        (slow.semantic_end < slow.vocab, f"semantic token {slow.semantic_end} in a vocabulary of {slow.vocab}"),
        (fast.context >= slow.codebooks, f"{slow.codebooks} codebooks for {fast.context} positions of the fast one"),
        (fast.project_in or fast.width == slow.width, "slow and fast widths differ without a projection between them"),
        (
            len(codec.codebook_sizes) == slow.codebooks,
            f"{slow.codebooks} codebooks in the transformers, {len(codec.codebook_sizes)} in the codec",
        ),
        (
            codec.codebook_sizes[0] == slow.codebook_size,
            f"{slow.codebook_size} semantic codes, {codec.codebook_sizes[0]} in the codec",
        ),
        (
            max(codec.codebook_sizes) <= slow.codebook_size,
            f"a residual codebook of {max(codec.codebook_sizes)} exceeds the transformers' {slow.codebook_size}",
        ),
        (
            prod(codec.encoder_rates) == prod(codec.decoder_rates),
            f"the encoder's rates {codec.encoder_rates} and the decoder's {codec.decoder_rates} differ",
        ),
        (
            codec.decoder_width % (1 << len(codec.decoder_rates)) == 0,
            f"the decoder's width {codec.decoder_width} cannot be halved {len(codec.decoder_rates)} times",
        ),
        (
            codec.quantizer_transformer.width == codec.latent,
            f"quantizer width {codec.quantizer_transformer.width}, latent width {codec.latent}",
        ),
        (
            len(codec.encoder_transformers) == len(codec.encoder_rates),
            f"encoder transformers for {len(codec.encoder_transformers)} blocks, rates for {len(codec.encoder_rates)}",
        ),
    ]
    return next((problem for holds, problem in checks if not holds), None)
