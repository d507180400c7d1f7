"""Making, changing and removing voices."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fishs2_daemon.errors import (
    BrokenVoice,
    InvalidReferenceAudio,
    InvalidRequest,
    MissingFiles,
    ReferenceAudioTooLong,
    ReferenceAudioTooShort,
    StorageError,
    TooManyVoices,
    UnknownVoice,
    UploadTooLarge,
    VoiceExists,
)
from fishs2_daemon.speech import SamplingOverrides
from fishs2_daemon.voices import exchange, staging
from fishs2_daemon.voices.clips import UploadedClip
from fishs2_daemon.voices.content import NewVoice
from fishs2_daemon.voices.limits import VoiceLimits
from fishs2_daemon.voices.store import VoiceStore
from tests.voices.sounds import encoded, wav

CLIP = UploadedClip("clip.wav", wav())


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def is_clean(root: Path) -> bool:
    """Nothing is left of what was being made."""
    return sorted(os.listdir(root / ".store")) == ["gate", "lock"]


def test_an_upload_as_a_reader_client_sends_it(store: VoiceStore, root: Path) -> None:
    """The same clip in two parts, an empty part, and an id that is normalised already."""
    new = NewVoice(voice_id="pandrator-me-1a2b3c4d5e", title="pandrator-me-1a2b3c4d5e", transcript="What I said.")
    parts = [UploadedClip("My Clip.WAV", CLIP.data), UploadedClip("empty.wav", b""), CLIP]
    voice = store.create(new, parts)
    assert voice.id == "pandrator-me-1a2b3c4d5e"
    assert [(clip.filename, clip.transcript) for clip in voice.clips] == [("my-clip.wav", "What I said.")]
    assert (root / voice.id / "my-clip.wav").read_bytes() == CLIP.data
    meta = json.loads((root / voice.id / "meta.json").read_text())
    assert meta["files"] == [{"filename": "my-clip.wav", "size": 16_044, "text": None}]
    assert (meta["voice_id"], meta["prompt_text"], meta["model"]) == (voice.id, "What I said.", None)
    assert isinstance(meta["created"], int)
    assert is_clean(root)


def test_several_clips_with_their_transcripts(store: VoiceStore, tmp_path: Path) -> None:
    path = tmp_path / "temporary"
    path.write_bytes(encoded("flac", "flac"))
    clips = [
        UploadedClip("z.wav", wav(), "zed"),
        UploadedClip("upload", path, "flac"),
        UploadedClip("z.wav", wav(level=9)),
    ]
    voice = store.create(NewVoice(title="Two of me!", transcript="spare"), clips)
    assert (voice.id, voice.title) == ("two-of-me", "Two of me!")
    assert [(clip.filename, clip.transcript) for clip in voice.clips] == [
        ("upload.flac", "flac"), ("z-2.wav", None), ("z.wav", "zed")
    ]  # fmt: skip
    assert path.exists()


def test_a_transcript_that_came_with_the_second_copy_is_kept(store: VoiceStore) -> None:
    clips = [UploadedClip("a.wav", wav()), UploadedClip("b.wav", wav(), "said")]
    assert [clip.transcript for clip in store.create(NewVoice("x"), clips).clips] == ["said"]


def test_the_id_may_come_from_the_first_file(store: VoiceStore) -> None:
    assert store.create(NewVoice(), [UploadedClip("C:\\sounds\\Old Man.mp3.wav", wav())]).id == "old-man-mp3"
    assert store.create(NewVoice(voice_id="ÄÖ"), [CLIP]).id == "ao"
    assert store.create(NewVoice(voice_id=" ", title="Bob"), [CLIP]).id == "bob"


def test_a_voice_without_a_name_never_replaces_another(store: VoiceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.5)
    assert store.create(NewVoice(voice_id="日本"), [CLIP]).id == "voice-1800000000"
    with pytest.raises(VoiceExists):
        store.create(NewVoice(voice_id="中文"), [CLIP])


def test_everything_that_is_said_of_a_voice_comes_back(store: VoiceStore) -> None:
    sampling = SamplingOverrides(
        max_new_tokens=100, temperature=0.5, top_p=0.7, top_k=20, seed=2**63 - 1, min_tokens_before_end=3
    )
    new = NewVoice(
        "full", "Voll ä", "Rauch", "s2-pro", ("de-AT", "de"), ("warm", "alt"), "public", "Hallo.", "whisper", sampling
    )
    voice = store.create(new, [CLIP])
    assert (voice.title, voice.description, voice.model, voice.languages) == (
        "Voll ä",
        "Rauch",
        "s2-pro",
        ("de-AT", "de"),
    )
    assert (voice.tags, voice.visibility, voice.style, voice.sampling) == (
        ("warm", "alt"),
        "public",
        "whisper",
        sampling,
    )
    assert VoiceStore(store._root).get("full") == voice


@pytest.mark.parametrize(
    ("clips", "kind", "said"),
    [
        ([], MissingFiles, "at least one recording"),
        ([UploadedClip("a.wav", b"")], MissingFiles, "at least one recording"),
        ([CLIP, UploadedClip("../x/bad.mp3", b"junk")], InvalidReferenceAudio, "^bad.mp3: broken"),
        ([UploadedClip("a.wav", wav(0.1))], ReferenceAudioTooShort, "a.wav: 0.10 s of audio; at least 0.5 s"),
        ([UploadedClip("a.wav", wav(4))], ReferenceAudioTooLong, "a.wav: longer than 3 s"),
        ([UploadedClip("a.wav", bytes(100_001))], UploadTooLarge, "a.wav: more than 100000 bytes"),
        ([UploadedClip("a.wav", wav(1, level=n)) for n in range(4)], UploadTooLarge, "at most 3 clips"),
        ([UploadedClip("a.wav", wav(2.9, level=n)) for n in range(3)], UploadTooLarge, "at most 120000 bytes"),
        ([UploadedClip("a.wav", wav(), "x" * 4097)], InvalidRequest, "transcript has more than 4096"),
    ],
)
@pytest.mark.parametrize("voice_id", ["anna", "new"])
def test_a_wrong_upload_changes_nothing(
    root: Path, voice_id: str, clips: list[UploadedClip], kind: type[InvalidRequest], said: str
) -> None:
    limits = VoiceLimits(clip_bytes=100_000, clips=3, voice_bytes=120_000, longest_clip_s=3)
    store = VoiceStore(root, limits)
    before = files(root)
    with pytest.raises(kind, match=said) as caught:
        store.create(NewVoice(voice_id, transcript="x"), clips)
    assert type(caught.value) is kind
    assert caught.value.param in ("files", "transcript")
    assert {name: data for name, data in files(root).items() if not name.startswith(".store/")} == before


def test_an_index_that_would_take_gigabytes_is_refused(store: VoiceStore) -> None:
    """Two kilobytes of MP4 that claim 100 million samples; decoded without a bound, they take 3 GB and 25 s."""
    content = bytearray(encoded("mp4", "aac", 3))
    for box, offset, numbers in ((b"stsz", 8, (1, 10**8)), (b"stsc", 16, (10**8,)), (b"stts", 12, (10**8,))):
        start = content.index(box) + offset
        for number in numbers:
            content[start : start + 4] = number.to_bytes(4, "big")
            start += 4
    with pytest.raises(InvalidReferenceAudio, match=r"^bomb\.m4a: "):
        store.create(NewVoice("x"), [UploadedClip("bomb.m4a", bytes(content))])
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 1_200_000  # kB, of the largest of all so far


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_voice_is_replaced_whole(
    store: VoiceStore, root: Path, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    (root / "anna" / ".anna.wav.codes").write_bytes(b"of the old clip")
    store.list()
    voice = store.create(NewVoice("Anna", transcript="New."), [UploadedClip("new.wav", wav(level=3))])
    assert [clip.filename for clip in voice.clips] == ["new.wav"]
    assert sorted(os.listdir(root / "anna")) == ["meta.json", "new.wav"]
    assert is_clean(root)
    with pytest.raises(VoiceExists, match="'anna' already") as caught:
        store.create(NewVoice("anna"), [CLIP], replace=False)
    assert caught.value.param == "voice_id"
    assert store.list() == (voice,)


def test_this_system_exchanges_folders_in_one_step(tmp_path: Path) -> None:
    """Else the tests of the other way would be the only ones that run."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / "a").touch()
    assert exchange.exchange(one, other) is sys.platform.startswith("linux")
    assert (other / "a").exists() is sys.platform.startswith("linux")
    with pytest.raises(FileNotFoundError):
        exchange.exchange(one, tmp_path / "none")


