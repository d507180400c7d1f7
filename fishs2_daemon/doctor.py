"""`doctor`: what is there, what works, and what to do next."""

import asyncio
import importlib.util
import os
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
from fishs2_daemon.artifacts.artifact import PUBLISHED_BYTES
from fishs2_daemon.artifacts.progress import megabytes
from fishs2_daemon.daemon import running_service
from fishs2_daemon.discovery import choose_addresses
from fishs2_daemon.engine_choice import choose_engine
from fishs2_daemon.engines.s2.proof import Proof, prove
from fishs2_daemon.errors import ConfigError, Fishs2Error, ListenError
from fishs2_daemon.hardware import Hardware, look
from fishs2_daemon.settings import Settings
from fishs2_daemon.sizing.check import require_gpu
from fishs2_daemon.sizing.choice import Choice, choice_of
from fishs2_daemon.sizing.fits import Fit, fits
from fishs2_daemon.sizing.table import lines
from fishs2_daemon.sockets import listen_tcp, parse_uri
from fishs2_daemon.speech import SpeechRequest

_SAMPLE = "The quick brown fox jumps over the lazy dog."

#: Published sizes of some files are rounded to a tenth of a gigabyte.
_SIZES_DIFFER = 0.03

#: A driver may have kernels to translate the first time.
_PROOF_S = 180.0

#: Of what ggml was built with, that which decides how fast it is.
_NOTABLE = ("AVX2", "AVX512", "NEON", "LLAMAFILE", "USE_GRAPHS")

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"


@dataclass(frozen=True, slots=True)
class Finding:
    """`advice` says what to do about it; nothing where nothing needs doing. `details` are lines for below."""

    severity: str
    text: str
    advice: str = ""
    details: tuple[str, ...] = ()


async def examine(settings: Settings, say: Callable[[str], None]) -> bool:
    """Report each finding as a line. True when there is no problem."""
    hardware = await asyncio.to_thread(look, settings)  # before an engine takes its share
    findings = [_program(), *_settings(settings), *_machine(settings, hardware)]
    findings += await _backends(settings, hardware)
    findings += [await _engine(settings), _model(settings), *_files(settings, hardware)]
    findings += [_wyoming(uri) for uri in settings.uri]
    findings += [_port("HTTP", settings.host, settings.port, "FISHS2_HOST, FISHS2_PORT")] if settings.http else []
    findings += [_discovery(settings), _access(settings), _service_manager()]
    for finding in findings:
        say(f"{finding.severity:<8}{finding.text}")
        if finding.advice:
            say(f"{'':<8}-> {finding.advice}")
        for line in finding.details:
            say(f"{'':<8}{line}")
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


