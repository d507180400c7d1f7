"""A zip file is unpacked as it is, or refused with one line that names the entry; nothing lands anywhere else."""

import random
import re
import stat
import tempfile
import unicodedata
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fishs2_daemon.artifacts import archive
from fishs2_daemon.artifacts.archive import Archive
from fishs2_daemon.artifacts.errors import ArtifactError, CorruptArtifact
from fishs2_daemon.artifacts.progress import Progress
from tests.artifacts.zips import Odd, zipped

GOOD = {"libs2.so": b"s2" * 5000, "libggml.so": random.Random(3).randbytes(20_000), "doc/README": b"read me"}


def unpacked(data: bytes, folder: Path) -> dict[str, bytes]:
    """What lies in `folder` after unpacking `data`, which lies beside it."""
    path = folder.with_name("x.zip")
    path.write_bytes(data)
    with Archive(path) as file:
        file.unpack(folder, lambda _: None)
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def refusal(data: bytes, tmp_path: Path) -> str:
    """The text of the error. Nothing is beside the folder that it was to be unpacked to."""
    with pytest.raises(CorruptArtifact) as caught:
        unpacked(data, tmp_path / "folder")
    assert {path.name for path in tmp_path.iterdir()} <= {"folder", "x.zip"}
    text = str(caught.value)
    assert text.startswith("x.zip: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("stored", [False, True])
def test_what_was_packed_comes_out(tmp_path: Path, stored: bool) -> None:
    data = zipped({**GOOD, "doc/": b"", "empty": b""}, stored=stored)
    assert unpacked(data, tmp_path / "folder") == {**GOOD, "empty": b""}


def test_it_tells_how_far_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(zipped(GOOD))
    told: list[Progress] = []
    with Archive(path) as file:
        file.unpack(tmp_path / "folder", told.append)
        assert file.size == sum(map(len, GOOD.values()))
    assert [progress.doing for progress in told] == ["unpacking"] * 3
    assert [progress.done for progress in told] == [10_000, 30_000, 30_007]
    assert {progress.total for progress in told} == {30_007}


def test_a_single_folder_around_everything_is_left_out(tmp_path: Path) -> None:
    data = zipped({"s2-1.0/": b"", **{f"s2-1.0/{name}": content for name, content in GOOD.items()}})
    assert unpacked(data, tmp_path / "folder") == GOOD
    assert set(unpacked(zipped({"a/b/c": b"1", "a/b/d": b"2"}), tmp_path / "deep")) == {"b/c", "b/d"}
    assert set(unpacked(zipped({"a/b": b"1", "c": b"2"}), tmp_path / "two")) == {"a/b", "c"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../libs2.so", "out of the folder"), ("lib/../../libs2.so", "out of the folder"), ("..", "out of the folder"),
        ("/etc/passwd", "out of the folder"), ("//server/share", "out of the folder"), ("./x", "out of the folder"),
        ("a//b", "out of the folder"), ("", "out of the folder"), ("C:/x", "':'"), ("C:x", "':'"),
        ("lib\\x", r"'\\\\'"), ("..\\x", "may lead|has '"), ("\\x", r"'\\\\'"), ("x:stream", "':'"), ("a?", r"'\?'"),
        ("nul", "device"), ("NUL.txt", "device"), ("a/COM1", "device"), ("com¹.dll", "device"), ("aux .c", "device"),
        ("Con/x", "device"), ("a.", "at its end"), ("a /b", "at its end"), ("a\0.so", "do not show"),
        ("a\nb", "do not show"), ("a\u202eb", "do not show"), ("x" * 300, "more than 200 bytes"),
        ("é" * 101, "more than 200 bytes"),
    ],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_or_is_none_is_refused(tmp_path: Path, name: str, words: str) -> None:
    text = refusal(zipped({"first": b"1", name: b"2"}), tmp_path)
    assert not (tmp_path / "folder").exists()  # not even the entry before it
    assert repr(name[:200])[:-1] in text
    assert re.search(words, text)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a", "a"], "its entry 'a' is there twice"),
        (["a", "a/"], "its entry 'a/' is there twice"),
        (["A.dll", "a.dll"], "its entry 'a.dll' differs from 'A.dll' only in case"),
        (["Lib/a", "lib/b"], "its entry 'lib/b' differs from 'Lib' only in case"),
        (["straße", "STRASSE"], "only in case"),
        ([unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")], "how its letters are coded"),
        (["a", "a/b"], "its entry 'a/b' lies below 'a', which is a file"),
        (["a/b/c", "a/b"], "its entry 'a/b/c' lies below 'a/b', which is a file"),
    ],
)
def test_names_that_are_one_file_on_some_system_are_refused(tmp_path: Path, names: list[str], words: str) -> None:
    assert words in refusal(zipped([(name, b"x") for name in names]), tmp_path)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (Odd(attributes=(stat.S_IFLNK | 0o777) << 16), "is a symbolic link"),
        (Odd(attributes=stat.S_IFIFO << 16), "is no plain file"),
        (Odd(attributes=stat.S_IFDIR << 16), "is no plain file"),
        (Odd(attributes=stat.S_IFCHR << 16), "is no plain file"),
        (Odd(flags=0x801), "'bad' is encrypted"),
        (Odd(method=14), "is packed by method 14"),
        (Odd(method=99), "is packed by method 99"),
        (Odd(b"y" * 500, crc=1), "is damaged"),
        (Odd(b"y" * 500, size=499), "is damaged"),
        (Odd(b"y" * 500, size=501), "is damaged|has not the 501 bytes"),
    ],
)
def test_an_entry_that_is_no_plain_file_or_is_damaged_is_refused(tmp_path: Path, entry: Odd, words: str) -> None:
    text = refusal(zipped({"good": b"1" * 3000, "bad": entry}, stored=entry.method is None), tmp_path)
    assert "its entry 'bad'" in text
    assert re.search(words, text)