def test_a_broken_voice_can_be_replaced_and_deleted(store: VoiceStore, root: Path) -> None:
    (root / "anna" / "meta.json").write_text("{")
    with pytest.raises(BrokenVoice):
        store.update("anna", title="x")
    assert store.create(NewVoice("anna"), [CLIP]).clips
    (root / "anna" / "meta.json").write_text("{")
    store.delete("anna")
    assert not (root / "anna").exists()


def test_what_is_no_voice_is_never_replaced(store: VoiceStore, root: Path, tmp_path: Path) -> None:
    (root / "notes").mkdir()
    (root / "notes" / "important.txt").write_text("x")
    (root / "file").write_text("x")
    (root / "link").symlink_to(tmp_path)
    for name in ("notes", "file", "link"):
        with pytest.raises(VoiceExists, match="something that is no voice"):
            store.create(NewVoice(name), [CLIP])
        with pytest.raises(VoiceExists):
            store.rename("anna", name)
        with pytest.raises(UnknownVoice):
            store.delete(name)
    assert (root / "notes" / "important.txt").exists()


def test_a_store_holds_so_many_voices(root: Path) -> None:
    store = VoiceStore(root, VoiceLimits(voices=1))
    with pytest.raises(TooManyVoices, match="there are 1 voices"):
        store.create(NewVoice("bob"), [CLIP])
    assert store.create(NewVoice("anna"), [CLIP]).id == "anna"


