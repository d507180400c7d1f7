"""The model's sizes: read from a file, checked against its tensors, refused with one clear error."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fishs2_daemon.engines.s2.config import CodecTransformerConfig, ModelConfig, contradiction
from fishs2_daemon.engines.s2.errors import ModelFileError
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.gguf import GgufFile, MetadataValue
from fishs2_daemon.engines.s2.gguf_writer import header, lay_out, write_gguf
from fishs2_daemon.engines.s2.layout import expected_tensors
from fishs2_daemon.engines.s2.model_file import read_config
from fishs2_daemon.engines.s2.tiny import S2_PRO, TINY

GOLDEN = Path(__file__).parents[2] / "golden"

Shapes = dict[str, tuple[int, ...]]
Read = Callable[..., ModelConfig]


def golden(name: str = "tiny-f16.gguf") -> tuple[dict[str, MetadataValue], Shapes]:
    with GgufFile.open(GOLDEN / name) as file:
        return dict(file.metadata), {info.name: info.shape for info in file.tensors.values()}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a copy of a golden file whose keys and tensors are changed; `None` takes one away."""

    def read_(
        keys: Mapping[str, MetadataValue | None] | None = None,
        tensors: Mapping[str, tuple[int, ...] | None] | None = None,
        types: Mapping[str, GgmlType] | None = None,
    ) -> ModelConfig:
        values, shapes = golden()
        changed = {key: value for key, value in {**values, **(keys or {})}.items() if value is not None}
        kept = {name: shape for name, shape in {**shapes, **(tensors or {})}.items() if shape is not None}
        placed = lay_out((name, shape, (types or {}).get(name, GgmlType.F16)) for name, shape in kept.items())
        path = tmp_path / "model.gguf"
        write_gguf(path, changed, placed, lambda info: [bytes(info.nbytes)])
        with GgufFile.open(path) as file:
            return read_config(file)

    return read_


@pytest.mark.parametrize("name", ["tiny-f32.gguf", "tiny-f16.gguf"])
def test_golden_geometry(name: str) -> None:
    with GgufFile.open(GOLDEN / name) as file:
        config = read_config(file)
        assert {tensor for tensor, _ in expected_tensors(config)} == set(file.tensors)
    slow, fast, codec = config.slow, config.fast, config.codec
    assert (slow.layers, slow.width, slow.heads, slow.kv_heads, slow.head_dim, slow.ffn) == (3, 64, 4, 2, 32, 160)
    assert (slow.q_width, slow.kv_width, slow.qkv_rows) == (128, 64, 256)
    assert (slow.context, slow.vocab, slow.semantic_begin, slow.semantic_end) == (4096, 352, 288, 351)
    assert (slow.qk_norm, slow.tied_head, slow.scale_embeddings, slow.rope_base) == (True, True, True, 1e6)
    assert slow.norm_eps == pytest.approx(1e-6)
    assert (fast.layers, fast.width, fast.heads, fast.kv_heads, fast.head_dim, fast.ffn) == (2, 64, 4, 2, 32, 160)
    assert (fast.qk_norm, fast.project_in, fast.tied_head, fast.normed_input) == (False, False, False, True)
    assert fast.context == 11
    assert (slow.codebooks, slow.codebook_size, fast.codebook_size) == (10, 64, 64)
    assert (codec.sample_rate, codec.frame_samples, codec.latent) == (44100, 2048, 64)
    assert (codec.encoder_channels, codec.decoder_channels) == ((4, 8, 16, 32, 64), (48, 24, 12, 6, 3))
    assert codec.codebook_sizes == (64, *9 * (16,))
    assert codec.encoder_transformers[:3] == (None, None, None)
    encoder, quantizer = codec.encoder_transformers[3], codec.quantizer_transformer
    assert isinstance(encoder, CodecTransformerConfig)
    assert (encoder.layers, encoder.heads, encoder.head_dim, encoder.ffn, encoder.window) == (2, 1, 64, 192, 512)
    assert (quantizer.layers, quantizer.heads, quantizer.kv_heads, quantizer.head_dim) == (3, 4, 4, 16)
    assert (quantizer.ffn, quantizer.window, quantizer.rope_base) == (96, 8, 1e4)


