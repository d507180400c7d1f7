"""`/model` and what else the hosted service has: raw requests."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.adapters.fishaudio.harness import error_of, multipart
from tests.adapters.openai.harness import Answer, Running, Start
from tests.voices.sounds import wav

FORM = {"Content-Type": "application/x-www-form-urlencoded"}

#: Everything that the client's model of a voice wants.
FIELDS = """_id type title description cover_image train_mode state tags samples created_at updated_at languages
visibility lock_visibility like_count mark_count shared_count task_count liked marked author"""
KEYS = set(FIELDS.split())


@pytest.fixture
async def running(start: Start, tmp_path: Path) -> Running:
    """With stored voices of several ages."""
    voices: dict[str, dict[str, Any]] = {
        "anna": {"title": "Anna Low", "tags": ["low", "calm"], "language": "en", "created": 300},
        "ben": {"title": "Ben", "tags": ["Low"], "languages": ["de-AT", "en"], "created": 100, "visibility": "public"},
        "clara": {"created": 200},
    }
    for name, said in voices.items():
        folder = tmp_path / "voices" / name
        folder.mkdir(parents=True)
        (folder / "clip.wav").write_bytes(wav())
        (folder / "meta.json").write_text(json.dumps(said | {"prompt_text": "Words." if name != "clara" else None}))
    return await start()


def ids(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    page = json.loads(answer.body)
    assert set(page) == {"total", "items"}
    assert all(set(item) == KEYS for item in page["items"])
    return [item["_id"] for item in page["items"]]


@pytest.mark.parametrize(
    ("query", "listed", "total"),
    [
        ("", ["anna", "ben", "clara"], 3),
        ("page_size=2", ["anna", "ben"], 3),
        ("page_size=2&page_number=2", ["clara"], 3),
        ("page_number=999999999", [], 3),
        ("title=ANN", ["anna"], 1),
        ("title=clara", ["clara"], 1),
        ("title=x", [], 0),
        ("tag=low", ["anna", "ben"], 2),
        ("tag=low&tag=calm", ["anna"], 1),
        ("language=en", ["anna", "ben"], 2),
        ("language=fr&language=de-at", ["ben"], 1),
        ("sort_by=created_at", ["anna", "clara", "ben"], 3),
        ("sort_by=task_count&self=true&title_language=en", ["anna", "ben", "clara"], 3),
        ("author_id=fishs2-daemon", ["anna", "ben", "clara"], 3),
        ("author_id=somebody", [], 0),
    ],
)
async def test_list(running: Running, query: str, listed: list[str], total: int) -> None:
    answer = await running.request("GET", f"/model?{query}")
    assert ids(answer) == listed
    assert json.loads(answer.body)["total"] == total


@pytest.mark.parametrize("query", ["page_size=0", "page_size=1001", "page_number=0", "page_size=-1", "page_number=²"])
async def test_wrong_pages(running: Running, query: str) -> None:
    answer = await running.request("GET", "/model?" + query.replace("²", "%C2%B2"))
    assert answer.status == 422
    assert query.partition("=")[0] in error_of(answer)


async def test_one(running: Running) -> None:
    answer = await running.request("GET", "/model/BEN")
    voice = json.loads(answer.body)
    assert set(voice) == KEYS
    assert (voice["_id"], voice["languages"], voice["visibility"]) == ("ben", ["de-AT", "en"], "public")
    assert (voice["created_at"], voice["state"]) == ("1970-01-01T00:01:40+00:00", "trained")
    assert voice["samples"] == [{"title": "clip.wav", "text": "Words.", "task_id": "", "audio": ""}]
    clara = json.loads((await running.request("GET", "/model/clara")).body)
    assert (clara["title"], clara["state"], clara["visibility"]) == ("clara", "created", "private")


@pytest.mark.parametrize("voice", ["nobody", "%2e%2e", "%2e", "..%2fvoices%2fben", "ben%00", "a" * 300])
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_unknown_voices(running: Running, method: str, voice: str) -> None:
    answer = await running.request(method, f"/model/{voice}")
    assert answer.status == 404
    error_of(answer)
    assert ids(await running.request("GET", "/model")) == ["anna", "ben", "clara"]


async def test_change(running: Running) -> None:
    body = urlencode([("title", "New"), ("tags", "a"), ("tags", "b"), ("description", "")]).encode()
    answer = await running.request("PATCH", "/model/anna", body, FORM)
    assert (answer.status, answer.body) == (200, b"{}")
    body, headers = multipart(("visibility", "unlist"), ("cover_image", b"\x89PNG"))
    assert (await running.request("PATCH", "/model/anna", body, headers)).status == 200
    voice = json.loads((await running.request("GET", "/model/anna")).body)
    assert (voice["title"], voice["tags"], voice["visibility"]) == ("New", ["a", "b"], "unlist")
    assert (voice["description"], voice["samples"][0]["text"]) == ("", "Words.")
    body = urlencode({"visibility": "everybody"}).encode()
    answer = await running.request("PATCH", "/model/anna", body, FORM)
    assert answer.status == 422
    assert "visibility must be one of private, public, unlist" in error_of(answer)


GOOD: tuple[tuple[str, str | bytes], ...] = (("title", "Dora"), ("voices", wav()), ("texts", "Words."))


@pytest.mark.parametrize(
    ("parts", "status", "said"),
    [
        (GOOD[1:], 422, "title: this field is required"),
        ((GOOD[0], GOOD[2]), 422, "of which there are 0"),
        (GOOD[:2], 422, "of which there are 1"),
        ((*GOOD, GOOD[1]), 422, "of which there are 2"),
        ((*GOOD[:2], ("texts", " ")), 422, "of which there are 1"),
        ((*GOOD, ("type", "svc")), 422, "type: tts"),
        ((*GOOD, ("train_mode", "full")), 422, "train_mode: fast"),
        ((*GOOD, ("visibility", "all")), 422, "visibility"),
        ((GOOD[0], ("voices", b"no audio"), GOOD[2]), 422, "sample_01"),
        ((GOOD[0], ("voices", b""), GOOD[2]), 400, "recording"),
        ((GOOD[0], ("voices", wav(0.1)), GOOD[2]), 422, "0.10 s of audio"),
        ((("title", "a" * 201), *GOOD[1:]), 422, "title has more than 200"),
    ],
)
async def test_wrong_creations(
    running: Running, parts: tuple[tuple[str, str | bytes], ...], status: int, said: str
) -> None:
    body, headers = multipart(*parts)
    answer = await running.request("POST", "/model", body, headers)
    assert (answer.status, said in error_of(answer)) == (status, True), answer.body
    assert len(ids(await running.request("GET", "/model"))) == 3


async def test_creation(running: Running, tmp_path: Path) -> None:
    parts = [("voices", wav(level=level)) for level in range(1000, 1011)]
    texts = [("texts", f"Text {number}.") for number in range(11)]
    body, headers = multipart(("title", "東京 Dora!"), *parts, *texts, ("enhance_audio_quality", "true"))
    answer = await running.request("POST", "/model", body, headers)
    assert answer.status == 201
    voice = json.loads(answer.body)
    assert set(voice) == KEYS
    assert (voice["_id"], voice["title"]) == ("dora", "東京 Dora!")
    assert [sample["text"] for sample in voice["samples"]] == [f"Text {number}." for number in range(11)]
    assert (tmp_path / "voices" / "dora" / "sample_01.wav").read_bytes() == wav(level=1000)
    body, headers = multipart(("title", "東京"), *GOOD[1:])
    made = [json.loads((await running.request("POST", "/model", body, headers)).body)["_id"] for _ in range(2)]
    assert len(set(made)) == 2
    assert all(name.startswith("voice-") for name in made)


async def test_creation_needs_a_form(running: Running) -> None:
    answer = await running.request("POST", "/model", b"{}", {"Content-Type": "application/json"})
    assert answer.status == 422
    assert "multipart/form-data" in error_of(answer)


async def test_what_there_is_not(running: Running) -> None:
    for path in ("/v1/asr", "/v1/vqgan/encode", "/v1/vqgan/decode"):
        answer = await running.request("POST", path, b"x" * 300_000, {"Content-Type": "application/msgpack"})
        assert answer.status == 501
        assert path in error_of(answer)
