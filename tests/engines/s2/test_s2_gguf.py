"""The reader of model files: what it reads, and that nothing in a file can hurt it."""

import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fishs2_daemon.engines.s2.errors import ModelFileError
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.gguf import MAX_HEADER_NBYTES, GgufFile
from fishs2_daemon.engines.s2.gguf_writer import lay_out, write_gguf
from fishs2_daemon.errors import EngineError

GOLDEN = Path(__file__).parents[2] / "golden"

U8, U32, F32, BOOL, STRING, ARRAY, U64, F64 = 0, 4, 6, 7, 8, 9, 10, 12


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, payload: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + payload


def tensor(name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0, dims: int | None = None) -> bytes:
    dims = len(shape) if dims is None else dims
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", dims, *shape, kind, offset)


def gguf(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: int = 0,
    *,
    version: int = 3,
    key_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    """`data` bytes follow the padding; counts are right unless given."""
    counts = [len(tensors) if tensor_count is None else tensor_count, len(keys) if key_count is None else key_count]
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32 + data)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[bytes], GgufFile]:
    def open_(raw: bytes) -> GgufFile:
        path = tmp_path / "model.gguf"
        path.write_bytes(raw)
        return GgufFile.open(path)

    return open_


@pytest.mark.parametrize(("name", "kind"), [("tiny-f32.gguf", GgmlType.F32), ("tiny-f16.gguf", GgmlType.F16)])
def test_golden_files(name: str, kind: GgmlType) -> None:
    with GgufFile.open(GOLDEN / name) as file:
        assert (len(file.tensors), len(file.metadata)) == (394, 70)
        assert file.metadata["general.architecture"] == "fish-speech"
        assert file.metadata["fish-speech.vocab_size"] == 352
        assert file.metadata["fish_speech.tie_word_embeddings"] is True
        assert file.metadata["fish_speech.codec.encoder_rates"] == (2, 4, 8, 8)
        assert file.metadata["fish_speech.codec.rvq_transformer.n_local_heads"] == -1
        assert file.metadata["fish_speech.fast_rope_freq_base"] == 1e6
        assert file.tensors["layers.0.attention.wqkv.weight"].shape == (64, 256)
        assert {info.type for info in file.tensors.values()} == {kind}
        last = max(file.tensors.values(), key=lambda info: info.offset)
        assert file.path.stat().st_size - last.offset - last.nbytes < 32


def test_both_golden_files_hold_the_same_values() -> None:
    with GgufFile.open(GOLDEN / "tiny-f32.gguf") as exact, GgufFile.open(GOLDEN / "tiny-f16.gguf") as half:
        for name in exact.tensors:
            # A few weights round to another of F16's smallest numbers.
            assert np.abs(exact.data(name).view("<f4") - half.data(name).view("<f2")).max() < 3e-8, name


def test_every_type_of_value(opened: Callable[[bytes], GgufFile]) -> None:
    scalars = [(0, "B", 255), (1, "b", -5), (2, "H", 9), (3, "h", -9), (4, "I", 7), (5, "i", -7), (6, "f", 0.5)]
    scalars += [(7, "?", True), (10, "Q", 2**63), (11, "q", -(2**62)), (12, "d", 0.1)]
    keys = [key(f"one.{kind}", kind, struct.pack(f"<{code}", value)) for kind, code, value in scalars]
    keys += [
        key(f"many.{kind}", ARRAY, struct.pack(f"<IQ2{code}", kind, 2, value, value)) for kind, code, value in scalars
    ]
    keys += [key("text", STRING, string("ß\n")), key("texts", ARRAY, struct.pack("<IQ", STRING, 1) + string("a"))]
    keys += [key("nothing", ARRAY, struct.pack("<IQ", U32, 0))]
    metadata = opened(gguf(tuple(keys))).metadata
    for kind, _, value in scalars:
        assert (metadata[f"one.{kind}"], metadata[f"many.{kind}"]) == (value, (value, value))
        assert type(metadata[f"one.{kind}"]) is type(value)
    assert (metadata["text"], metadata["texts"], metadata["nothing"]) == ("ß\n", ("a",), ())


def test_version_2_and_other_alignments(opened: Callable[[bytes], GgufFile]) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 2, 2, 1) + key("general.alignment", U32, struct.pack("<I", 8))
    head += tensor("a", (1,)) + tensor("b", (2,), offset=8)
    body = struct.pack("<fIff", 1.0, 0, 2.0, 3.0)
    file = opened(head + bytes(-len(head) % 8) + body)
    assert file.data("b").view("<f4").tolist() == [2.0, 3.0]