def test_s2_pro_has_the_documented_tensors() -> None:
    config = S2_PRO.config()
    shapes = dict(expected_tensors(config))
    codec = {name: shape for name, shape in shapes.items() if name.startswith("c.")}
    assert (len(shapes), len(codec)) == (813, 455)
    assert sum(GgmlType.I8.nbytes(shape) for shape in codec.values()) == pytest.approx(391.4e6, abs=0.05e6)
    assert shapes["layers.35.attention.wqkv.weight"] == (2560, 6144)
    assert shapes["layers.0.attention.wo.weight"] == (4096, 2560)
    assert shapes["embeddings.weight"] == (2560, 155776)
    assert shapes["c.decoder.model.1.block.1.conv.weight"] == (16, 768, 1536)
    assert shapes["c.quantizer.downsample.0.1.dwconv.conv.weight"] == (7, 1, 1024)
    assert (config.slow.semantic_begin, config.slow.semantic_end, config.codec.frame_samples) == (151678, 155773, 2048)


def test_missing_keys_take_the_values_of_s2_pro(tmp_path: Path) -> None:
    """The header alone, with data that takes no room on disk."""
    config = S2_PRO.config()
    path = tmp_path / "bare.gguf"
    placed = lay_out((name, shape, GgmlType.F16) for name, shape in expected_tensors(config))
    with path.open("wb") as file:
        file.write(header({"general.architecture": "fish-speech"}, placed))
        file.truncate(file.tell() + placed[-1].offset + placed[-1].nbytes)
    with GgufFile.open(path) as opened:
        assert read_config(opened) == config


def test_flags_may_be_integers(read: Read) -> None:
    keys = {"fish_speech.scale_codebook_embeddings": 0, "fish_speech.norm_fastlayer_input": 0}
    config = read(keys)
    assert (config.slow.scale_embeddings, config.fast.normed_input) == (False, False)


def test_tensors_that_are_not_known_are_ignored(read: Read) -> None:
    extra = {"c.freqs_cis": (8, 4, 2), "layers.3.attention.wo.weight": (1,), "fast_project_in.bias": (3,)}
    assert read(tensors=extra, types={"c.freqs_cis": GgmlType.I32}) == read()


def test_trailing_dimensions_of_one_do_not_matter(read: Read) -> None:
    assert read(tensors={"c.decoder.model.5.alpha": (1, 3), "norm.weight": (64, 1, 1)}) == read()


def test_presence_decides_when_keys_are_missing(read: Read) -> None:
    keys = dict.fromkeys(("fish_speech.attention_qk_norm", "fish_speech.tie_word_embeddings"))
    assert (read(keys).slow.qk_norm, read(keys).slow.tied_head) == (True, True)
    norms = {f"layers.{layer}.attention.{which}_norm.weight": None for layer in range(3) for which in "qk"}
    plain = read(keys, {**norms, "output.weight": (64, 352)})
    assert (plain.slow.qk_norm, plain.slow.tied_head, plain.slow.head_dim) == (False, False, 32)


def test_a_head_of_its_own_counts_even_if_its_key_denies_it(read: Read) -> None:
    assert read(tensors={"output.weight": (64, 352)}).slow.tied_head is False


def test_biases_and_tied_fast_head(read: Read) -> None:
    keys = {"fish_speech.fast_attention_qkv_bias": True, "fish_speech.fast_tie_word_embeddings": True}
    tensors = {f"fast_layers.{layer}.attention.wqkv.bias": (256,) for layer in range(2)}
    config = read(keys, {**tensors, "fast_output.weight": None})
    assert (config.fast.qkv_bias, config.fast.o_bias, config.fast.tied_head) == (True, False, True)


def test_residual_codebooks_have_the_sizes_of_their_tensors(read: Read) -> None:
    keys = {"fish_speech.codec.quantizer_residual_codebook_size": 9999}
    config = read(keys, {"c.quantizer.quantizer.quantizers.4.codebook.weight": (8, 20)})
    assert config.codec.codebook_sizes == (64, 16, 16, 16, 16, 20, 16, 16, 16, 16)


def test_grouped_heads_of_the_codec(read: Read) -> None:
    tensors = {
        f"c.quantizer.{part}_module.layers.{layer}.attention.wqkv.weight": (64, 128)
        for part in ("pre", "post")
        for layer in range(3)
    }
    config = read({"fish_speech.codec.rvq_transformer.n_local_heads": 2}, tensors)
    assert config.codec.quantizer_transformer.kv_heads == 2