def test_a_file_made_on_unix_with_its_rights_is_taken(tmp_path: Path) -> None:
    entries: dict[str, bytes | Odd] = {"a": Odd(attributes=(stat.S_IFREG | 0o4755) << 16)}
    entries["b/"] = Odd(b"", attributes=(stat.S_IFDIR | 0o700) << 16)
    unpacked(zipped(entries), tmp_path / "folder")
    assert not (tmp_path / "folder" / "a").stat().st_mode & (stat.S_ISUID | stat.S_IXUSR)


def test_a_bomb_is_refused_before_a_byte_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = refusal(zipped({"a": b"1", "zeros": bytes(20_000_000)}), tmp_path)
    assert "its entry 'zeros' makes 20.0 MB of it" in text
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 29_999)
    assert "its entry 'libggml.so' makes 30.0 kB of it, 30.0 kB are allowed" in refusal(zipped(GOOD), tmp_path)
    monkeypatch.setattr(archive, "MAX_ENTRIES", 2)
    assert "it has 3 entries, 2 are allowed" in refusal(zipped(GOOD), tmp_path)
    assert not (tmp_path / "folder").exists()


def test_a_list_of_entries_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    many = zipped([(f"{number:0180}", b"") for number in range(20_000)])
    assert "its list of entries has 45" in refusal(many, tmp_path)


@pytest.mark.parametrize("data", [b"", b"PK", b"<html>Not found</html>", b"PK\x05\x06" + bytes(18)[:-1], bytes(100)])
def test_what_is_no_zip_file_is_refused(tmp_path: Path, data: bytes) -> None:
    assert "is damaged, or no zip file" in refusal(data, tmp_path)


def test_an_empty_zip_file_is_refused(tmp_path: Path) -> None:
    assert refusal(zipped({}), tmp_path) == "x.zip: there is no file in it"
    assert refusal(zipped({"only/": b""}), tmp_path) == "x.zip: there is no file in it"


def test_a_zip_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    whole = zipped(GOOD, stored=True)
    for length in range(0, len(whole), 499):
        assert "is damaged, or no zip file" in refusal(whole[:length], tmp_path)


def test_an_entry_before_the_begin_of_the_file_is_refused(tmp_path: Path) -> None:
    data = bytearray(zipped(GOOD))
    place = int.from_bytes(data[-6:-2], "little") + 100  # where the list of entries begins
    data[-6:-2] = place.to_bytes(4, "little")
    assert "its entry 'libs2.so' is damaged" in refusal(bytes(data), tmp_path)


def test_a_zip_file_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"x\.zip: cannot be read \(No such file or directory\)"),
        Archive(tmp_path / "x.zip"),
    ):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("")
    with pytest.raises(ArtifactError, match=r"folder: cannot be written \(File exists\)"):
        unpacked(zipped(GOOD), tmp_path / "folder")


@given(
    st.lists(
        st.one_of(
            st.text(max_size=12),
            st.from_regex(r"[aAbé. ~/\\:]{1,8}", fullmatch=True),
            st.lists(st.sampled_from(["..", ".", "a", "A", "b", "nul", "", "C:"]), max_size=5).map("/".join),
        ).filter(lambda name: name.isascii() or name.encode("utf-8", "ignore").decode() == name),
        max_size=6,
    )
)
@example(["a/../../b"])
@example(["a", "b/"])
def test_whatever_the_names_are_nothing_lands_elsewhere(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer, "inner", "folder")
        folder.parent.mkdir()
        wanted = {name: str(number).encode() for number, name in enumerate(names)}
        try:
            found = unpacked(zipped([(name, str(number).encode()) for number, name in enumerate(names)]), folder)
        except CorruptArtifact:
            pass
        else:
            files = {name: content for name, content in wanted.items() if not name.endswith("/")}
            cut = 1 if all("/" in name for name in files) and len({name.split("/")[0] for name in files}) == 1 else 0
            assert found == {str(PurePosixPath(*name.split("/")[cut:])): content for name, content in files.items()}
        outside = {path.name for path in [*Path(outer).iterdir(), *folder.parent.iterdir()]}
        assert outside <= {"inner", "folder", "x.zip"}


CONTENTS = (b"s2" * 100, bytes(range(200)), b"free")
WHOLE = zipped(dict(zip(("lib/libs2.so", "lib/libggml.so", "lib/LICENSE"), CONTENTS, strict=True)))


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_whatever_is_damaged_is_one_clear_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    with tempfile.TemporaryDirectory() as outer, suppress(CorruptArtifact):
        # Contents are protected by their CRC; a name or a date may be another one.
        assert set(unpacked(bytes(data), Path(outer, "folder")).values()) <= set(CONTENTS)