def test_block_types_have_ggml_sizes() -> None:
    sizes = {"F32": 1024, "F16": 512, "BF16": 512, "I8": 256, "I16": 512, "I32": 1024, "I64": 2048}
    quantised = {"Q4_0": 144, "Q4_1": 160, "Q5_0": 176, "Q5_1": 192, "Q8_0": 272}
    quantised |= {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
    assert {kind.name: kind.nbytes((256, 3)) // 3 for kind in GgmlType} == sizes | quantised


def test_data_is_a_read_only_view_that_outlives_the_file() -> None:
    file = GgufFile.open(GOLDEN / "tiny-f16.gguf")
    view = file.data("norm.weight")
    file.close()
    file.close()
    assert (view.nbytes, view.flags.writeable) == (128, False)
    assert np.isfinite(view.view("<f2")).all()
    with pytest.raises(ValueError, match="closed"):
        file.data("norm.weight")


def test_a_tensor_that_is_not_there() -> None:
    with (
        GgufFile.open(GOLDEN / "tiny-f16.gguf") as file,
        pytest.raises(ModelFileError, match=r"tiny-f16\.gguf: tensor 'x' is"),
    ):
        file.data("x")


ONE = tensor("w", (8,))

ATTACKS = {
    "empty": (b"", "the file is empty"),
    "other format": (b"PK\3\4" + bytes(60), "not a GGUF file"),
    "magic alone": (b"GGUF", "is it truncated"),
    "version 1": (gguf(version=1), "GGUF version 1;"),
    "big endian": (gguf(version=3 << 24), "GGUF version 50331648;"),
    "2^60 keys": (gguf(key_count=2**60), "the count of keys: 1152921504606846976"),
    "2^60 tensors": (gguf(tensor_count=2**60), "the count of tensors: 1152921504606846976"),
    "more keys than bytes": (gguf(key_count=60000), "the count of keys: 60000 items do not fit"),
    "key of 2^63 bytes": (
        gguf((struct.pack("<Q", 2**63) + bytes(9),)),
        "key 1 of 1: a string of 922337203685",
    ),
    "key beyond the end": (gguf((struct.pack("<Q", 60000) + bytes(9),)), "key 1 of 1: 60000 bytes do not fit"),
    "key not UTF-8": (gguf((key(b"\xff", U8, b"\0"),)), "key 1 of 1: a string that is not UTF-8"),
    "text not UTF-8": (gguf((key("k", STRING, string(b"\xc3")),)), "key 'k': a string that is not UTF-8"),
    "text of 2^60 bytes": (gguf((key("k", STRING, struct.pack("<Q", 2**60)),)), "key 'k': a string of 11529"),
    "duplicate key": (gguf((key("k", U8, b"\0"), key("k", U8, b"\0"))), "key 'k': is there twice"),
    "unknown value": (gguf((key("k", 13, b"\0"),)), "key 'k': unknown value type 13"),
    "bool of 2": (gguf((key("k", BOOL, b"\2"),)), "key 'k': a bool that is neither"),
    "nested array": (
        gguf((key("k", ARRAY, struct.pack("<IQIQ", ARRAY, 1, U8, 0)),)),
        "key 'k': an array of arrays",
    ),
    "array of unknowns": (gguf((key("k", ARRAY, struct.pack("<IQ", 99, 1)),)), "key 'k': unknown value type 99"),
    **{
        f"array of 2^60 of type {kind}": (
            gguf((key("k", ARRAY, struct.pack("<IQ", kind, 2**60)),)),
            r"key 'k': 1152921504606846976 (items|bytes) do not fit",
        )
        for kind in (U8, U32, BOOL, STRING, U64, F64)
    },
    "array of 2^61 u64": (gguf((key("k", ARRAY, struct.pack("<IQ", U64, 2**61)),)), "key 'k': .* do not fit"),
    "key with a line break": (gguf((key("a\nb" * 99, 13, b"\0"),)), r"key 'a\\nb"),
    "alignment 0": (gguf((key("general.alignment", U32, bytes(4)),)), "key 'general.alignment': 0 is no power"),
    "alignment 24": (gguf((key("general.alignment", U8, b"\x18"),)), "key 'general.alignment': 24 is no power"),
    "alignment 2^31": (
        gguf((key("general.alignment", U32, struct.pack("<I", 2**31)),)),
        "key 'general.alignment': 2147483648 is no power",
    ),
    "alignment true": (gguf((key("general.alignment", BOOL, b"\1"),)), "key 'general.alignment': True is no"),
    "alignment text": (gguf((key("general.alignment", STRING, string("32")),)), "'general.alignment': '32' is no"),
    "duplicate tensor": (gguf((), (ONE, tensor("w", (8,), offset=32)), 64), "tensor 'w': is there twice"),
    "tensor not UTF-8": (gguf((), (tensor(b"\x80", (8,)),), 64), "tensor 1 of 1: a string that is not UTF-8"),
    "long tensor name": (gguf((), (tensor("x" * 65, (8,)),), 64), "tensor 1 of 1: a string of 65 bytes"),
    "no dimensions": (gguf((), (tensor("w", ()),), 64), "tensor 'w': 0 dimensions"),
    "5 dimensions": (gguf((), (tensor("w", (1, 1, 1, 1, 1)),), 64), "tensor 'w': 5 dimensions"),
    "2^32-1 dimensions": (gguf((), (tensor("w", (1,), dims=2**32 - 1),), 64), "tensor 'w': 4294967295 dimensions"),
    "zero dimension": (gguf((), (tensor("w", (8, 0)),), 64), "tensor 'w': a dimension of zero"),
    "product of 2^64": (gguf((), (tensor("w", (2**32, 2**32)),), 64), "tensor 'w': .* beyond the file's end"),
    "product of 2^256": (gguf((), (tensor("w", 4 * (2**63,)),), 64), "tensor 'w': .* beyond the file's end"),
    "negative dimension": (gguf((), (tensor("w", (2**64 - 8,)),), 64), "tensor 'w': .* beyond the file's end"),
    "unknown type": (gguf((), (tensor("w", (8,), 4),), 64), "tensor 'w': unknown tensor type 4"),
    "half a block": (gguf((), (tensor("w", (48,), 8),), 64), r"tensor 'w': rows of 48 .* blocks of Q8_0 \(32\)"),
    "misaligned": (gguf((), (tensor("w", (8,), offset=8),), 64), "tensor 'w': offset 8 is no multiple of"),
    "offset beyond": (gguf((), (tensor("w", (8,), offset=2**40),), 64), "tensor 'w': 32 bytes at .* beyond"),
    "offset wraps": (gguf((), (tensor("w", (8,), offset=2**64 - 32),), 64), "tensor 'w': 32 bytes at .* beyond"),
    "data cut": (gguf((), (ONE,), 31), "tensor 'w': 32 bytes at .* beyond the file's end"),
    "overlap": (gguf((), (tensor("v", (16,)), tensor("w", (8,), offset=32)), 64), "tensor 'w': overlaps another"),
    "same place": (gguf((), (tensor("v", (8,)), ONE), 64), "tensor 'w': overlaps another"),
}


@pytest.mark.parametrize(("raw", "message"), ATTACKS.values(), ids=ATTACKS)
def test_one_clear_error(opened: Callable[[bytes], GgufFile], raw: bytes, message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        opened(raw)
    text = str(caught.value)
    assert text.startswith("model.gguf: ")
    assert "\n" not in text
    assert len(text) < 250


def test_an_endless_header(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key("k", ARRAY, struct.pack("<IQ", U8, MAX_HEADER_NBYTES)))
        file.truncate(1 << 34)
    with pytest.raises(ModelFileError, match=r"huge\.gguf: key 'k': .* do not fit a header"):
        GgufFile.open(path)


def test_what_is_no_file_at_all(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for name, message in (("none.gguf", "No such file"), (".", "not a file"), ("pipe.gguf", "not a file")):
        with pytest.raises(ModelFileError, match=message):
            GgufFile.open(tmp_path / name)
    assert issubclass(ModelFileError, EngineError)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 3))
def test_any_bytes(tail: bytes, tensors: int, keys: int) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + tail)
        file.flush()
        with suppress(ModelFileError):
            GgufFile.open(file.name).close()


_texts = st.text(max_size=20).filter(lambda text: text.isprintable())
_values = st.one_of(
    st.booleans(),
    st.integers(-(2**31), 2**32 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5).map(tuple),
)
_tensors = st.tuples(
    st.text("abc.0é", min_size=1, max_size=12),
    st.lists(st.integers(1, 4), max_size=3),
    st.sampled_from(list(GgmlType)),
)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(_texts.filter(lambda text: text != "general.alignment"), _values, max_size=6),
    st.lists(_tensors, max_size=5, unique_by=lambda item: item[0]),
    st.randoms(use_true_random=False),
)
def test_what_is_written_is_read(metadata: dict, tensors: list, random) -> None:
    placed = lay_out((name, (kind.block_items * 2, *rest), kind) for name, rest, kind in tensors)
    bodies = {info.name: random.randbytes(info.nbytes) for info in placed}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "written.gguf")
        write_gguf(path, metadata, placed, lambda info: [bodies[info.name][:5], bodies[info.name][5:]])
        with GgufFile.open(path) as file:
            assert file.metadata == metadata
            assert {name: file.data(name).tobytes() for name in file.tensors} == bodies
            assert [(i.name, i.shape, i.type) for i in file.tensors.values()] == [
                (i.name, i.shape, i.type) for i in placed
            ]
        assert os.listdir(folder) == ["written.gguf"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    placed = lay_out([("w", (8,), GgmlType.F32)])
    with pytest.raises(ValueError, match="tensor w: 4 bytes, 32 planned"):
        write_gguf(tmp_path / "short.gguf", {}, placed, lambda _: [bytes(4)])
    assert not os.listdir(tmp_path)


def test_thousands_of_damaged_files_under_a_memory_limit(tmp_path: Path) -> None:
    """In a process of its own: whatever got past the checks would end it, not the tests."""
    script = Path(__file__).with_name("gguf_fuzz.py")
    done = subprocess.run(
        [sys.executable, script, GOLDEN / "tiny-f16.gguf", tmp_path],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "3000 damaged files" in done.stdout