def _machine(settings: Settings, hardware: Hardware) -> list[Finding]:
    findings = []
    for gpu in hardware.gpus:
        speed = f", {gpu.bandwidth // 10**9} GB/s" if gpu.bandwidth else ""
        of = "shares the machine's memory" if gpu.total_bytes is None else f"{gpu.total_bytes >> 20} MB"
        free = f"{hardware.free_bytes(gpu) >> 20} MB of it free"
        findings.append(Finding(OK, f"GPU {gpu.number}: {gpu.name}, {of}, {free}{speed}, driver {gpu.driver}"))
    try:
        require_gpu(settings, hardware)
    except ConfigError as error:
        findings.append(Finding(PROBLEM, str(error)))
    else:
        if not hardware.gpus:
            findings.append(Finding(NOTE, "no NVIDIA GPU answers here", "a processor is for trying S2 Pro"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = f"{hardware.ram_bytes >> 20} MB of memory, {hardware.ram_free_bytes >> 20} MB of it free"
    disk = f"; {megabytes(hardware.disk_free_bytes)} free at {hardware.models_dir}" if hardware.disk_free_bytes else ""
    return [*findings, Finding(OK, f"{cores} cores; {memory}{disk}")]


async def _backends(settings: Settings, hardware: Hardware) -> list[Finding]:
    """Whether ggml computes where S2 Pro would; nothing where it is not installed, or another engine is set."""
    if settings.engine not in ("auto", "s2") or importlib.util.find_spec("ggml") is None:
        return []
    # The engine takes what auto would where it has no such backend.
    backend = settings.backend if settings.backend in ("cuda", "cpu") else "auto"
    devices = [0] if backend == "cpu" else settings.gpu_device
    return [_backend(await prove(backend, device, _PROOF_S), hardware) for device in devices]


def _backend(proof: Proof, hardware: Hardware) -> Finding:
    if not proof.ok:
        build = f"python3 run.py --backend {proof.backend}" if "a build without" in proof.reason else ""
        return Finding(PROBLEM, f"ggml does not compute on {proof.backend}: {proof.reason}", build or "see docs/gpu.md")
    built_with = ", ".join(name for name in _NOTABLE if name in proof.features)
    where = f"{proof.device} ({proof.device_name}{'; ' if built_with else ''}{built_with})"
    text = f"ggml {proof.ggml_version} computes on {where}"
    if proof.device == "cpu" and proof.backend == "auto" and hardware.gpus:
        return Finding(NOTE, f"{text}, and not on the GPU: {proof.no_cuda}", "python3 run.py --backend cuda")
    if proof.device == "cpu" and "LLAMAFILE" not in proof.features:
        return Finding(NOTE, f"{text}, prompts at half the speed", "build it with CMAKE_ARGS=-DGGML_LLAMAFILE=ON")
    return Finding(OK, text)


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
        advice = "python3 run.py installs the preview voice" if choose_engine(settings).name == "espeak" else ""
        return Finding(PROBLEM, f"the engine does not speak: {error}", advice)
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
    if choice.name in ("s2", "s2cpp"):
        return Finding(OK, f"S2 Pro from {settings.model_path}; built with Fish Audio, for non-commercial use")
    if choice.name == "remote":
        return Finding(OK, f"{', '.join(settings.remote_urls)} speak; their models have licences of their own")
    return Finding(NOTE, "the preview voice (espeak-ng, robotic) speaks instead of S2 Pro", choice.missing)


def _files(settings: Settings, hardware: Hardware) -> list[Finding]:
    """Which of the model's files is right here, and whether the one that is set is."""
    if settings.engine not in ("auto", "s2"):
        return []
    found = fits(settings, hardware)
    choice = choice_of(found, settings, hardware)
    file, advice = {fit.quant: fit for fit in found}[choice.quant], []
    if choice.fits and file.missing_bytes:
        advice.append(f"fishs2-daemon models get {choice.quant}")
    if choice.fits and settings.model_quant not in (choice.quant, "auto"):
        advice.append(f"FISHS2_MODEL_QUANT={choice.quant} (or auto) takes it")
    findings = [
        Finding(
            OK if choice.fits else NOTE,
            f"the file for this machine is {choice.reason}" if choice.fits else choice.reason,
            "; ".join(advice),
            tuple(lines(found, choice, settings)),
        )
    ]
    return findings + [_set(fit, choice, settings) for fit in found if _is_set(fit, settings)]


def _is_set(fit: Fit, settings: Settings) -> bool:
    """Whether it is the file that S2 Pro would speak from, by its name; a file of another size is another model."""
    path, published = settings.model_path, PUBLISHED_BYTES[fit.quant]
    if path.name != f"s2-pro-{fit.quant}.gguf":
        return False
    return not os.path.isfile(path) or abs(path.stat().st_size - published) < _SIZES_DIFFER * published


def _set(fit: Fit, choice: Choice, settings: Settings) -> Finding:
    what, where = f"{fit.quant}, which is set,", fit.place.name
    if fit.has_memory:
        return Finding(OK, f"{what} fits {where}, with {fit.slots_in_words}")
    text = f"{what} does not fit: {fit.shortage}"
    advice = f"FISHS2_MODEL_QUANT={choice.quant}; what a daemon that is running holds counts as taken"
    return Finding(
        PROBLEM if choose_engine(settings).name == "s2" else NOTE,
        text,
        advice if choice.fits else "a smaller FISHS2_CONTEXT or FISHS2_VOICE_CACHE_MB, or another machine",
    )


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
