"""The parity tool, as it is started from a shell: on the golden folder, on damaged ones, and on other geometries."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.prompt import PromptFormat, Reference
from fishs2_daemon.engines.s2.tiny import TINY, Geometry, make_model
from fishs2_daemon.engines.s2.tokenizer import Tokenizer
from tests.engines.s2 import reference

pytestmark = pytest.mark.skipif(find_spec("ggml") is None, reason="ggml-python is not installed")

GOLDEN = Path(__file__).parents[2] / "golden"
TEXTS = ("tokenizer.json", "golden_meta.json", "tokenizer_golden.json")

OTHER = replace(
    TINY,
    layers=2,
    width=48,
    heads=6,
    kv_heads=3,
    head_dim=20,
    ffn=72,
    tied_head=False,
    qk_norm=False,
    fast_layers=1,
    fast_width=40,
    fast_head_dim=12,
    codebooks=3,
    codebook_size=40,
    residual_size=12,
    codebook_width=5,
    latent=32,
    decoder_width=16,
    encoder_width=8,
    encoder_rates=(3, 4),
    decoder_rates=(2, 6),
    downsample=(2, 3),
    encoder_layers=(0, 1),
    encoder_head_dim=16,
    codec_layers=2,
    codec_heads=3,
    codec_head_dim=8,
    codec_window=5,
)


def parity(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fishs2_daemon.engines.s2.parity", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def lines_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """All but the summary."""
    assert not done.stderr
    return done.stdout.splitlines()[:-1]


def failed(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Names of the quantities that failed."""
    assert done.returncode == 1, done.stderr
    return [line[23:51].strip() for line in lines_of(done) if line.endswith("FAIL")]


def linked(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).symlink_to(GOLDEN / name)
    return folder


