"""Our own door as the server to compare with, and servers that are of no use."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from adapters.openai.server import HttpDoor
from fishs2_daemon.sockets import listen_tcp
from tests.bench.harness import check_level, report_of, run
from tests.conftest import Speech


@pytest.fixture
async def url(speech: Speech) -> AsyncIterator[str]:
    """Our own door, which needs a key."""
    speech.settings.api_keys = [SecretStr("secret")]
    door = HttpDoor(speech.service, speech.settings)
    sock = listen_tcp("127.0.0.1", 0)[0]
    address = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
    await door.start(sock)
    yield address
    await door.drain(1)
    await door.close()


async def test_another_server_speaks_the_same_texts(url: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    report, shown = await asyncio.to_thread(
        report_of, "--engine", "espeak", "--streams", "1", "--repeat", "2", "--seconds", "1", "--compare", f"{url}/",
        "--compare-voice", "de", "--compare-key-file", str(key),
    )  # fmt: skip
    compared = report["compared"]
    assert (compared["url"], compared["model"], compared["voice"], compared["sample_rate"]) == (
        url,
        "tts-1",
        "de",
        24000,
    )
    check_level(report["levels"][0], 1, 2)
    check_level(compared["levels"][0], 1, 2)
    ours, theirs = ([each["text"] for each in side["levels"][0]["requests"]] for side in (report, compared))
    assert ours == theirs
    assert "ours / theirs" in shown
    assert "secret" not in shown + json.dumps(report)


async def test_a_refusal_is_told_in_the_server_s_words(url: str) -> None:
    result = await asyncio.to_thread(run, "--engine", "espeak", "--compare", url)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"fishs2-daemon: --compare {url}: status 401: ")


def test_a_server_that_is_not_there_is_one_line_before_anything_is_measured() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
        result = run("--engine", "espeak", "--compare", address, "--json", "bench.json")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"fishs2-daemon: --compare {address}: Connection refused\n"
    assert not Path("bench.json").exists()
