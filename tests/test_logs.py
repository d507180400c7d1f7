"""Where log records go, and what they look like there."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fishs2_daemon import configuration, logs
from fishs2_daemon.errors import ConfigError

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"

#: Logs one record of each severity, and one of two lines with a traceback.
LOGGING = """
import logging
from fishs2_daemon import configuration, logs
logs.configure(configuration.load())
log = logging.getLogger("some.module")
for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
    log.log(level, "%s is %d", "level", level)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("it\\nbroke")
"""


@pytest.fixture(autouse=True)
def _own_root_logger() -> Iterator[None]:
    """`configure` takes the root logger over; pytest's handlers come back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _no_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)


def lines_of_a_process(tmp_path: Path, *, in_journal: bool, **environment: str) -> list[str]:
    """What a process logs on its stderr, which the journal's variable names as systemd does it."""
    path = tmp_path / "stderr"
    with path.open("wb") as stderr:
        if in_journal:
            status = os.fstat(stderr.fileno())
            environment["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
        subprocess.run(
            [sys.executable, "-c", LOGGING], stderr=stderr, check=True, cwd=tmp_path, env={**os.environ, **environment}
        )
    return path.read_text().splitlines()


def test_a_terminal_gets_time_severity_and_module(tmp_path: Path) -> None:
    lines = lines_of_a_process(tmp_path, in_journal=False)
    for line, level in zip(lines, ["INFO    ", "WARNING ", "ERROR   ", "CRITICAL "], strict=False):
        assert re.fullmatch(rf"{TIME} {level}some\.module: level is \d\d", line), line
    assert re.fullmatch(rf"{TIME} ERROR   some\.module: it", lines[4])
    assert lines[5:7] == ["broke", "Traceback (most recent call last):"]
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_the_journal_gets_the_severity_in_front_of_every_line_and_no_time(tmp_path: Path) -> None:
    lines = lines_of_a_process(tmp_path, in_journal=True, FISHS2_LOG_LEVEL="DEBUG")
    assert lines[:5] == [
        "<7>some.module: level is 10",
        "<6>some.module: level is 20",
        "<4>some.module: level is 30",
        "<3>some.module: level is 40",
        "<2>some.module: level is 50",
    ]
    assert lines[5:8] == ["<3>some.module: it", "<3>broke", "<3>Traceback (most recent call last):"]
    assert all(line.startswith("<3>") for line in lines[5:])


def test_a_terminal_that_a_service_opened_is_no_journal(tmp_path: Path) -> None:
    lines = lines_of_a_process(tmp_path, in_journal=False, JOURNAL_STREAM="9:12345")
    assert re.match(TIME, lines[0])


@pytest.mark.parametrize(("level", "records"), [("DEBUG", 5), ("INFO", 4), ("WARNING", 3), ("ERROR", 2)])
def test_records_below_the_level_are_not_logged(capsys: pytest.CaptureFixture[str], level: str, records: int) -> None:
    logs.configure(configuration.load(log_level=level))
    log_each_level()
    assert len(capsys.readouterr().err.splitlines()) == records


def test_the_level_can_change_later(capsys: pytest.CaptureFixture[str]) -> None:
    settings = configuration.load(log_level="ERROR")
    logs.configure(settings)
    settings.log_level = "INFO"
    logs.set_level(settings)
    logging.getLogger("x").info("now")
    assert capsys.readouterr().err.endswith("INFO    x: now\n")


def test_to_configure_again_replaces_and_does_not_repeat(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    settings = configuration.load(logs_dir=tmp_path)
    logs.configure(settings)
    logs.configure(settings)
    logging.getLogger("x").error("once")
    assert capsys.readouterr().err.count("once") == 1
    assert (tmp_path / "app.log").read_text().count("once") == 1


def test_a_log_file_is_written_beside_the_console_in_a_folder_that_is_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    folder = tmp_path / "some" / "where"
    logs.configure(configuration.load(logs_dir=folder, app_log_file="daemon.log"))
    logging.getLogger("x").warning("Grüße")
    assert re.fullmatch(rf"{TIME} WARNING x: Grüße\n", (folder / "daemon.log").read_text(encoding="utf-8"))
    assert "Grüße" in capsys.readouterr().err


def test_the_log_file_rotates_at_its_size_and_keeps_as_many_as_asked(tmp_path: Path) -> None:
    logs.configure(configuration.load(logs_dir=tmp_path, log_max_bytes=1024, log_backup_count=2))
    for number in range(200):
        logging.getLogger("x").warning("record %d", number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.log", "app.log.1", "app.log.2"]
    assert all(path.stat().st_size <= 1024 for path in tmp_path.iterdir())
    assert (tmp_path / "app.log").read_text().endswith("record 199\n")


def test_a_restart_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for word in ("before", "after"):
        logs.configure(configuration.load(logs_dir=tmp_path))
        logging.getLogger("x").error(word)
    assert [line.rsplit(maxsplit=1)[1] for line in (tmp_path / "app.log").read_text().splitlines()] == [
        "before",
        "after",
    ]


@pytest.mark.parametrize("name", ["file/logs", "file"])
def test_a_folder_that_cannot_be_is_a_wrong_setting_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as refused:
        logs.configure(configuration.load(logs_dir=tmp_path / name))
    assert str(refused.value).startswith(f"FISHS2_LOGS_DIR: '{tmp_path / name / 'app.log'}' cannot be written (")
    assert len(str(refused.value).splitlines()) == 1


def test_a_folder_in_the_place_of_the_file_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "app.log").mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        logs.configure(configuration.load(logs_dir=tmp_path))


def log_each_level() -> None:
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logging.getLogger("x").log(level, "level")
