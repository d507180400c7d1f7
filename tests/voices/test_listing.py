"""Finding voices on disk, whoever put them there."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fishs2_daemon.errors import BrokenVoice, UnknownVoice
from fishs2_daemon.speech import SamplingOverrides
from fishs2_daemon.voices import folder, listing
from fishs2_daemon.voices.store import VoiceStore
from tests.voices.sounds import wav
from tests.voices.test_meta import JSON, KEYS


def ids(store: VoiceStore) -> list[str]:
    return [voice.id for voice in store.list()]


def add(root: Path, name: str, meta: Any = None, *, clips: tuple[str, ...] = ("a.wav",)) -> Path:
    path = root / name
    path.mkdir(parents=True)
    for clip in clips:
        (path / clip).write_bytes(wav())
    if meta is not None:
        (path / "meta.json").write_text(json.dumps(meta))
    return path


def test_a_folder_that_is_not_there_holds_no_voice(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path / "none" / "voices")
    assert store.list() == ()
    assert not (tmp_path / "none").exists()
    with pytest.raises(UnknownVoice, match="stored voices: none"):
        store.get("anna")


def test_a_voice_is_what_its_folder_says(store: VoiceStore, root: Path) -> None:
    [voice] = store.list()
    assert (voice.id, voice.title, voice.created, voice.language) == ("anna", "anna", 1_700_000_000, "en")
    [clip] = voice.clips
    assert (clip.path, clip.filename, clip.size_bytes) == (root / "anna" / "anna.wav", "anna.wav", 16_044)
    assert (clip.transcript, clip.sha256) == ("Hello.", None)


def test_a_folder_without_meta_is_adopted_under_its_raw_name(store: VoiceStore, root: Path) -> None:
    path = add(root, "My Voice (raw)", clips=("b.MP3", "a.flac", "notes.txt", ".a.flac.codes", "cover.png"))
    os.utime(path / "b.MP3", (1_600_000_000, 1_600_000_000))
    voice = store.get("My Voice (raw)")
    assert [clip.filename for clip in voice.clips] == ["a.flac", "b.MP3"]
    assert voice.created == 1_600_000_000
    assert ids(store) == ["anna", "My Voice (raw)"]


def test_what_is_no_voice_is_passed_over(store: VoiceStore, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "README.md").write_text("hello")
    (root / "empty").mkdir()
    add(root, "texts", clips=("a.txt",))
    add(root, ".hidden")
    os.mkfifo(root / "anna" / "b.wav")
    (root / "anna" / "c.wav").mkdir()
    assert ids(store) == ["anna"]
    assert len(store.get("anna").clips) == 1
    assert not caplog.records


def test_transcripts_come_from_the_first_place_that_has_one(root: Path, store: VoiceStore) -> None:
    path = add(root, "bob", {"files": []}, clips=("a.wav", "b.wav", "c.wav"))
    (root.parent / "prompts").mkdir()

    def texts() -> list[str | None]:
        return [clip.transcript for clip in store.get("bob").clips]

    assert texts() == [None, None, None]
    (root / "prompts").mkdir()
    (root / "prompts" / "bob.txt").write_text("in prompts")
    assert texts() == ["in prompts", None, None]
    (root.parent / "prompts" / "bob.txt").write_text("beside prompts\n", encoding="utf-8-sig")
    assert texts() == ["beside prompts", None, None]
    (path / "a.wav.txt").write_text("by clip")
    (path / "b.wav.txt").write_text("by clip")
    assert texts() == ["by clip", "by clip", None]
    (path / "a.txt").write_text("by stem")
    assert texts() == ["by stem", "by clip", None]
    (path / "meta.json").write_text(json.dumps({"prompt_text": "prompt"}))
    assert texts() == ["prompt", "by clip", None]
    files = [{"filename": name, "text": name[0]} for name in ("a.wav", "c.wav")]
    (path / "meta.json").write_text(json.dumps({"prompt_text": "prompt", "files": files}))
    assert texts() == ["a", "by clip", "c"]
    for blank in ({"prompt_text": " ", "files": [{"filename": "a.wav", "text": ""}]},):
        (path / "meta.json").write_text(json.dumps(blank))
        assert texts() == ["by stem", "by clip", None]
    (path / "a.txt").unlink()
    (path / "a.wav.txt").unlink()
    assert texts() == [None, "by clip", None]  # an uploaded clip, whose id an old file in prompts/ may belong to


def test_changes_by_hand_are_seen(root: Path, store: VoiceStore) -> None:
    assert ids(store) == ["anna"]
    bob = add(root, "bob")
    assert ids(store) == ["anna", "bob"]
    for text in ("one", "two", "six"):  # of one size, within a tick of the file system's clock
        (root / "anna" / "meta.json").write_text(json.dumps({"prompt_text": text}))
        assert store.get("anna").clips[0].transcript == text
    (bob / "b.wav").write_bytes(wav())
    assert len(store.get("bob").clips) == 2
    bob.rename(root / "Carl")
    assert ids(store) == ["anna", "Carl"]


def test_nothing_is_read_again_where_nothing_changed(
    root: Path, store: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        add(root, f"voice-{number}", {})
    read: list[str] = []
    monkeypatch.setattr(listing, "_SETTLING_NS", -(10**12))
    monkeypatch.setattr(listing, "read", lambda seen: (read.append(seen.path.name), folder.read(seen))[1])
    before = store.list()
    read.clear()
    assert store.list() == before
    assert not read
    (root / "voice-1" / "meta.json").write_text('{"title": "new"}')
    assert [voice.title for voice in store.list()] == ["anna", "voice-0", "new", "voice-2"]
    assert read == ["voice-1"]


def test_a_broken_voice_hides_no_other_and_is_said_once(
    root: Path, store: VoiceStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path = add(root, "bad", clips=("a.wav",))
    (path / "meta.json").write_text("{")
    for _ in range(3):
        assert ids(store) == ["anna"]
    [record] = caplog.records
    assert str(path) in record.getMessage()
    assert "meta.json: it is no JSON" in record.getMessage()
    with pytest.raises(BrokenVoice, match=r"'bad' cannot be used: meta\.json") as caught:
        store.resolve("BAD")
    assert caught.value.param == "voice"
    (path / "meta.json").write_text("{}")
    assert ids(store) == ["anna", "bad"]
    (path / "meta.json").write_text("{")
    store.list()
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("meta.json", b"\xff", "no JSON"),
        ("meta.json", b"[]", "no JSON object"),
        ("meta.json", b'{"created": "now"}', "created must be"),
        ("meta.json", b" " * 2_000_000, "more than"),
        ("a.txt", "Äh".encode("latin-1"), r"a\.txt is not in UTF-8"),
        ("a.txt", b"x" * 5000, r"a\.txt has more than 4096 characters"),
        ("a.txt", b"x" * 50_000, r"a\.txt has more than 4096 characters"),
    ],
)
def test_what_is_wrong_with_a_voice_is_named(
    root: Path, store: VoiceStore, name: str, content: bytes, said: str
) -> None:
    (add(root, "bad") / name).write_bytes(content)
    assert ids(store) == ["anna"]
    with pytest.raises(BrokenVoice, match=said):
        store.get("bad")


def test_a_folder_with_a_thousand_files_is_no_voice(root: Path, store: VoiceStore) -> None:
    path = add(root, "archive")
    for number in range(1001):
        (path / f"{number}.txt").touch()
    with pytest.raises(BrokenVoice, match="more than 1000 files"):
        store.get("archive")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=40) | st.dictionaries(KEYS, JSON, max_size=6).map(lambda raw: json.dumps(raw).encode())
)
def test_no_meta_hides_the_other_voices(root: Path, content: bytes) -> None:
    (root / "odd").mkdir(exist_ok=True)
    (root / "odd" / "a.wav").write_bytes(b"x")
    (root / "odd" / "meta.json").write_bytes(content)
    store = VoiceStore(root)
    assert "anna" in ids(store)
    for voice in store.list():
        assert store.resolve(voice.id).clips[0].sha256


def test_links_that_lead_out_are_left_out(root: Path, store: VoiceStore, caplog: pytest.LogCaptureFixture) -> None:
    outside = add(root.parent, "outside", {"prompt_text": "secret"})
    (root / "link").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    (root / "all").symlink_to(root)
    (root / "anna" / "z.wav").symlink_to(outside / "a.wav")
    (root / "anna" / "gone.wav").symlink_to(root / "nowhere.wav")
    (root / "inside").symlink_to(root / "anna")
    bob = add(root, "bob")
    (bob / "meta.json").symlink_to(outside / "meta.json")
    for _ in range(2):
        assert ids(store) == ["anna", "bob", "inside"]
    assert [clip.filename for clip in store.get("anna").clips] == ["anna.wav"]
    assert store.get("bob").clips[0].transcript is None
    said = [record.getMessage() for record in caplog.records]
    left_out = ("/all:", "/link:", "/loop:", "anna/z.wav:", "bob/meta.json:", "inside/z.wav:")
    assert sorted(place for place in left_out if sum(place in line for line in said) == 1) == sorted(left_out)


@pytest.mark.parametrize("asked", ["..", ".", "", "../outside", "%2e%2e", "anna/../anna", "anna\0", "/", "\ud800", "*"])
def test_an_id_never_leaves_the_folder(root: Path, store: VoiceStore, asked: str) -> None:
    outside = add(root.parent, "outside")
    for wanted in (asked, f"{asked}/outside", str(outside)):
        for method in (store.get, store.resolve, store.delete, store.update, lambda it: store.rename(it, "x")):
            with pytest.raises(UnknownVoice, match="stored voices: anna"):
                method(wanted)
    assert (outside / "a.wav").exists()
    assert ids(store) == ["anna"]


@given(st.text(st.characters(), max_size=30))
def test_any_text_is_looked_up(asked: str) -> None:
    contents = listing.Contents({}, {"anna": "broken"})
    if asked.casefold() != "anna":
        with pytest.raises(UnknownVoice):
            contents.find(asked)


def test_an_unknown_voice_names_some_that_are_there(root: Path, store: VoiceStore) -> None:
    for number in range(25):
        add(root, f"v{number:02}")
    with pytest.raises(
        UnknownVoice, match=r"no stored voice 'x+'; stored voices: anna, v00, .*, v18 and 6 more$"
    ) as caught:
        store.get("x" * 10_000)
    assert caught.value.param == "voice"


def test_lookups_take_the_exact_id_first(root: Path, store: VoiceStore) -> None:
    add(root, "Anna")
    assert [store.get(asked).id for asked in ("anna", "Anna", "ANNA")] == ["anna", "Anna", "Anna"]
    assert ids(store) == ["Anna", "anna"]


def test_names_that_cannot_be_shown_are_passed_over(root: Path, store: VoiceStore) -> None:
    os.mkdir(os.fsencode(root) + b"/\xff\xfe")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe/a.wav")).write_bytes(wav())
    add(root, "line\nbreak")
    (root / "anna" / "b\nc.wav").write_bytes(wav())
    assert ids(store) == ["anna"]
    assert len(store.get("anna").clips) == 1


def test_a_digest_is_that_of_the_file_as_it_is(root: Path, store: VoiceStore) -> None:
    path = root / "anna" / "anna.wav"
    digests = set()
    for level in (1, 2, 3):  # files of one size
        path.write_bytes(wav(level=level))
        digests.add(store.resolve("anna").clips[0].sha256)
    assert len(digests) == 3
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BrokenVoice):
        store.resolve("anna")


def test_a_digest_is_counted_once(root: Path, store: VoiceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_SETTLING_NS", -(10**12))
    first = store.resolve("anna")
    monkeypatch.setattr(listing.hashlib, "file_digest", None)
    assert store.resolve("anna") == first


def test_a_preset_speaks_with_the_clips_of_another(root: Path, store: VoiceStore) -> None:
    add(root, "whisper", {"based_on": "anna", "style": "whisper", "sampling": {"temperature": 0.5}}, clips=())
    voice = store.resolve("whisper")
    assert voice.clips == store.resolve("anna").clips
    assert (voice.id, voice.style, voice.language, voice.sampling) == (
        "whisper", "whisper", "en", SamplingOverrides(temperature=0.5)
    )  # fmt: skip
    add(root, "second", {"based_on": "whisper"}, clips=())
    add(root, "lonely", {"based_on": "nobody"}, clips=())
    add(root, "self", {"based_on": "self"}, clips=())
    assert ids(store) == ["anna", "whisper"]
    for name, base in (("second", "whisper"), ("lonely", "nobody"), ("self", "self")):
        with pytest.raises(BrokenVoice, match=f"'{name}' cannot be used: it is based on '{base}', which is no stored"):
            store.resolve(name)
    store.delete("lonely")
    assert not (root / "lonely").exists()


def test_a_folder_of_somebody_else_is_left_alone(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = add(root, "closed")
    path.chmod(0)
    assert ids(VoiceStore(root)) == ["anna"]
    assert "closed: cannot be read (Permission denied)" in caplog.text
    path.chmod(0o700)
