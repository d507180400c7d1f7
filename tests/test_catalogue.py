"""What stored voices are called where people choose them."""

import json
from pathlib import Path

import pytest

from fishs2_daemon import configuration
from fishs2_daemon.audio import wav
from fishs2_daemon.catalogue import VoiceCatalogue
from fishs2_daemon.voices.store import VoiceStore


@pytest.mark.parametrize(
    ("meta", "label"),
    [
        (None, "anna"),
        ({}, "anna"),
        ({"title": "Anna B."}, "Anna B."),
        ({"title": "Anna B.", "description": "Calm, recorded in a kitchen in spring"}, "Anna B."),
        ({"title": "Anna"}, "Anna"),
        ({"title": "Anna", "description": "Anna from next door"}, "Anna from next door"),
        ({"description": "Anna from next door"}, "Anna from next door"),
    ],
)
async def test_a_voice_is_chosen_by_its_title_and_else_by_what_it_is_described_as(
    tmp_path: Path, meta: dict[str, str] | None, label: str
) -> None:
    folder = tmp_path / "voices" / "anna"
    folder.mkdir(parents=True)
    (folder / "anna.wav").write_bytes(wav.header(44100, 2 * 44100) + bytes(2 * 44100))
    if meta is not None:
        (folder / "meta.json").write_text(json.dumps(meta))
    settings = configuration.load(voices_dir=tmp_path / "voices")
    catalogue = VoiceCatalogue(settings, VoiceStore(settings.voices_dir))
    await catalogue.refresh()
    (voice,) = catalogue.voices(None)
    assert (voice.id, voice.description) == ("anna", label)
