import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from fishs2_daemon import errors
from tests.adapters.openai.harness import Answer, Running, Start
from tests.voices.sounds import encoded, wav

COLLECTIONS = [prefix + path for path in ("/audio/voices", "/voices", "/files") for prefix in ("/v1", "")]
WORDS = "What is said in it."


async def upload(running: Running, path: str = "/v1/audio/voices", files: Any = None, **fields: str) -> httpx.Response:
    files = [("files", ("anna.wav", wav(), "audio/wav"))] if files is None else files
    async with httpx.AsyncClient() as client:
        return await client.post(running.url + path, files=files, data=fields)


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


async def names(running: Running, path: str = "/v1/voices") -> list[str]:
    return [entry["id"] for entry in json.loads((await running.request("GET", path)).body)["data"]]


def refused(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return response.status_code, error["code"], error["param"]


@pytest.mark.parametrize("path", COLLECTIONS)
async def test_every_collection_lists_stores_shows_and_deletes(running: Running, path: str) -> None:
    created = await upload(running, path, voice_id="Ben B", name="Ben", language="en", prompt_text=WORDS, purpose="x")
    assert created.status_code == 200
    entry = created.json()
    assert entry.items() >= {
        "id": "ben-b", "voice_id": "ben-b", "name": "Ben", "object": "voice", "type": "audio_sample", "language": "en",
        "model": None, "prompt_text": WORDS, "sample_count": 1, "files": [{"filename": "anna.wav", "size": len(wav())}],
    }.items()  # fmt: skip
    assert entry["created"] == entry["created_at"] > 1_700_000_000
    assert "warning" not in entry
    for listed in COLLECTIONS:
        body = json.loads((await running.request("GET", f"{listed}?purpose=x&limit=1")).body)
        assert body["object"] == "list"
        assert body["voices"] == body["data"]
        assert [each["id"] for each in body["data"]] == ["ben-b", "anna", "echo"]
        assert {key: value for key, value in entry.items() if key != "sample_count"} == body["data"][0]
    shown = await running.request("GET", f"{path}/BEN-B")
    assert json.loads(shown.body) == body["data"][0]
    gone = await running.request("DELETE", f"{path}/ben-b")
    assert (gone.status, json.loads(gone.body)) == (
        200, {"id": "ben-b", "deleted": True, "object": "audio.voice.deleted"}
    )  # fmt: skip
    again = await running.request("DELETE", f"{path}/ben-b")
    assert (again.status, again.error["code"], again.error["param"]) == (404, "voice_not_found", "voice_id")
    assert await names(running, path) == ["anna", "echo"]


async def test_voices_of_the_engine_are_marked(running: Running) -> None:
    body = json.loads((await running.request("GET", "/v1/audio/voices/anna")).body)
    assert body == {
        "id": "anna", "voice_id": "anna", "name": "Anna", "object": "voice", "type": "engine", "created": 0,
        "created_at": 0, "files": [], "model": None, "language": "en-GB", "languages": ["en-GB"], "prompt_text": None,
    }  # fmt: skip
    await upload(running, voice_id="anna")
    assert await names(running) == ["anna", "echo"]
    assert json.loads((await running.request("GET", "/v1/audio/voices/anna")).body)["type"] == "audio_sample"
    running.service.engine = None
    assert await names(running) == ["anna"]


async def test_pandrators_upload_keeps_its_id_and_one_copy(running: Running) -> None:
    voice_id = "pandrator-my-narrator-1-0123456789"
    clip = ("narrator.wav", wav(), "audio/wav")
    fields = {"voice_id": voice_id, "name": voice_id, "purpose": "user_data", "prompt_text": WORDS}
    for _ in range(2):
        body = (await upload(running, files=[("files", clip), ("audio_sample", clip)], **fields)).json()
        assert (body["id"], body["sample_count"]) == (voice_id, 1)
        assert body["files"] == [{"filename": "narrator.wav", "size": len(wav())}]
    assert [path for path in everything(Path("voices")) if path.suffix == ".wav"] == [
        Path("voices", voice_id, "narrator.wav")
    ]
    assert (await running.request("DELETE", f"/v1/audio/voices/{voice_id}")).status == 200
    assert voice_id not in await names(running)


async def test_parts_are_taken_in_order_and_empty_ones_left_out(running: Running) -> None:
    files = [
        ("file", ("c.wav", wav(level=300), "audio/wav")),
        ("audio_sample", ("", b"", "application/octet-stream")),
        ("audio_sample", ("b", encoded("mp3", "libmp3lame"), "application/octet-stream")),
        ("files", ("../../a.WAV", wav(level=100), "audio/wav")),
        ("other", ("d.wav", wav(level=400), "audio/wav")),
    ]
    body = (await upload(running, "/v1/files", files)).json()
    assert body["id"] == "a"
    assert [file["filename"] for file in body["files"]] == ["a.wav", "b.mp3", "c.wav"]


async def test_the_id_comes_from_id_name_or_file(running: Running) -> None:
    assert (await upload(running, voice_id=" Zoë! ", name="other")).json()["id"] == "zoe"
    assert (await upload(running, name="Märchen Oma")).json()["id"] == "marchen-oma"
    assert (await upload(running)).json()["id"] == "anna"
    assert (await upload(running, voice_id="...")).json()["id"].startswith("voice-")


async def test_a_voice_without_words_is_stored_with_a_warning(running: Running) -> None:
    body = (await upload(running, voice_id="mute", prompt_text=" ")).json()
    assert body["prompt_text"] is None
    assert "prompt_text" in body["warning"]
    for name in ("reference_text", "ref_text", "prompt_text"):
        assert (await upload(running, voice_id="mute", **{name: WORDS})).json()["prompt_text"] == WORDS


@pytest.mark.parametrize(
    ("files", "fields", "told"),
    [
        ([], {"voice_id": "x"}, (400, "missing_files", "files")),
        ([("files", ("a.wav", b""))], {}, (400, "missing_files", "files")),
        ([("files", ("a.wav", b"no audio"))], {}, (422, "invalid_reference_audio", "files")),
        ([("files", ("a.wav", wav(0.1)))], {}, (422, "reference_audio_too_short", "files")),
        ([("files", ("a.wav", wav(130, rate=8000)))], {}, (422, "reference_audio_too_long", "files")),
        ([("files", ("a.wav", wav()))], {"voice_id": "x", "name": "n" * 201}, (422, "invalid_value", "name")),
        ([("files", ("a.wav", wav()))], {"voice_id": "n" * 101}, (422, "invalid_value", "voice_id")),
        ([("files", ("a.wav", wav()))], {"voice_id": "NUL"}, (422, "invalid_value", "voice_id")),
        ([("files", ("a.wav", wav()))], {"prompt_text": "n" * 4097}, (422, "invalid_value", "prompt_text")),
        ([("files", ("a.wav", wav()))], {"prompt_text": "n" * 70_000}, (413, "upload_too_large", "prompt_text")),
        ([("files", ("a.wav", wav()))], {"language": "n" * 65}, (422, "invalid_value", "language")),
        ([("files", ("a.wav", wav()))], {"type": "prompt"}, (422, "invalid_value", "type")),
        ([("files", (f"{n}.wav", wav(level=n))) for n in range(1, 18)], {}, (413, "upload_too_large", "files")),
        ([("x", (f"{n}.wav", b"x")) for n in range(200)], {}, (413, "upload_too_large", None)),
    ],
)
async def test_refusals(running: Running, files: Any, fields: dict[str, str], told: tuple[int, str, str]) -> None:
    files = files or [("unused", (None, b""))]
    response = await upload(running, files=files, **fields)
    assert refused(response) == told
    assert await names(running) == ["anna", "echo"]
    assert not [path for path in everything(Path("voices")) if path.suffix == ".wav"]
    assert everything(running.door._context.references.folder) == []


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b'{"name": "x", "type": "prompt", "prompt": "warm"}'),
        ("multipart/form-data", b"--B--"),
        ("multipart/form-data; boundary=B", b"--B\r\nnonsense"),
        ("multipart/form-data; boundary=B", b""),
        ("application/x-www-form-urlencoded", b"a=1&" * 200),
        ("application/x-www-form-urlencoded", b"\xff"),
        ("", b"x"),
    ],
)
async def test_what_is_no_form(running: Running, content_type: str, body: bytes) -> None:
    answer = await running.request("POST", "/v1/voices", body, {"Content-Type": content_type})
    assert (answer.status, answer.error["code"]) == (422, "invalid_multipart")
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await running.request("POST", "/v1/voices", b"name=a", headers)
    assert (answer.status, answer.error["code"]) == (400, "missing_files")


