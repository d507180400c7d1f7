"""Flags as they are typed, and the one line for each that makes no sense."""

from pathlib import Path
from typing import Any

import pytest

from fishs2_daemon.bench.plan import Plan
from fishs2_daemon.bench.server import Server
from fishs2_daemon.errors import InvalidRequest

TYPED: dict[str, Any] = {
    "streams": "1,4", "repeat": "3", "seconds": "10", "voice": None, "reference_seconds": None, "synthetic": None,
    "quant": "q8_0", "folder": None, "json": None, "compare": None, "compare_model": "tts-1", "compare_voice": "alloy",
    "compare_rate": "24000", "compare_key_file": None, "ratios": False,
}  # fmt: skip


def plan(**typed: Any) -> Plan:
    return Plan.of(**(TYPED | typed))


def test_levels_are_sorted_and_counted_once() -> None:
    assert plan(streams="8, 1,4,1").streams == (1, 4, 8)


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [
        ({}, 0),
        ({"synthetic": "bench"}, 10),
        ({"synthetic": "bench", "voice": "anna"}, 0),
        ({"synthetic": "bench", "reference_seconds": "0"}, 0),
        ({"reference_seconds": "2.5"}, 2.5),
    ],
)
def test_a_voice_is_made_up_for_a_model_that_was_made_up(typed: dict[str, Any], seconds: float) -> None:
    assert plan(**typed).reference_s == seconds


def test_ratios_are_measured_with_the_bench_model_where_none_is_named() -> None:
    assert plan(ratios=True).shape == "bench"
    assert plan(ratios=True, synthetic="tiny").shape == "tiny"
    assert plan().shape is None


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ({"streams": "1,x"}, "--streams: 'x' is not allowed; allowed: a whole number from 1 to 64"),
        ({"streams": "65"}, "--streams: '65' is not allowed; allowed: a whole number from 1 to 64"),
        ({"streams": ""}, "--streams: '' is not allowed; allowed: a whole number from 1 to 64"),
        ({"repeat": "0"}, "--repeat: '0' is not allowed; allowed: a whole number from 1 to 10000"),
        ({"seconds": "nan"}, "--seconds: 'nan' is not allowed; allowed: a number from 0.1 to 600"),
        ({"seconds": "601"}, "--seconds: '601' is not allowed; allowed: a number from 0.1 to 600"),
        (
            {"reference_seconds": "121"},
            "--reference-seconds: '121' is not allowed; allowed: a number from 0 to 120",
        ),
        ({"voice": "anna", "reference_seconds": "3"}, "--voice, --reference-seconds: allowed: one of them"),
        ({"ratios": True, "compare": "http://x/v1"}, "--ratios, --compare: allowed: one of them"),
        (
            {"compare": "http://x/v1", "compare_rate": "24k"},
            "--compare-rate: '24k' is not allowed; allowed: a whole number from 4000 to 192000",
        ),
        (
            {"json": "missing/b.json"},
            "--json missing/b.json: allowed: the path of a file in a folder that may be written",
        ),
    ],
)
def test_what_makes_no_sense_is_named_with_what_is_allowed(typed: dict[str, Any], line: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        plan(**typed)
    assert str(refused.value) == line


@pytest.mark.parametrize("url", ["localhost:8020", "ftp://x/v1", "http://", "http://x:port/v1", "http://x:99999/v1"])
def test_a_server_s_address_is_checked(url: str) -> None:
    compared = plan(compare=url).compared
    assert compared
    with pytest.raises(InvalidRequest, match="allowed: http://host:port/v1"):
        Server(compared)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"one\ntwo", b"\xff"])
def test_a_key_file_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    compared = plan(compare="http://x/v1", compare_key_file=str(file)).compared
    assert compared
    with pytest.raises(InvalidRequest, match=f"--compare-key-file {file}: "):
        Server(compared)
