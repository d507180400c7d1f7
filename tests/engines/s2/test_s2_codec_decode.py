"""The codec's decoder, against the recording of the official classes and, in other sizes, against the numpy reference.

Reached on the golden files: f32, samples 7.2e-7, activations 3.2e-6 (of values up to 4); f16, rms relative 1.0e-4.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishs2_daemon.engines.s2.codec import Decoder
from fishs2_daemon.engines.s2.codec.window_attention import Rope
from fishs2_daemon.engines.s2.ggml import Backend, GraphBuilder
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.placement import converted
from fishs2_daemon.engines.s2.tiny import TINY, Geometry, make_model
from fishs2_daemon.errors import EngineError
from tests.engines.s2 import reference

GOLDEN = Path(__file__).parents[2] / "golden"
CODEC = np.load(GOLDEN / "golden_codec.npz")
CODES: npt.NDArray[np.int32] = CODEC["dec_codes"]
WAVE: npt.NDArray[np.float32] = CODEC["dec_wave"]
FRAME = 2048

#: Small and quick: 24 samples a frame.
QUICK = replace(
    TINY,
    codebooks=3,
    codebook_size=20,
    residual_size=7,
    codebook_width=4,
    latent=24,
    decoder_width=16,
    encoder_width=4,
    encoder_rates=(2, 3),
    decoder_rates=(3, 2),
    downsample=(2, 2),
    encoder_layers=(0, 0),
    codec_layers=2,
    codec_heads=3,
    codec_head_dim=6,
    codec_ffn=20,
    codec_window=5,
)

GEOMETRIES = {
    "quick": QUICK,
    "three stages": replace(
        QUICK, decoder_rates=(2, 1, 4), encoder_rates=(4, 2), decoder_width=40, downsample=(3, 1, 2)
    ),
    "one stage": replace(QUICK, decoder_rates=(5,), encoder_rates=(5,), encoder_layers=(0,), downsample=(2,)),
    "no history in attention": replace(QUICK, codec_window=1, codec_heads=1, codec_head_dim=10),
    "wide window": replace(QUICK, codec_window=64, codec_heads=8, codec_head_dim=2, codec_layers=1),
    "two codebooks": replace(QUICK, codebooks=2, codebook_width=3),
}


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend.open("cpu", threads=1) as backend:
        yield backend


@pytest.fixture(scope="module")
def decoder(backend: Backend) -> Iterator[Decoder]:
    with Model.load(GOLDEN / "tiny-f32.gguf", backend) as model, Decoder(model, rope="f32", together=True) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def quick_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quick") / "quick.gguf"
    make_model(path, QUICK, seed=5, dtype=GgmlType.F32)
    return path


@pytest.fixture(scope="module")
def quick(backend: Backend, quick_file: Path) -> Iterator[Decoder]:
    with Model.load(quick_file, backend) as model, Decoder(model, rope="f32", together=True) as decoder:
        yield decoder


def farthest(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


def in_pieces(decoder: Decoder, codes: npt.NDArray[np.integer], plan: list[int]) -> npt.NDArray[np.float32]:
    """Calls of so many frames each, over and over, in a stream of its own."""
    pieces, at, call = [], 0, 0
    with decoder.open_stream() as stream:
        while at < codes.shape[1]:
            pieces.append(stream.decode(codes[:, at : at + plan[call % len(plan)]]))
            at += plan[call % len(plan)]
            call += 1
    return np.concatenate(pieces)


def some_codes(n: int, geometry: Geometry = QUICK, seed: int = 0) -> npt.NDArray[np.int64]:
    sizes = [geometry.codebook_size, *(geometry.codebooks - 1) * [geometry.residual_size]]
    return np.random.default_rng(seed).integers(0, np.array(sizes)[:, None], (geometry.codebooks, n))


@pytest.mark.parametrize("frames", [40, 7, 3, 1])
def test_golden_samples(decoder: Decoder, frames: int) -> None:
    samples = in_pieces(decoder, CODES, [frames])
    assert samples.dtype == np.float32
    assert farthest(samples, WAVE) < 2e-6


def test_golden_activations(decoder: Decoder) -> None:
    seen = decoder.trace(CODES)
    assert {f"dec_{name}" for name in seen} == {name for name in CODEC if name[:4] == "dec_"} - {
        "dec_codes",
        "dec_wave",
    } | {"dec_samples"}
    assert farthest(seen.pop("samples")[0], WAVE) < 2e-6
    for name, activation in seen.items():
        recorded = CODEC[f"dec_{name}"]  # of some blocks only the first columns
        assert farthest(activation[:, : recorded.shape[1]], recorded) < 1e-5, name


@settings(max_examples=5, deadline=None)
@given(plan=st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_golden_samples_in_random_pieces(decoder: Decoder, plan: list[int]) -> None:
    assert farthest(in_pieces(decoder, CODES[:, :20], plan), WAVE[: 20 * FRAME]) < 2e-6


@pytest.mark.parametrize("plan", [[40], [1, 5]])
def test_golden_samples_of_f16_weights(backend: Backend, plan: list[int]) -> None:
    with (
        Model.load(GOLDEN / "tiny-f16.gguf", backend, skip=converted) as model,
        Decoder(model, rope="f32", together=True) as decoder,
    ):
        error = in_pieces(decoder, CODES, plan) - WAVE
    assert np.sqrt(np.mean(error**2) / np.mean(WAVE**2)) < 3e-4


def test_codes_out_of_range_are_clamped(quick: Decoder) -> None:
    codes = some_codes(9)
    wild = codes.copy()
    wild[0, 0], wild[1, 3], wild[2, 8], wild[1, 4] = -1, 7, 2**31 - 1, -(2**31)
    codes[0, 0], codes[1, 3], codes[2, 8], codes[1, 4] = 0, 6, 6, 0
    assert np.array_equal(in_pieces(quick, wild, [9]), in_pieces(quick, codes, [9]))
    assert np.array_equal(in_pieces(quick, wild.astype(np.int32), [9]), in_pieces(quick, codes, [9]))


@settings(max_examples=10, deadline=None)
@given(plan=st.lists(st.integers(1, 25), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_pieces_equal_the_whole(quick: Decoder, plan: list[int], seed: int) -> None:
    codes = some_codes(50, seed=seed)
    assert farthest(in_pieces(quick, codes, plan), quick.trace(codes)["samples"][0]) < 1e-6


def test_streams_do_not_mix(quick: Decoder) -> None:
    """More of them than there were slots at first; some start late, some end early and leave their slot to others."""
    random = np.random.default_rng(6)
    codes = [some_codes(int(n), seed=index) for index, n in enumerate(random.integers(1, 40, 12))]
    expected = [in_pieces(quick, each, [50]) for each in codes]
    waiting, open_ = list(range(12)), {}
    spoken: dict[int, list[npt.NDArray[np.float32]]] = {index: [] for index in range(12)}
    while waiting or open_:
        if waiting and (len(open_) < 2 or random.random() < 0.4):
            index = waiting.pop()
            open_[index] = [quick.open_stream(), 0]
        index = int(random.choice(list(open_)))
        stream, at = open_[index]
        n = int(random.integers(1, 6))
        spoken[index].append(stream.decode(codes[index][:, at : at + n]))
        open_[index][1] += n
        if open_[index][1] >= codes[index].shape[1]:
            stream.close()
            del open_[index]
    for index in range(12):
        assert farthest(np.concatenate(spoken[index]), expected[index]) < 1e-6


@pytest.mark.parametrize("together", [2, 3, 11])
def test_several_streams_in_one_pass(quick: Decoder, together: int) -> None:
    codes = [some_codes(19, seed=index) for index in range(together)]
    with ExitStack() as stack:
        streams = [stack.enter_context(quick.open_stream()) for _ in range(together)]
        streams[0].decode(codes[0][:, :6])  # the others are at their start then
        first = quick.decode(streams, [codes[0][:, 6:13], *(each[:, :7] for each in codes[1:])])
        second = quick.decode(streams[::-1], [each[:, 7:] for each in codes[:0:-1]] + [codes[0][:, 7:]])
    for index in range(1, together):
        heard = np.concatenate([first[index], second[together - 1 - index]])
        assert farthest(heard, in_pieces(quick, codes[index], [19])) < 1e-6
    assert farthest(first[0], in_pieces(quick, codes[0], [19])[6 * 24 : 13 * 24]) < 1e-6


@pytest.mark.parametrize("rope", ["f32", "bf16"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_other_sizes(backend: Backend, tmp_path: Path, name: str, rope: Rope) -> None:
    geometry, path = GEOMETRIES[name], tmp_path / "model.gguf"
    make_model(path, geometry, seed=7, dtype=GgmlType.F32)
    codes = some_codes(70, geometry)
    whole = reference.Decoder(reference.load(path), "exact" if rope == "f32" else rope)(codes)
    assert whole.std() > 0.01
    with Model.load(path, backend, skip=converted) as model, Decoder(model, rope=rope, together=True) as decoder:
        assert farthest(in_pieces(decoder, codes, [1, 70]), whole) < 2e-6


def test_rounded_rope_is_another_sound(quick: Decoder, quick_file: Path, backend: Backend) -> None:
    codes = some_codes(30)
    with Model.load(quick_file, backend) as model, Decoder(model, together=True) as decoder:
        assert farthest(in_pieces(decoder, codes, [30]), in_pieces(quick, codes, [30])) > 1e-5


def test_a_long_stream(quick: Decoder, quick_file: Path) -> None:
    """As exact at its end as at its start, and memory stays as it was after the first calls."""
    codes = some_codes(3000)
    process = psutil.Process()
    with quick.open_stream() as stream:
        samples = [stream.decode(codes[:, at : at + 5]) for at in range(0, 500, 5)]
        before, held = process.memory_info().rss, quick.n_bytes
        samples += [stream.decode(codes[:, at : at + 5]) for at in range(500, 3000, 5)]
    assert process.memory_info().rss - before < 4 << 20
    assert quick.n_bytes == held
    # With windows of 5 in 2 layers, and 9 frames in convolutions, what came before the last 100 frames is forgotten,
    # but for their positions.
    state = reference.DecoderState()
    state.post_module.position = 2900
    last = reference.Decoder(reference.load(quick_file))(codes[:, 2900:], state)
    assert farthest(np.concatenate(samples)[-50 * 24 :], last[-50 * 24 :]) < 1e-6


def test_threads(quick: Decoder, quick_file: Path) -> None:
    """States are read and written in the same pass, by all of them."""
    codes = some_codes(40)
    with (
        Backend.open("cpu", threads=3) as backend,
        Model.load(quick_file, backend) as model,
        Decoder(model, rope="f32", together=True) as decoder,
    ):
        assert farthest(in_pieces(decoder, codes, [8, 1]), in_pieces(quick, codes, [40])) < 1e-6


def test_slots_are_used_again(quick: Decoder) -> None:
    held = quick.n_bytes
    for _ in range(50):
        quick.open_stream().close()
    assert quick.n_bytes == held


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_graphs_of_all_sizes_share_their_memory(backend: Backend, quick: Decoder, data: st.DataObject) -> None:
    """Streams of different lengths, so many at once and so many frames as it happens, in a decoder that has not built
    a graph yet: larger ones come behind smaller ones."""
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    codes = [some_codes(n, seed=index) for index, n in enumerate(lengths)]
    heard: list[list[npt.NDArray[np.float32]]] = [[] for _ in codes]
    quick._streams._graphs.clear()
    with ExitStack() as stack:
        streams = [stack.enter_context(quick.open_stream()) for _ in codes]
        at = [0] * len(codes)
        while left := [index for index, n in enumerate(lengths) if at[index] < n]:
            chosen = data.draw(st.lists(st.sampled_from(left), min_size=1, unique=True))
            most = min(lengths[index] - at[index] for index in chosen)
            frames = data.draw(st.integers(1, most))
            pieces = [codes[index][:, at[index] : at[index] + frames] for index in chosen]
            for index, samples in zip(chosen, quick.decode([streams[i] for i in chosen], pieces), strict=True):
                heard[index].append(samples)
                at[index] += frames
    for each, blocks in zip(codes, heard, strict=True):
        assert farthest(np.concatenate(blocks), quick.trace(each)["samples"][0]) < 1e-6


def test_what_is_warm_is_not_built_again(backend: Backend, quick_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Model.load(quick_file, backend) as model,
        Decoder(model, streams=4, together=True) as decoder,
        ExitStack() as stack,
    ):
        decoder.warm(4)
        arena, held = decoder._streams._graphs._arena, decoder.n_bytes
        before = arena.generation

        def unexpected(*_: object) -> None:
            raise AssertionError

        monkeypatch.setattr(GraphBuilder, "build", unexpected)
        streams = [stack.enter_context(decoder.open_stream()) for _ in range(4)]
        for together in (1, 2, 4):
            for frames in (1, 2, 3, 8, 20):
                decoder.decode(streams[:together], [some_codes(frames)] * together)
        assert (arena.generation, decoder.n_bytes) == (before, held)


def test_nothing_to_decode(quick: Decoder) -> None:
    with quick.open_stream() as stream:
        assert stream.decode(np.empty((3, 0), np.int32)).shape == (0,)
    assert quick.decode([], []) == []


def test_mistakes_are_errors(quick: Decoder, decoder: Decoder) -> None:
    with quick.open_stream() as stream:
        for wrong in (np.zeros((2, 1), int), np.zeros((4, 1), int), np.zeros((3, 1)), np.zeros(3, int)):
            with pytest.raises(EngineError, match="decodes whole numbers of shape"):
                stream.decode(wrong)
        with pytest.raises(EngineError, match="given 1 streams, and codes for 2"):
            quick.decode([stream], [some_codes(1), some_codes(1)])
        with pytest.raises(EngineError, match="or is there twice"):
            quick.decode([stream, stream], [some_codes(1), some_codes(1)])
        with pytest.raises(EngineError, match="is another's"):
            decoder.decode([stream], [CODES])
    stream.close()
    with pytest.raises(EngineError, match="closed"):
        stream.decode(some_codes(1))


def test_a_closed_decoder(quick_file: Path, backend: Backend) -> None:
    with Model.load(quick_file, backend) as model:
        decoder = Decoder(model)
        stream = decoder.open_stream()
        decoder.close()
        decoder.close()
        with pytest.raises(EngineError, match="is closed"):
            stream.decode(some_codes(1))
        with pytest.raises(EngineError, match="is closed"):
            decoder.open_stream()
        stream.close()


@pytest.mark.parametrize("name", ["tiny-f32.gguf", "tiny-f16.gguf"])
def test_a_processor_s_sound_is_the_same_to_the_last_bit_however_it_is_cut(backend: Backend, name: str) -> None:
    """Alone and beside others."""
    codes = CODEC["dec_codes"][:, :12]
    with Model.load(GOLDEN / name, backend) as model, Decoder(model) as decoder, ExitStack() as stack:
        whole, one, other = (stack.enter_context(decoder.open_stream()) for _ in range(3))
        wanted = whole.decode(codes)
        found = []
        for start, stop in ((0, 1), (1, 4), (4, 5), (5, 12)):
            piece = codes[:, start:stop]
            found.append(decoder.decode([one, other], [piece, piece[::1, ::-1]])[0])
    assert np.array_equal(np.concatenate(found), wanted)
