import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fishs2_daemon.settings import Settings

UNITS = Path(__file__).parent.parent / "systemd"
ANALYZE = shutil.which("systemd-analyze")


def systemd_version() -> int:
    if ANALYZE is None:
        return 0
    output = subprocess.run([ANALYZE, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    return int(output.split()[1].partition(".")[0].partition("~")[0])


VERSION = systemd_version()
needs_systemd = pytest.mark.skipif(VERSION < 252, reason="needs systemd-analyze 252 or newer")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a daemon that exists."""
    copy = tmp_path / "units"
    shutil.copytree(UNITS, copy)
    for unit in copy.rglob("*.service"):
        text, count = re.subn(
            r"(?m)^ExecStart=\S+/fishs2-daemon ", f"ExecStart={shutil.which('true')} ", unit.read_text()
        )
        assert count == 1
        unit.write_text(text)
    return copy


def analyze(tmp_path: Path, *arguments: str | Path) -> tuple[int, str]:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700, exist_ok=True)
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "cat"}
    assert ANALYZE is not None
    result = subprocess.run([ANALYZE, *arguments], capture_output=True, text=True, env=environ, timeout=60, check=False)
    return result.returncode, (result.stdout + result.stderr).strip()


def drop_in(units: Path, name: str) -> None:
    folder = units / "fishs2-daemon.service.d"
    folder.mkdir(exist_ok=True)
    shutil.copy(units / name, folder)


def options(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@needs_systemd
def test_system_units_are_clean(units: Path, tmp_path: Path) -> None:
    paths = [*sorted(units.glob("*.service")), *sorted(units.glob("*.socket"))]
    assert len(paths) == 3
    assert analyze(tmp_path, "verify", "--man=no", *paths) == (0, "")


@needs_systemd
def test_the_user_unit_is_clean(units: Path, tmp_path: Path) -> None:
    result = analyze(tmp_path, "verify", "--user", "--man=no", units / "user" / "fishs2-daemon.service")
    assert result == (0, "")


@needs_systemd
def test_drop_ins_are_clean(units: Path, tmp_path: Path) -> None:
    drop_in(units, "private-networks.conf")
    if VERSION >= 253:
        drop_in(units, "notify-reload.conf")
    assert analyze(tmp_path, "verify", "--man=no", units / "fishs2-daemon.service") == (0, "")


@needs_systemd
def test_the_system_unit_is_hardened(units: Path, tmp_path: Path) -> None:
    unit = units / "fishs2-daemon.service"
    status, report = analyze(tmp_path, "security", "--offline=true", "--threshold=20", "--no-pager", unit)
    assert status == 0, report
    level = re.search(r"exposure level for fishs2-daemon.service: ([\d.]+)", report)
    assert level is not None
    assert float(level[1]) <= 2.0, report


def test_the_sockets_have_the_names_that_the_daemon_knows() -> None:
    wyoming, http = options("fishs2-daemon.socket"), options("fishs2-daemon-http.socket")
    assert (wyoming["ListenStream"], wyoming["FileDescriptorName"]) == (["10200"], ["wyoming"])
    assert (http["ListenStream"], http["FileDescriptorName"]) == (["8020"], ["http"])
    assert wyoming["Service"] == http["Service"] == ["fishs2-daemon.service"]


@pytest.mark.parametrize("unit", ["fishs2-daemon.service", "user/fishs2-daemon.service"])
def test_services_leave_the_daemon_its_time(unit: str) -> None:
    service = options(unit)
    drain_s = Settings.model_fields["drain_timeout_s"].default
    cancel_s = Settings.model_fields["cancel_timeout_s"].default
    start_s = Settings.model_fields["worker_start_timeout_s"].default
    assert float(service["TimeoutStopSec"][0]) > drain_s + cancel_s
    assert float(service["TimeoutStartSec"][0]) > start_s
    assert float(service["WatchdogSec"][0]) > Settings.model_fields["worker_hang_timeout_s"].default
    assert service["RestartPreventExitStatus"] == ["78"]
    assert service["KillMode"] == ["mixed"]


def test_the_gpu_stays_visible() -> None:
    service = options("fishs2-daemon.service")
    assert {line.split()[0] for line in service["DeviceAllow"]} >= {
        "char-nvidia", "char-nvidia-frontend", "char-nvidiactl", "char-nvidia-uvm", "char-nvidia-caps",
    }  # fmt: skip
    assert "PrivateDevices" not in service
    assert "MemoryDenyWriteExecute" not in service


def test_discovery_passes_the_network_filter() -> None:
    allowed = " ".join(options("private-networks.conf")["IPAddressAllow"]).split()
    assert {"localhost", "link-local", "multicast"} <= set(allowed)