def damage(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Write the golden archive `name` to `folder`, changed."""
    with np.load(GOLDEN / name) as file:
        arrays = {key: file[key].copy() for key in file.files}
    change(arrays)
    np.savez(folder / name, **arrays)


def test_the_golden_folder() -> None:
    done = parity(GOLDEN)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = lines_of(done)
    assert all(line.endswith("  ok") for line in lines)
    assert done.stdout.splitlines()[-1] == f"{len(lines)} compared, 0 failed"
    for file in ("tiny-f32.gguf", "tiny-f16.gguf"):
        names = {line[23:51].strip() for line in lines if line.startswith(file)}
        for prompt in "AB":
            assert {f"{prompt} prefill logits", f"{prompt} bf16 rope logits", f"{prompt} choices"} <= names
            assert {f"{prompt} slow hidden", f"{prompt} fast logits", f"{prompt} greedy frames"} <= names
        assert {"long batch 2 frames", "dec wave whole", "dec wave by 7", "dec_decoder_4"} <= names
        assert {"enc_short codes", "enc_short latent", "enc_long codes"} <= names
    exact = [line for line in lines if line.startswith("tiny-f32.gguf") and "frames" in line]
    assert len(exact) == 7
    for line in exact:
        counts = line[51:].split()
        assert counts[0] == counts[2]


def test_damaged_values_are_named(tmp_path: Path) -> None:
    linked(tmp_path, "tiny-f32.gguf", *TEXTS)

    def transformers(ar: dict[str, Any]) -> None:
        ar["A_prefill_logits_all"][5, 300] += 3e-4
        ar["A_slow_hidden"][3, 0] = np.nan
        ar["A_frames"][7, 9] ^= 1
        ar["B_fast_logits"] = ar["B_fast_logits"][:, :, :-1]
        ar["B_prefill_logits_last_bf16rope"] = ar["B_prefill_logits_all"][-1]
        ar["B_prompt"][0, 20] += 1
        ar["long_output_1"][4, -2] ^= 1

    def codec(arrays: dict[str, Any]) -> None:
        arrays["dec_wave"][-1] += 2e-5
        arrays["dec_decoder_2"][3, 700] += 1e-3
        arrays["enc_long_codes"][0, 7] ^= 1
        del arrays["enc_short_pcm16"]
        arrays["dec_nonsense"] = np.zeros(3)

    damage(tmp_path, "golden_ar.npz", transformers)
    damage(tmp_path, "golden_codec.npz", codec)
    done = parity(tmp_path)
    names = failed(done)
    assert {"A prefill logits", "A slow hidden", "A greedy frames", "A choices", "B fast logits"} <= set(names)
    assert {"B bf16 rope logits", "B prompt", "long prompt 2", "long batch 1 frames"} <= set(names)
    waves = [f"dec wave {how}" for how in ("whole", "by 1", "by 3", "by 7")]
    assert [name for name in names if name[:3] in ("dec", "enc")] == [*waves, "dec_decoder_2", "enc_long codes"]
    assert not {"token ids", "A prompt", "A prefill hidden", "A bf16 rope logits", "dec_decoder_1"} & set(names)
    assert "not compared: no enc_short_pcm16" in done.stdout
    assert "not compared: no activation of this model" in done.stdout


def test_near_ties_may_end_otherwise(tmp_path: Path) -> None:
    """The same damage, with and without a margin that excuses it."""
    linked(tmp_path, "tiny-f32.gguf", *TEXTS)

    def transformers(ar: dict[str, Any]) -> None:
        for name, margin in (("A", 1e-5), ("B", 1e-2)):
            ar[f"{name}_frames"][10, 23] ^= 1  # the last code of the last frame
            ar[f"{name}_margins"][9, 23] = margin
            for what in ("logits", "hidden"):  # its state is another
                ar[f"{name}_slow_{what}"] = ar[f"{name}_slow_{what}"][:24]

    def codec(arrays: dict[str, Any]) -> None:
        for name, margin in (("short", 1e-5), ("long", 1e-2)):
            arrays[f"enc_{name}_codes"][8:, 5] ^= 1
            arrays[f"enc_{name}_margin"][8, 5] = margin

    damage(tmp_path, "golden_ar.npz", transformers)
    damage(tmp_path, "golden_codec.npz", codec)
    done = parity(tmp_path)
    assert failed(done) == ["B choices", "B greedy frames", "enc_long codes"]
    assert "the first 23 of 24 equal, then codebook 9 has a margin of 1.0e-05" in done.stdout


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """Without a tokenizer, the recording's end token serves."""
    linked(tmp_path, "tiny-f16.gguf", "golden_meta.json")

    def only_prefill(ar: dict[str, Any]) -> None:
        for key in [*ar]:
            if key not in ("A_prompt", "A_prefill_hidden_all", "B_frames"):
                del ar[key]

    damage(tmp_path, "golden_ar.npz", only_prefill)
    done = parity(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line[23:51].strip() for line in lines_of(done) if line.endswith("  ok")] == ["A prefill hidden"]
    for missing in ("A_frames", "B_prompt", "A_prefill_logits_all"):
        assert f"not compared: no {missing}\n" in done.stdout
    for file in ("tokenizer.json", "golden_codec.npz", "tokenizer_golden.json"):
        assert any(line.startswith(file) and "no such file" in line for line in lines_of(done))


def test_damaged_files_are_failures(tmp_path: Path) -> None:
    linked(tmp_path, "tiny-f32.gguf", "golden_meta.json")
    (tmp_path / "tiny-f16.gguf").write_bytes((GOLDEN / "tiny-f16.gguf").read_bytes()[:50_000])
    (tmp_path / "golden_ar.npz").write_bytes(b"PK nothing")
    (tmp_path / "tokenizer_golden.json").write_text("{")
    (tmp_path / "tokenizer.json").write_text("[]")
    assert len(failed(parity(tmp_path))) == 4
    assert len(failed(parity(tmp_path, "--file", "tiny-f32.gguf"))) == 3


@pytest.mark.parametrize(
    "options", [[], ["--file", "tiny-f32.gguf"], ["--backend", "abacus"]], ids=["empty", "no such file", "backend"]
)
def test_unusable_arguments(tmp_path: Path, options: list[str]) -> None:
    done = parity(GOLDEN if "--backend" in options else tmp_path, *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_model_alone_is_nothing_to_compare(tmp_path: Path) -> None:
    done = parity(linked(tmp_path, "tiny-f16.gguf"))
    assert done.returncode == 2
    assert done.stderr == f"parity: {tmp_path}: holds nothing that could be compared\n"


def record(folder: Path, geometry: Geometry) -> None:
    """A folder of another geometry: what the numpy reference makes of its model takes the official recording's place.

    Three prompts, one of which ends by itself; two recordings for the decoder.
    """
    for dtype in (GgmlType.F16, GgmlType.F32):
        make_model(folder / f"tiny-{dtype.name.lower()}.gguf", geometry, seed=8, dtype=dtype)
    plain, config = reference.load(folder / "tiny-f32.gguf"), geometry.config()
    slow, codec = config.slow, config.codec
    begin, end = slow.semantic_begin, slow.semantic_end
    tokenizer = Tokenizer.open(folder / "tokenizer.json", vocab_size=slow.vocab, semantic_begin=begin, semantic_end=end)
    prompts = PromptFormat(tokenizer, codebooks=slow.codebooks, codebook_size=slow.codebook_size)
    sizes, random = np.array(codec.codebook_sizes)[:, None], np.random.default_rng(1)
    codes = random.integers(0, sizes, (slow.codebooks, 30))
    voice = Reference(codes[:, :9], "A voice.")
    meta = {"text_P": "One.", "text_long2": "Two, it is?", "text_Q": "Three", "ref_text_Q": voice.transcript}
    ar: dict[str, np.ndarray] = {}
    for name, voices in (("P", []), ("long2", []), ("Q", [voice])):
        prompt = prompts.begin(voices).ask(meta[f"text_{name}"]).columns
        made = reference.generate(plain, prompt, 12, tokenizer.im_end)
        whole, rounded = reference.SlowAR(plain)(prompt), reference.SlowAR(plain, "bf16")(prompt)
        ar[f"{name}_prompt"], ar[f"{name}_frames"] = prompt, made.frames.astype(np.int32)
        ar[f"{name}_prefill_logits_all"], ar[f"{name}_prefill_hidden_all"] = whole.logits, whole.hidden
        ar[f"{name}_prefill_logits_last_bf16rope"] = rounded.logits[-1]
        ar[f"{name}_slow_logits"], ar[f"{name}_slow_hidden"] = made.slow_logits, made.slow_hidden
        ar[f"{name}_fast_logits"] = made.fast_logits
        choices = made.slow_logits[:-1, [*range(begin, end + 1), tokenizer.im_end]]
        best = [np.sort(each, axis=-1) for each in (choices, *made.fast_logits.swapaxes(0, 1)[1:])]
        ar[f"{name}_margins"] = np.stack([each[:, -1] - each[:, -2] for each in best])
    singles = {key: each.astype(np.float32) for key, each in ar.items() if each.dtype.kind == "f"}
    np.savez(folder / "golden_ar.npz", **(ar | singles))
    trace: dict[str, Any] = {}
    decoder = reference.Decoder(plain)
    recorded = {"dec_codes": codes, "dec_wave": decoder(codes, None, trace), "dec_more_codes": codes[:, 4:9]}
    recorded |= {f"dec_{name}": each[:, :50] for name, each in trace.items()}
    recorded |= {"dec_more_wave": decoder(codes[:, 4:9])}
    pcm = (random.uniform(-0.5, 0.5, 20 * codec.frame_samples + 5) * 32768).astype(np.int16)
    found, margins = reference.Encoder(plain)(pcm / 32768)
    recorded |= {"enc_clip_pcm16": pcm, "enc_clip_codes": found, "enc_clip_margin": margins}
    np.savez(folder / "golden_codec.npz", **recorded)
    (folder / "golden_meta.json").write_text(json.dumps(meta))


def test_another_geometry(tmp_path: Path) -> None:
    record(tmp_path, OTHER)
    done = parity(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = lines_of(done)
    assert sum(line.endswith("  ok") for line in lines) == len(lines) - 1  # there are no recorded strings
    names = {line[23:51].strip() for line in lines if line.startswith("tiny-f32.gguf")}
    for prompt in ("P", "long2", "Q"):
        parts = ("prefill logits", "bf16 rope logits", "slow hidden", "fast logits", "choices", "greedy frames")
        assert {f"{prompt} {part}" for part in parts} <= names
    assert {"dec wave by 3", "dec_more wave whole", "dec_decoder_2", "enc_clip codes"} <= names
    prompts = [line[23:51].strip() for line in lines if line.startswith("tokenizer.json")]
    assert prompts == ["P prompt", "long2 prompt", "Q prompt"]


def test_another_model_s_recording_fails(tmp_path: Path) -> None:
    """Of other sizes throughout: every quantity fails, none of them ends the run."""
    make_model(tmp_path / "tiny-f32.gguf", OTHER, dtype=GgmlType.F32)
    linked(tmp_path, "golden_ar.npz", "golden_meta.json")
    damage(tmp_path, "golden_codec.npz", lambda arrays: arrays.pop("enc_long_pcm16"))  # long with these short frames
    done = parity(tmp_path)
    names = set(failed(done))
    assert {"A prompt", "A prefill", "A greedy frames", "long batch 0 frames"} <= names
    assert {"dec wave whole", "enc_short codes", "enc_short latent"} <= names
    assert not any(line.endswith("  ok") for line in lines_of(done))
