import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fishs2_daemon import references
from fishs2_daemon.audio.decode import AudioInfo
from fishs2_daemon.errors import (
    Busy,
    InvalidReferenceAudio,
    MissingTranscript,
    ReferenceAudioTooLong,
    ReferenceAudioTooShort,
    RequestError,
    StorageError,
    UploadTooLarge,
)
from fishs2_daemon.references import Recording, References
from fishs2_daemon.settings import Settings
from fishs2_daemon.speech import Clip
from fishs2_daemon.voices.limits import VoiceLimits
from tests.voices.sounds import wav

WORDS = "What is said in it."


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """voices/anna/a.wav, clips/b.wav and secret/s.wav, of which the last is nobody's business."""
    for name in ("voices/anna/a.wav", "clips/b.wav", "secret/s.wav"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(wav())
    return tmp_path


@pytest.fixture
async def kept(folders: Path) -> AsyncIterator[References]:
    settings = Settings(_env_file=None, voices_dir=folders / "voices", reference_dirs=[folders / "clips"])
    held = References(settings, VoiceLimits(clip_bytes=200_000, longest_clip_s=5))
    yield held
    await held.close()


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was checked, without the process that does it."""
    checked: list[str] = []

    def check(clips: dict[Path, str], **_: Any) -> dict[Path, AudioInfo]:
        checked.extend(path.read_bytes().decode("latin-1") for path in clips)
        return dict.fromkeys(clips, AudioInfo(8000, 1, 1.0, ".wav"))

    monkeypatch.setattr(references, "check", check)
    return checked


def sound(clip: Clip) -> bytes:
    return Path(clip.path).read_bytes()


async def content(kept: References, data: bytes | str, param: str = "references") -> bytes:
    async with kept.held([Recording(data, WORDS, param)]) as (clip,):
        return sound(clip)


async def test_bytes_become_a_clip_that_lasts_as_long_as_it_is_held(kept: References) -> None:
    async with kept.held([Recording(wav(), f" {WORDS} ")]) as (clip,):
        assert sound(clip) == wav()
        assert (clip.sha256, clip.transcript) == (hashlib.sha256(wav()).hexdigest(), WORDS)
        assert stat.S_IMODE(kept.folder.stat().st_mode) == 0o700
    folder = kept.folder
    assert [path.name for path in folder.iterdir()] == [clip.sha256]
    await kept.close()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", InvalidReferenceAudio),
        (b"no audio at all", InvalidReferenceAudio),
        (wav(0.1), ReferenceAudioTooShort),
        (wav(6), ReferenceAudioTooLong),
        (bytes(200_001), UploadTooLarge),
    ],
)
async def test_what_is_refused(kept: References, data: bytes, error: type[RequestError]) -> None:
    with pytest.raises(error, match="ref_audio") as caught:
        await content(kept, data, "ref_audio")
    assert type(caught.value) is error
    assert caught.value.param == "ref_audio"
    assert str(kept.folder) not in str(caught.value)
    assert list(kept.folder.iterdir()) == []


def test_a_full_disk_is_told(folders: Path) -> None:
    kept = References(Settings(_env_file=None))
    file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    with file, pytest.raises(StorageError, match="references: the recording was not kept: No space left"):
        kept._copy(Recording(b"sound", WORDS), file)


@pytest.mark.parametrize("param", ["references", "reference_audio"])
async def test_a_recording_needs_its_words(kept: References, param: str) -> None:
    with pytest.raises(MissingTranscript) as caught:
        async with kept.held([Recording(b"", "  ", param)]):
            pass
    assert caught.value.param == ("references" if param == "references" else "reference_text")


async def test_two_with_the_same_recording_check_once(kept: References, checks: list[str]) -> None:
    both = await asyncio.gather(*(content(kept, b"one") for _ in range(8)), content(kept, b"two"))
    assert both == [b"one"] * 8 + [b"two"]
    assert sorted(checks) == ["one", "two"]
    await content(kept, b"one")
    assert len(checks) == 2


async def test_whoever_leaves_takes_the_check_from_nobody(kept: References, checks: list[str]) -> None:
    leaving = asyncio.create_task(content(kept, wav()))
    staying = asyncio.create_task(content(kept, wav()))
    while not kept._checking:
        await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == wav()
    assert len(checks) == 1
    assert [path.name for path in kept.folder.iterdir()] == [hashlib.sha256(wav()).hexdigest()]


@pytest.mark.usefixtures("checks")
async def test_the_longest_unused_go_first(kept: References, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "KEPT", 2)
    async with kept.held([Recording(b"one", WORDS)]) as (one,):
        await content(kept, b"two")
        await content(kept, b"three")
        assert {path.name for path in kept.folder.iterdir()} == {
            one.sha256, hashlib.sha256(b"three").hexdigest()
        }  # fmt: skip
        async with kept.held([Recording(b"four", WORDS)]):
            with pytest.raises(Busy):
                await content(kept, b"five")
            assert await content(kept, b"four") == b"four"
    assert await content(kept, b"five") == b"five"


@pytest.mark.usefixtures("checks")
async def test_bytes_are_bounded(kept: References, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "KEPT_BYTES", 1000)
    for number in range(20):
        await content(kept, bytes([number]) * 300)
    assert sum(path.stat().st_size for path in kept.folder.glob("*/*")) == 900


@pytest.mark.parametrize(
    "form", ["{}/voices/anna/a.wav", "voices/anna/a.wav", "anna/a.wav", " b.wav ", "{}/clips/b.wav"]
)
@pytest.mark.usefixtures("checks")
async def test_allowed_paths(kept: References, folders: Path, form: str) -> None:
    assert await content(kept, form.format(folders)) == wav()


@pytest.mark.usefixtures("checks")
async def test_voices_of_another_folder_go_by_voices_too(folders: Path) -> None:
    (folders / "voices").rename(folders / "stored")
    kept = References(Settings(_env_file=None, voices_dir=folders / "stored"))
    assert await content(kept, "voices/anna/a.wav") == wav()
    await kept.close()


@pytest.mark.parametrize(
    "path",
    [
        "{}/secret/s.wav", "secret/s.wav", "{}/secret/none.wav", "voices/../secret/s.wav", "{}/voices/../secret/s.wav",
        "voices/link.wav", "voices/folder/s.wav", "voices/broken", "voices/pipe", "voices/anna", "voices", "", ".", "/",
        "voices/none.wav", "voices/anna/a.wav\0", "\0", "\ud800", "~/x", "http://127.0.0.1/a.wav", "file:///etc/passwd",
        "/dev/zero", "/proc/self/environ", "voices/" + "a/" * 2000, "a" * 5000,
    ],
)  # fmt: skip
async def test_other_paths_all_get_one_answer(kept: References, folders: Path, checks: list[str], path: str) -> None:
    (folders / "voices" / "link.wav").symlink_to(folders / "secret" / "s.wav")
    (folders / "voices" / "folder").symlink_to(folders / "secret")
    (folders / "voices" / "broken").symlink_to(folders / "nothing")
    os.mkfifo(folders / "voices" / "pipe")
    with pytest.raises(InvalidReferenceAudio) as caught:
        await content(kept, path.format(folders), "ref_audio")
    told = "ref_audio: there is no such recording below the voices folder and FISHS2_REFERENCE_DIRS"
    assert (str(caught.value), caught.value.param, checks) == (told, "ref_audio", [])


@pytest.mark.usefixtures("checks")
async def test_links_that_stay_inside_are_followed(kept: References, folders: Path) -> None:
    (folders / "voices" / "same.wav").symlink_to(folders / "clips" / "b.wav")
    assert await content(kept, "voices/same.wav") == wav()


def test_a_link_that_comes_between_is_not_followed(folders: Path) -> None:
    (folders / "voices" / "anna" / "link").symlink_to(folders / "secret")
    for path in ("anna/link/s.wav", "anna/link"):
        with pytest.raises(OSError):
            references._open_below(folders / "voices", Path(path))


@given(path=st.text() | st.text(alphabet="./\\ab~\0", max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_path(kept: References, checks: list[str], path: str) -> None:
    with pytest.raises(InvalidReferenceAudio):
        await content(kept, path)


async def test_several_speakers(kept: References, checks: list[str]) -> None:
    async with kept.held([Recording(b"one", "first"), Recording(b"two", "second")]) as clips:
        assert [(sound(clip), clip.transcript) for clip in clips] == [
            (b"one", "first"), (b"two", "second")
        ]  # fmt: skip


async def test_nothing_is_made_for_nothing(kept: References) -> None:
    async with AsyncExitStack() as stack:
        assert await stack.enter_async_context(kept.held([])) == ()
    assert kept._folder is None