SLOW, OWN, CODEC = "fish-speech", "fish_speech", "fish_speech.codec"

WRONG_KEYS = {
    "no architecture": ({"general.architecture": None}, "architecture None, not 'fish-speech'"),
    "other architecture": ({"general.architecture": "llama\n"}, r"architecture 'llama\\n', not 'fish-speech'"),
    "codec alone": ({"general.architecture": "fish-speech-codec"}, "holds a codec alone"),
    "zero": ({f"{SLOW}.block_count": 0}, "key fish-speech.block_count: 0 is no whole number from 1 to 512"),
    "negative": ({f"{SLOW}.embedding_length": -64}, "key fish-speech.embedding_length: -64 is no whole"),
    "enormous": ({f"{SLOW}.block_count": 2**31}, "key fish-speech.block_count: 2147483648 is no whole"),
    "text": ({f"{SLOW}.vocab_size": "352"}, "key fish-speech.vocab_size: '352' is no whole"),
    "bool": ({f"{OWN}.num_codebooks": True}, "key fish_speech.num_codebooks: True is no whole"),
    "real": ({f"{OWN}.fast_block_count": 2.0}, "key fish_speech.fast_block_count: 2.0 is no whole"),
    "list for a number": ({f"{OWN}.fast_head_dim": (32,)}, r"key fish_speech.fast_head_dim: \(32,\) is no whole"),
    "number for a list": ({f"{CODEC}.decoder_rates": 8}, "key fish_speech.codec.decoder_rates: 8 is no list"),
    "empty list": ({f"{CODEC}.encoder_rates": ()}, r"key fish_speech.codec.encoder_rates: \(\) is no list"),
    "long list": ({f"{CODEC}.encoder_rates": (2,) * 9}, "key fish_speech.codec.encoder_rates: .* is no list"),
    "zero rate": ({f"{CODEC}.decoder_rates": (8, 8, 4, 0)}, "key fish_speech.codec.decoder_rates: 0 is no whole"),
    "nan": ({f"{SLOW}.rope.freq_base": float("nan")}, "key fish-speech.rope.freq_base: nan is no number"),
    "infinite": ({f"{SLOW}.rope.freq_base": float("inf")}, "key fish-speech.rope.freq_base: inf is no number"),
    "eps 0": ({f"{OWN}.fast_layer_norm_rms_eps": 0.0}, "key fish_speech.fast_layer_norm_rms_eps: 0.0 is no"),
    "flag text": ({f"{OWN}.norm_fastlayer_input": "yes"}, "key fish_speech.norm_fastlayer_input: 'yes' is neither"),
    "heads": ({f"{SLOW}.attention.head_count_kv": 3}, "slow transformer's 4 heads do not share 3 key/value heads"),
    "fast heads": ({f"{OWN}.fast_head_count": 3}, "fast transformer's 3 heads do not share 2 key/value heads"),
    "odd head": ({f"{OWN}.fast_head_dim": 33}, "fast transformer's head dimension 33 is odd"),
    "odd codec head": ({f"{CODEC}.rvq_transformer.head_dim": 15}, "quantizer's transformer's head dimension 15 is odd"),
    "semantic range": ({f"{OWN}.semantic_end_id": 350}, "63 semantic tokens for a codebook of 64"),
    "semantic backwards": ({f"{OWN}.semantic_end_id": 3}, "-284 semantic tokens for a codebook of 64"),
    "beyond vocabulary": (
        {f"{OWN}.semantic_begin_id": 289, f"{OWN}.semantic_end_id": 352},
        "semantic token 352 in a vocabulary of 352",
    ),
    "codebooks": ({f"{OWN}.num_codebooks": 9}, "9 codebooks in the transformers, 10 in the codec"),
    "codebook size": (
        {f"{OWN}.codebook_size": 32, f"{OWN}.semantic_end_id": 319},
        "32 semantic codes, 64 in the codec",
    ),
    "fast positions": ({f"{OWN}.fast_context_length": 9}, "10 codebooks for 9 positions"),
    "rates": ({f"{CODEC}.decoder_rates": (8, 8, 4, 4)}, "the encoder's rates .* and the decoder's .* differ"),
    "decoder width": ({f"{CODEC}.decoder_dim": 40}, "the decoder's width 40 cannot be halved 4 times"),
    "quantizer width": ({f"{CODEC}.quantizer_input_dim": 32}, "key .*quantizer_input_dim: 32, but .*latent_dim: 64"),
    "codec width": ({f"{CODEC}.rvq_transformer.dim": 32}, "quantizer width 32, latent width 64"),
    "no local heads": ({f"{CODEC}.rvq_transformer.n_local_heads": 0}, "key .*n_local_heads: 0 heads"),
    "encoder blocks": ({f"{CODEC}.encoder_transformer_layers": (0, 0)}, "encoder transformers for 2 blocks"),
    "encoder heads": ({f"{CODEC}.transformer.head_dim": 48}, "head_dim: 48 does not divide the width 64 of encoder"),
    "another width": ({f"{SLOW}.feed_forward_length": 161}, r"found shape \(64, 160\), expected \(64, 161\)"),
    "more layers": ({f"{SLOW}.block_count": 4}, "tensor layers.3.attention_norm.weight is missing"),
    "projection": ({f"{OWN}.fast_project_in": True}, "tensor fast_project_in.weight is missing"),
    "own head": ({f"{OWN}.tie_word_embeddings": False}, "tensor output.weight is missing"),
    "fast norms": ({f"{OWN}.fast_attention_qk_norm": True}, "tensor fast_layers.0.attention.q_norm.weight is missing"),
}