@pytest.mark.parametrize(
    "name",
    [
        "%2e%2e", "%2e", "..", "../x", "..%2f..%2fetc", "%00", "a%00b", "%ff", "nobody", "a/b", ".", "%5c", "a" * 3000,
        "%20", "CON", quote("ü"), ".hidden", "echo", "meta.json", ".store",
    ],
)  # fmt: skip
async def test_no_other_name_deletes_or_shows(running: Running, name: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    await upload(running, voice_id="kept", prompt_text=WORDS)
    before = everything(tmp_path)
    for path in COLLECTIONS:
        answer = await running.request("DELETE", f"{path}/{name}")
        assert answer.status == 404
        assert answer.error["code"] in ("voice_not_found", "unknown_url")
        assert str(tmp_path) not in answer.body.decode()
    assert everything(tmp_path) == before


async def test_a_broken_voice_is_told_and_can_be_deleted(running: Running) -> None:
    await upload(running, voice_id="broken")
    await asyncio.to_thread(Path("voices/broken/meta.json").write_text, "{")
    assert await names(running) == ["anna", "echo"]
    shown = await running.request("GET", "/v1/voices/broken")
    assert (shown.status, shown.error["code"]) == (422, "broken_voice")
    assert (await running.request("GET", "/health")).status == 200
    assert (await running.request("DELETE", "/v1/voices/broken")).status == 200


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.StorageError("the voice 'x' was not stored: the disk is full"), 507, "insufficient_storage"),
        (errors.TooManyVoices("there are 1000 voices"), 409, "too_many_voices"),
        (errors.Busy("the voices folder is busy"), 503, "server_busy"),
        (RuntimeError("/srv/secret"), 500, "internal_server_error"),
    ],
)
async def test_failures_of_the_store(running: Running, error: Exception, status: int, code: str) -> None:
    class Failing:
        def create(self, *_: Any) -> None:
            raise error

    running.service.catalogue.store = Failing()
    response = await upload(running)
    assert refused(response)[:2] == (status, code)
    assert "secret" not in response.text
    no_retry = (409, 507)
    assert response.headers.get("x-should-retry") == ("false" if status in no_retry else None)
    assert ("retry-after" in response.headers) == (status == 503)


async def test_a_key_is_asked_for_before_the_body(start: Start) -> None:
    running = await start(api_keys=["secret"])
    head = b"POST /v1/voices HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n"
    answer = Answer.parse(await running.exchange(head))
    assert (answer.status, answer.headers["connection"]) == (401, "close")
    for method in ("GET", "DELETE"):
        assert (await running.request(method, "/v1/voices/anna")).status == 401


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/voices"), ("POST", "/v1/voices/x"), ("DELETE", "/voices")])
async def test_other_methods(running: Running, method: str, path: str) -> None:
    assert (await running.request(method, path)).error["code"] == "method_not_allowed"
