"""`doctor`: what is there, what works, and what to do next."""

import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import ifaddr

from fishs2_daemon import __version__, configuration
from fishs2_daemon.daemon import running_service
from fishs2_daemon.discovery import choose_addresses
from fishs2_daemon.engine_choice import choose_engine
from fishs2_daemon.errors import ConfigError, Fishs2Error, ListenError
from fishs2_daemon.settings import Settings
from fishs2_daemon.sockets import listen_tcp, parse_uri
from fishs2_daemon.speech import SpeechRequest

_SAMPLE = "The quick brown fox jumps over the lazy dog."

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"


@dataclass(frozen=True, slots=True)
class Finding:
    """`advice` says what to do about it; nothing where nothing needs doing."""

    severity: str
    text: str
    advice: str = ""


async def examine(settings: Settings, say: Callable[[str], None]) -> bool:
    """Report each finding as a line. True when there is no problem."""
    findings = [_program(), *_settings(settings), await _engine(settings), _model(settings)]
    findings += [_wyoming(uri) for uri in settings.uri]
    findings += [_port("HTTP", settings.host, settings.port, "FISHS2_HOST, FISHS2_PORT")] if settings.http else []
    findings += [_discovery(settings), _access(settings), _service_manager()]
    for finding in findings:
        say(f"{finding.severity:<8}{finding.text}")
        if finding.advice:
            say(f"{'':<8}-> {finding.advice}")
    return all(finding.severity != PROBLEM for finding in findings)


def _program() -> Finding:
    return Finding(OK, f"fishs2-daemon {__version__}, Python {platform.python_version()} ({sys.executable})")


def _settings(settings: Settings) -> list[Finding]:
    names = configuration.given_names()
    findings = [
        Finding(NOTE, f"{name} means nothing here", "check its spelling in the README's table of settings")
        for name in configuration.unknown_names(names)
    ]
    if idle := configuration.without_effect(settings, names):
        findings.append(Finding(NOTE, f"without effect in this version: {', '.join(idle)}"))
    return findings


async def _engine(settings: Settings) -> Finding:
    try:
        async with running_service(settings) as (service, supervisor):
            engine = await supervisor.ready(settings.worker_start_timeout_s)
            began, heard_s, seconds = time.perf_counter(), 0.0, 0.0
            async with aclosing(service.speak(SpeechRequest(_SAMPLE))) as blocks:
                async for block in blocks:
                    heard_s = heard_s or time.perf_counter() - began
                    seconds += block.duration_s
            took_s = time.perf_counter() - began
    except Fishs2Error as error:
        return Finding(PROBLEM, f"the engine does not speak: {error}", "python3 run.py installs the preview voice")
    if engine.clones and took_s > seconds:
        return Finding(
            NOTE,
            f"{engine.name} speaks on {engine.device}, slower than real time: {took_s / seconds:.1f} s of computing "
            f"per second of speech, first audio after {heard_s * 1000:.0f} ms",
            "a processor is for trying; real time needs a GPU",
        )
    where = f" on {engine.device}" if engine.device else ""
    return Finding(
        OK,
        f"{engine.name} speaks{where}: {len(engine.voices)} voices, first audio after {heard_s * 1000:.0f} ms, "
        f"{took_s / seconds:.3f} s of computing per second of speech",
    )


def _model(settings: Settings) -> Finding:
    choice = choose_engine(settings)
    if choice.name == "s2":
        return Finding(OK, f"S2 Pro from {settings.model_path}; built with Fish Audio, for non-commercial use")
    return Finding(NOTE, "the preview voice (espeak-ng, robotic) speaks instead of S2 Pro", choice.missing)


def _wyoming(uri: str) -> Finding:
    try:
        address = parse_uri(uri)
    except ConfigError as error:
        return Finding(PROBLEM, str(error))
    if address.scheme != "tcp":
        return Finding(OK, f"Wyoming on {uri}")
    return _port("Wyoming", address.host, address.port, "FISHS2_URI")


def _port(door: str, host: str, port: int, setting: str) -> Finding:
    try:
        for sock in listen_tcp(host, port):
            sock.close()
    except ListenError as error:
        if _answers(port):
            return Finding(NOTE, f"{door}: port {port} is in use", "fine if that is this daemon, already serving")
        return Finding(PROBLEM, f"{door}: {error}", f"{setting}: an address of this machine and a free port")
    return Finding(OK, f"{door}: {host}:{port} is free")


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _discovery(settings: Settings) -> Finding:
    if not settings.zeroconf:
        return Finding(NOTE, "not announced on the network (FISHS2_ZEROCONF=false)")
    try:
        bound = [address.host for uri in settings.uri if (address := parse_uri(uri)).scheme == "tcp"]
    except ConfigError:
        bound = []  # reported above
    addresses = choose_addresses(ifaddr.get_adapters(), bound, settings.zeroconf_interface)
    if not addresses:
        return Finding(
            NOTE, "no address that others can reach: not announced; Home Assistant needs the address typed in"
        )
    return Finding(
        OK, f"announced on {', '.join(addresses)}", "reserve the address in your router: HA keeps the first one"
    )


def _access(settings: Settings) -> Finding:
    keys = f"{len(settings.api_keys)} API keys" if settings.api_keys else "no API key"
    networks = ", ".join(map(str, settings.allowed_networks))
    return Finding(OK, f"answers {networks}; HTTP needs {keys}")


def _service_manager() -> Finding:
    if not shutil.which("systemctl"):
        return Finding(NOTE, "no systemd here: start `fishs2-daemon serve` some other way")
    return Finding(OK, "systemd is here", "systemd/README.md says how to install the service")