def test_a_transcript_in_prompts_is_not_taken_for_that_of_a_later_voice(store: VoiceStore, root: Path) -> None:
    (root.parent / "prompts").mkdir()
    (root.parent / "prompts" / "anna.txt").write_text("What another Anna said.")
    assert store.create(NewVoice("anna"), [CLIP]).clips[0].transcript is None
    (root / "anna" / "clip.txt").write_text("By hand.")
    assert store.get("anna").clips[0].transcript == "By hand."


def test_what_is_said_of_a_voice_can_be_changed(store: VoiceStore, root: Path) -> None:
    (root / "anna" / "meta.json").write_text(
        '{"prompt_text": "Hello.", "mode": "clone", "files": [{"filename": "anna.wav", "x": 1}]}'
    )
    codes = root / "anna" / ".anna.wav.codes"
    codes.write_bytes(b"codes")
    voice = store.update("ANNA", title="Anna B.", description="d", languages=("de", "en"), tags=("a",))
    voice = store.update("ANNA", visibility="public", style="sad", sampling=SamplingOverrides(top_k=0), model="m")
    assert (voice.title, voice.description, voice.languages, voice.tags) == ("Anna B.", "d", ("de", "en"), ("a",))
    assert (voice.visibility, voice.style, voice.sampling, voice.model) == (
        "public",
        "sad",
        SamplingOverrides(top_k=0),
        "m",
    )
    assert voice.clips[0].transcript == "Hello."
    assert store.update("anna", transcript="Bye.").clips[0].transcript == "Bye."
    assert store.update("anna", title=None, languages=("fr",)).title == "anna"
    assert store.get("anna").languages == ("fr",)
    meta = json.loads((root / "anna" / "meta.json").read_text())
    assert (meta["mode"], meta["files"]) == ("clone", [{"filename": "anna.wav", "x": 1, "size": 16_044}])
    assert codes.exists()
    assert is_clean(root)