@pytest.mark.parametrize(("keys", "message"), WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_a_key_that_cannot_be(read: Read, keys: dict[str, MetadataValue | None], message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        read(keys)
    assert str(caught.value).startswith("model.gguf: ")
    assert "\n" not in str(caught.value)


BOOK = "c.quantizer.quantizer.quantizers.0.codebook.weight"

WRONG_TENSORS = {
    "missing": ({"norm.weight": None}, "tensor norm.weight is missing"),
    "missing codebook": ({BOOK: None}, f"tensor {BOOK} is missing"),
    "flat codebook": ({BOOK: (8,)}, rf"tensor {BOOK}: shape \(8,\) has no dimension 1"),
    "large codebook": ({BOOK: (8, 65)}, "a residual codebook of 65 exceeds the transformers' 64"),
    "transposed": (
        {"layers.1.attention.wo.weight": (64, 128)},
        r"tensor layers.1.attention.wo.weight: found shape \(64, 128\), expected \(128, 64\)",
    ),
    "one too many": ({"norm.weight": (64, 2)}, r"tensor norm.weight: found shape \(64, 2\), expected \(64,\)"),
    "leading one": ({"norm.weight": (1, 64)}, r"tensor norm.weight: found shape \(1, 64\), expected \(64,\)"),
    "odd head": ({"layers.0.attention.q_norm.weight": (31,)}, "slow transformer's head dimension 31 is odd"),
    "large head": ({"layers.0.attention.q_norm.weight": (1026,)}, "a head dimension of 1026; 1024 is the most"),
    "no head": (
        {"layers.0.attention.q_norm.weight": None, "layers.0.attention.wo.weight": (130, 64)},
        "tensor layers.0.attention.wo.weight: rows of 130 for 4 heads",
    ),
    "nothing to tell the head": (
        {"layers.0.attention.q_norm.weight": None, "layers.0.attention.wo.weight": None},
        "tensor layers.0.attention.wo.weight is missing",
    ),
    "encoder": (
        {"c.encoder.block.4.block.5.layers.0.feed_forward.w1.weight": None},
        "tensor c.encoder.block.4.block.5.layers.0.feed_forward.w1.weight is missing",
    ),
}


@pytest.mark.parametrize(("tensors", "message"), WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_a_tensor_that_cannot_be(read: Read, tensors: dict[str, tuple[int, ...] | None], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read(tensors=tensors)


def test_weights_are_no_integers(read: Read) -> None:
    with pytest.raises(ModelFileError, match=r"tensor norm\.weight: found type I32, expected floats"):
        read(types={"norm.weight": GgmlType.I32})


def test_widths_that_differ_need_a_projection() -> None:
    config = TINY.config()
    assert contradiction(config) is None
    wider = replace(config, fast=replace(config.fast, width=128))
    assert contradiction(wider) == "slow and fast widths differ without a projection between them"
