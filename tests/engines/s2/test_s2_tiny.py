"""Made-up models: whatever their geometry, they open and are what was asked for."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from fishs2_daemon.engines.s2.errors import ModelFileError
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.gguf import GgufFile
from fishs2_daemon.engines.s2.gguf_writer import header
from fishs2_daemon.engines.s2.layout import expected_tensors
from fishs2_daemon.engines.s2.model_file import read_config
from fishs2_daemon.engines.s2.tiny import QUANTISATIONS, S2_PRO, SHAPES, TINY, Geometry, make_model, metadata, plan

GOLDEN = Path(__file__).parents[2] / "golden"

GEOMETRIES = {
    "tiny": TINY,
    "untied, no norms": replace(TINY, tied_head=False, qk_norm=False, layers=1),
    "projected": replace(TINY, fast_width=32, fast_heads=2, fast_kv_heads=1, fast_ffn=48, fast_layers=1),
    "projected without bias": replace(TINY, fast_width=96, project_in_bias=False),
    "other codes": replace(TINY, codebooks=4, codebook_size=100, residual_size=30, codebook_width=5),
    "other codec": replace(
        TINY,
        latent=48,
        encoder_width=6,
        decoder_width=32,
        codec_layers=1,
        codec_window=5,
        codec_head_dim=6,
        encoder_head_dim=24,
        encoder_layers=(0, 1, 0, 2),
        encoder_ffn=40,
    ),
    "other rates": replace(
        TINY,
        encoder_rates=(3, 4),
        decoder_rates=(2, 6),
        downsample=(2, 3),
        encoder_layers=(0, 0),
    ),
}


@pytest.mark.parametrize("dtype", [GgmlType.F32, GgmlType.F16])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_opens_as_it_was_asked_for(tmp_path: Path, geometry: Geometry, dtype: GgmlType) -> None:
    make_model(tmp_path / "m.gguf", geometry, dtype=dtype)
    config = geometry.config()
    with GgufFile.open(tmp_path / "m.gguf") as file:
        found = read_config(file)
        assert {info.name: info.shape for info in file.tensors.values()} == dict(expected_tensors(config))
        assert {info.type for info in file.tensors.values()} == {dtype}
    # The file holds 32 bits of 1e-6 and of 1e-5.
    for part in ("slow", "fast"):
        stack, wanted = getattr(found, part), getattr(config, part)
        assert stack.norm_eps == pytest.approx(wanted.norm_eps)
        assert replace(stack, norm_eps=wanted.norm_eps) == wanted
    assert repr(found.codec).replace("9.999999747378752e-06", "1e-05") == repr(config.codec)


def test_has_every_key_and_tensor_of_the_official_exports() -> None:
    config = TINY.config()
    with GgufFile.open(GOLDEN / "tiny-f16.gguf") as file:
        shapes = {info.name: info.shape for info in file.tensors.values()}
        shapes["embeddings.weight"] = (64, config.slow.vocab)  # the vocabularies differ by a few merges
        assert {info.name: info.shape for info in plan(config, GgmlType.F16)} == shapes
        written = metadata(config, GgmlType.F16)
        assert set(file.metadata) - set(written) == {"general.basename", "general.description"}
        assert {key: type(value) for key, value in written.items()} == {
            key: type(value) for key, value in file.metadata.items() if key in written
        }


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_model(tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_all_types_hold_the_same_values(tmp_path: Path) -> None:
    files = {}
    for dtype in (GgmlType.F32, GgmlType.F16, GgmlType.BF16):
        make_model(tmp_path / dtype.name, dtype=dtype)
        files[dtype] = GgufFile.open(tmp_path / dtype.name)
    for name, info in files[GgmlType.F32].tensors.items():
        exact = files[GgmlType.F32].data(name).view("<f4")
        assert np.array_equal(exact, files[GgmlType.F16].data(name).view("<f2")), name
        matrix = len(info.shape) > 1 and not name.startswith("c.")
        assert files[GgmlType.BF16].tensors[name].type is (GgmlType.BF16 if matrix else GgmlType.F16)
        if matrix:
            rounded = (files[GgmlType.BF16].data(name).view("<u2").astype(np.uint32) << 16).view(np.float32)
            assert np.abs(rounded - exact).max() <= np.abs(exact).max() / 256


def test_quantised_types_are_for_the_transformers_matrices(tmp_path: Path) -> None:
    seen: list[tuple[tuple[int, ...], np.dtype]] = []

    def quantise(rows: np.ndarray, kind: GgmlType) -> np.ndarray:
        seen.append((rows.shape, rows.dtype))
        return np.zeros((len(rows), kind.nbytes((rows.shape[1],))), np.uint8)

    wide = {"width": 256, "heads": 4, "head_dim": 64, "ffn": 512}
    geometry = replace(TINY, **wide, **{f"fast_{name}": size for name, size in wide.items()})
    make_model(tmp_path / "m.gguf", geometry, dtype=GgmlType.Q4_K, quantise=quantise)
    with GgufFile.open(tmp_path / "m.gguf") as file:
        assert read_config(file).slow.width == 256
        for name, info in file.tensors.items():
            matrix = len(info.shape) == 2 and not name.startswith("c.")
            assert info.type is (GgmlType.Q4_K if matrix else GgmlType.F16), name
    assert {dtype for _, dtype in seen} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "4 heads do not share 3"),
        ({"fast_head_dim": 31}, "head dimension 31 is odd"),
        ({"residual_size": 65}, "a residual codebook of 65"),
        ({"decoder_width": 20}, "cannot be halved 4 times"),
        ({"encoder_head_dim": 48}, "width 64 has no heads of 48"),
        ({"vocab": 100}, "in a vocabulary of 100"),
        ({"text_pieces": 100}, "has at least 2.. pieces of text, not 100"),
    ],
)
def test_sizes_that_contradict_each_other(tmp_path: Path, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(tmp_path / "m.gguf", replace(TINY, **change))


def test_rows_that_do_not_suit_the_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Q4_K takes 256 values at a time, and embeddings\.weight has rows of 64"):
        make_model(tmp_path / "m.gguf", dtype=GgmlType.Q4_K)


def test_weights_keep_activations_near_one(tmp_path: Path) -> None:
    """A random direction of length 1 in, and each matrix gives about the same out, whatever the widths."""
    wide = replace(TINY, width=192, ffn=320, fast_width=128, latent=96, encoder_width=12, decoder_width=80)
    random = np.random.default_rng(0)
    for geometry in (TINY, replace(wide, codec_head_dim=24)):
        make_model(tmp_path / "m.gguf", geometry, dtype=GgmlType.F32)
        with GgufFile.open(tmp_path / "m.gguf") as file:
            for name, info in file.tensors.items():
                weights = file.data(name).view("<f4").reshape(info.shape[::-1])
                assert np.isfinite(weights).all()
                if name.endswith(("attention.wqkv.weight", "feed_forward.w2.weight", "pwconv1.weight")):
                    out = weights @ random.standard_normal((info.shape[0], 50))
                    assert 0.7 < out.std() < 1.4, name
                if name in ("embeddings.weight", "fast_output.weight"):
                    assert 2.3 < (weights @ random.standard_normal((info.shape[0], 50))).std() < 3.7, name
                if name.endswith("alpha"):
                    assert weights.min() > 0.1, name


def test_the_tokenizer_that_goes_with_it(tmp_path: Path) -> None:
    make_model(tmp_path / "m.gguf")
    with GgufFile.open(tmp_path / "m.gguf") as file:
        slow = read_config(file).slow
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == slow.vocab
    semantic = [tokenizer.token_to_id(f"<|semantic:{code}|>") for code in range(slow.codebook_size)]
    assert semantic == list(range(slow.semantic_begin, slow.semantic_end + 1))
    words = TINY.vocabulary
    assert tokenizer.token_to_id("<|im_end|>") == words.im_end
    assert tokenizer.token_to_id("<|audio_pad|>") == words.audio_pad == slow.semantic_begin - 1
    assert (tokenizer.token_to_id("!"), tokenizer.token_to_id("Ċ"), tokenizer.token_to_id("Ġ")) == (0, 198, 220)
    text = "Hello  there: the Ärger isn't\n\nover 12 日本語 🐟."
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("é").ids
    assert [tokenizer.id_to_token(number) for number in tokenizer.encode("to the:\n\n").ids] == [
        *("t", "o", "Ġthe", ":ĊĊ"),
    ]
    assert len(tokenizer.encode("<|im_start|>user\n").ids) == len("user\n") + 1 - len(["er"])


def test_full_size_without_its_weights(tmp_path: Path) -> None:
    """The table of the file that `--shape s2-pro` writes: as large as the public one, and readable."""
    config = S2_PRO.config()
    half, small = plan(config, GgmlType.F16), plan(config, GgmlType.Q4_K)
    assert len(half) == 813
    assert half[-1].offset + half[-1].nbytes == pytest.approx(9.9e9, rel=0.02)
    assert small[-1].offset + small[-1].nbytes < 3.6e9
    assert all(first.offset + first.nbytes <= second.offset for first, second in pairwise(half))
    path = tmp_path / "hollow.gguf"
    with path.open("wb") as file:
        file.write(header(metadata(config, GgmlType.F16), half))
        file.truncate(file.tell() + half[-1].offset + half[-1].nbytes)
    with GgufFile.open(path) as opened:
        assert read_config(opened).slow.vocab == 155776


@pytest.mark.parametrize(
    ("name", "published", "tolerance"),
    [
        ("f16", 9.9e9, 0.05e9),
        ("q8_0", 5_630_037_088, 256),
        ("q6_k", 4.5e9, 0.05e9),
        ("q5_k_m", 4.0e9, 0.05e9),
        ("q4_k_m", 3_566_165_088, 256),
        ("q3_k", 3.0e9, 0.05e9),
        ("q2_k", 2.6e9, 0.05e9),
    ],
)
def test_the_variants_are_as_large_as_the_public_ones(name: str, published: float, tolerance: float) -> None:
    config, dtype = S2_PRO.config(), QUANTISATIONS[name]
    tensors = plan(config, dtype)
    size = len(header(metadata(config, dtype), tensors)) + tensors[-1].offset + tensors[-1].nbytes
    assert size == pytest.approx(published, abs=tolerance)


def test_a_mixture_has_better_types_where_it_matters() -> None:
    types = {info.name: info.type.name for info in plan(SHAPES["bench"].config(), QUANTISATIONS["q4_k_m"])}
    better = {name for name, kind in types.items() if kind == "Q6_K" and name.startswith("layers")}
    matrices = ("feed_forward.w2", "attention.wqkv")
    assert better == {f"layers.{index}.{matrix}.weight" for index in (0, 3, 6, 9, 10, 11) for matrix in matrices}
    assert (types["fast_output.weight"], types["embeddings.weight"], types["norm.weight"]) == ("Q6_K", "Q4_K", "F16")


def test_the_shape_for_benchmarks_suits_every_quantisation() -> None:
    config = SHAPES["bench"].config()
    parameters = sum(prod(shape) for _, shape in expected_tensors(config))
    assert 140e6 < parameters < 160e6
    for dtype in QUANTISATIONS.values():
        assert plan(config, dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec_window": 1 << 13}, r"key fish_speech\.codec\.rvq_transformer\.window_size: 8192 is no whole number"),
        ({"heads": 34, "head_dim": 512}, "slow transformer's attention is 17408 wide; 16384 is the most"),
        ({"fast_layers": 257, "fast_heads": 32, "fast_kv_heads": 32}, "fast transformer has 263168 keys; 262144 is"),
        ({"encoder_rates": (64, 64), "decoder_rates": (64, 64), "downsample": (17,), "encoder_layers": (0, 0)},
         "frames have 69632 samples; 65536 is the most"),
    ],
)  # fmt: skip
def test_a_small_file_that_would_take_much_memory_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    small = replace(TINY, width=2, ffn=2, fast_width=2, fast_ffn=2, latent=64, encoder_width=1, decoder_width=16)
    small = replace(small, **{"encoder_layers": (0, 0, 0, 0)} | change)
    make_model(tmp_path / "m.gguf", small)
    with GgufFile.open(tmp_path / "m.gguf") as file, pytest.raises(ModelFileError, match=message):
        read_config(file)


def test_the_full_size_tokenizer_has_the_published_ids(tmp_path: Path) -> None:
    S2_PRO.vocabulary.write(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    names = ("endoftext", "im_start", "im_end", "pad", "phoneme_start", "voice", "audio_pad", "semantic:0")
    ids = [tokenizer.token_to_id(f"<|{name}|>") for name in (*names, "semantic:4095")]
    assert ids == [151643, 151644, 151645, 151669, 151670, 151673, 151677, 151678, 155773]


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fishs2_daemon.engines.s2.tiny", str(tmp_path / "out")]
    options = ["--quant", "f32", "--seed", "3", "--layers", "1", "--no-tied-head", "--encoder-layers", "0,0,0,1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    path = tmp_path / "out" / "tiny-f32.gguf"
    assert done.stdout == f"{path}\n"
    with GgufFile.open(path) as file:
        config = read_config(file)
    assert (config.slow.layers, config.slow.tied_head) == (1, False)
    assert (tmp_path / "out" / "tokenizer.json").exists()
    done = subprocess.run([*command, "--kv-heads", "3"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: the slow transformer's 4 heads do not share 3 key/value heads evenly" in done.stderr