def test_a_wrong_change_changes_nothing(store: VoiceStore, root: Path) -> None:
    before = store.get("anna")
    for wrong, param in (
        ({"style": "[x]"}, "style"),
        ({"title": "x" * 201}, "title"),
        ({"transcript": "x" * 5000}, "prompt_text"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            store.update("anna", **wrong)
        assert caught.value.param == param
    assert store.get("anna") == before


def test_a_new_transcript_takes_the_place_of_the_clips_own(store: VoiceStore, root: Path) -> None:
    files = [{"filename": "anna.wav", "text": "old"}]
    (root / "anna" / "meta.json").write_text(json.dumps({"files": files}))
    assert store.update("anna", transcript="new").clips[0].transcript == "new"


def test_a_voice_is_renamed_and_presets_follow(store: VoiceStore, root: Path) -> None:
    store.create(NewVoice("whisper", based_on="ANNA", style="whisper"), [])
    (root / "anna" / ".anna.wav.codes").write_bytes(b"codes")
    voice = store.rename("anna", "Anna Bell")
    assert (voice.id, voice.clips[0].path) == ("anna-bell", root / "anna-bell" / "anna.wav")
    assert (root / "anna-bell" / ".anna.wav.codes").exists()
    assert json.loads((root / "anna-bell" / "meta.json").read_text())["voice_id"] == "anna-bell"
    assert store.get("whisper").clips == voice.clips
    assert store.rename("anna-bell", "anna-bell") == voice
    with pytest.raises(VoiceExists):
        store.rename("anna-bell", "whisper")
    with pytest.raises(UnknownVoice):
        store.rename("anna", "x")


def test_a_preset_needs_a_voice_with_clips_of_its_own(store: VoiceStore) -> None:
    store.create(NewVoice("whisper", based_on="anna"), [])
    for base, kind in (("whisper", InvalidRequest), ("nobody", UnknownVoice), ("self", UnknownVoice)):
        with pytest.raises(kind) as caught:
            store.create(NewVoice("self", based_on=base), [])
        assert caught.value.param == "based_on"
    with pytest.raises(InvalidRequest):
        store.create(NewVoice("anna", based_on="anna"), [])
    store.delete("anna")
    with pytest.raises(BrokenVoice, match="based on 'anna'"):
        store.resolve("whisper")


def test_nothing_is_made_for_a_voice_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownVoice):
        VoiceStore(tmp_path / "none").delete("anna")
    assert not (tmp_path / "none").exists()


def test_a_voice_is_deleted_once(store: VoiceStore, root: Path) -> None:
    store.delete("Anna")
    assert store.list() == ()
    assert is_clean(root)
    with pytest.raises(UnknownVoice) as caught:
        store.delete("anna")
    assert caught.value.param == "voice_id"


def test_a_link_inside_the_folder_is_deleted_as_a_link(store: VoiceStore, root: Path) -> None:
    (root / "alias").symlink_to("anna")
    store.delete("alias")
    assert [voice.id for voice in store.list()] == ["anna"]
    assert (root / "anna" / "anna.wav").exists()


FULL = """
import resource, sys
from pathlib import Path
from fishs2_daemon.audio.decode import AudioInfo
from fishs2_daemon.errors import StorageError
from fishs2_daemon.voices import clips, store
from fishs2_daemon.voices.content import NewVoice

clips.check = lambda copies, **limits: dict.fromkeys(copies, AudioInfo(8000, 1, 1.0, ".wav"))
voices = store.VoiceStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
upload = [clips.UploadedClip("new.wav", bytes(5000))]
for action in (
    lambda: voices.create(NewVoice("anna", description="ä" * 4096), upload),
    lambda: voices.create(NewVoice("bob", description="ä" * 4096), upload),
    lambda: voices.update("anna", description="ü" * 4096),
):
    try:
        action()
    except StorageError as error:
        print(error)
voices.delete("carl")
"""


@pytest.mark.parametrize("room", [0, 6000, 20_000])
def test_a_full_disk_leaves_the_old_voice(store: VoiceStore, root: Path, room: int) -> None:
    """No file may grow beyond `room` bytes: the clip finds no place, or `meta.json`, or both do."""
    store.create(NewVoice("carl"), [CLIP])
    before = store.resolve("anna")
    child = subprocess.run([sys.executable, "-c", FULL, root, str(room)], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    failed = ["anna", "bob", "anna"] if room < 8192 else []
    assert child.stdout.splitlines() == [
        f"the voice {id!r} was not stored or changed: the disk is full" for id in failed
    ]
    assert (store.resolve("anna") == before) is bool(failed)
    assert [voice.id for voice in store.list()] == (["anna"] if failed else ["anna", "bob"])
    assert is_clean(root)


def test_a_folder_that_cannot_be_written_is_still_read(root: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    root.chmod(0o500)
    try:
        store = VoiceStore(root)
        assert store.resolve("anna").clips[0].sha256
        with pytest.raises(StorageError, match="Permission denied"):
            store.create(NewVoice("bob"), [CLIP])
    finally:
        root.chmod(0o700)


def test_the_package_is_imported_without_av_numpy_and_cffi() -> None:
    program = "import sys, fishs2_daemon.voices.store; print([m for m in ('av', 'numpy', 'cffi') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout.strip() == b"[]"
