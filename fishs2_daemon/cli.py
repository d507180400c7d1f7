"""The command line: a table of commands, each of which calls the piece that does the work."""

import asyncio
import sys
from typing import Annotated, Any

import typer

from fishs2_daemon import __version__, configuration, logs, models_cli, voices_cli
from fishs2_daemon.errors import ConfigError, Fishs2Error

#: sysexits.h: a setting is wrong. The unit does not restart the daemon then.
EXIT_CONFIG = 78
EXIT_FAILED = 1

app = typer.Typer(
    help="A speech daemon for Home Assistant (Wyoming) and OpenAI-style clients.",
    epilog="Settings come from FISHS2_* in the environment or in .env; flags go on top.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Voice = Annotated[str | None, typer.Option("--voice", metavar="ID", help="See `fishs2-daemon voices`.")]
Engine = Annotated[str | None, typer.Option(metavar="NAME", help="auto, espeak, s2, s2cpp or remote.")]
LogLevel = Annotated[str | None, typer.Option(metavar="LEVEL", help="DEBUG, INFO, WARNING or ERROR.")]


@app.command()
def serve(
    uri: Annotated[
        list[str] | None,
        typer.Option(metavar="URI", help="Wyoming: tcp://host:port, unix:///path, stdio://; repeatable."),
    ] = None,
    http_host: Annotated[str | None, typer.Option(metavar="HOST", help="Address of the HTTP door.")] = None,
    http_port: Annotated[str | None, typer.Option(metavar="PORT", help="Port of the HTTP door.")] = None,
    no_http: Annotated[bool, typer.Option("--no-http", help="Wyoming only.")] = False,
    engine: Engine = None,
    model: Annotated[str | None, typer.Option(metavar="FILE", help="S2 Pro model.")] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="FILE", help="Its tokenizer, if not beside it.")] = None,
    model_quant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Fetch and take that one: auto, f16, q8_0, q6_k, ...")
    ] = None,
    model_q4: Annotated[bool, typer.Option("--model-q4", help="Same as --model-quant q4_k_m, and beats it.")] = False,
    skip_downloads: Annotated[bool, typer.Option("--skip-downloads", help="Use the files that are there.")] = False,
    force_downloads: Annotated[bool, typer.Option("--force-downloads", help="Fetch the files again.")] = False,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="You agree to the model's licence: non-commercial use only.")
    ] = False,
    backend: Annotated[str | None, typer.Option(metavar="NAME", help="What it runs on: auto, cuda, cpu, ...")] = None,
    gpu_device: Annotated[str | None, typer.Option(metavar="N,N,...", help="GPUs; each one gets a worker.")] = None,
    n_gpu_layers: Annotated[str | None, typer.Option(metavar="N", help="Layers on the GPU; -1: all.")] = None,
    skip_gpu_check: Annotated[bool, typer.Option("--skip-gpu-check", help="Start without looking for a GPU.")] = False,
    voices_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of stored voices.")] = None,
    zeroconf_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Instance name on the network; never change it.")
    ] = None,
    zeroconf_interface: Annotated[
        list[str] | None, typer.Option(metavar="NAME|ADDRESS", help="Announce only there; repeatable.")
    ] = None,
    no_zeroconf: Annotated[bool, typer.Option("--no-zeroconf", help="Do not announce the Wyoming port.")] = False,
    log_level: LogLevel = None,
) -> None:
    """Serve Wyoming (port 10200) and HTTP (port 8020)."""
    overrides: dict[str, Any] = {
        "uri": uri or None, "host": http_host, "port": http_port, "http": False if no_http else None,
        "engine": engine, "model_path": model, "tokenizer_path": tokenizer,
        "model_quant": "q4_k_m" if model_q4 else model_quant, "skip_downloads": skip_downloads or None,
        "force_downloads": force_downloads or None, "accept_license": accept_license or None,
        "backend": backend, "gpu_device": gpu_device, "n_gpu_layers": n_gpu_layers,
        "skip_gpu_check": skip_gpu_check or None, "voices_dir": voices_dir,
        "zeroconf": False if no_zeroconf else None, "zeroconf_name": zeroconf_name,
        "zeroconf_interface": zeroconf_interface or None, "log_level": log_level,
    }  # fmt: skip
    from fishs2_daemon import daemon

    settings = configuration.load(**overrides)
    logs.configure(settings)
    asyncio.run(daemon.serve(settings, overrides))


@app.command()
def say(
    text: Annotated[str, typer.Argument(help="What to say; `-` reads standard input.")],
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="WAV file, or `-` for standard output; otherwise it is played."
        ),
    ] = None,
    voice: Voice = None,
    engine: Engine = None,
    log_level: LogLevel = "WARNING",
) -> None:
    """Say a text, into a file or through the loudspeaker."""
    from fishs2_daemon import say as saying

    settings = configuration.load(engine=engine, log_level=log_level)
    logs.configure(settings)
    if text == "-":
        text = sys.stdin.buffer.read().decode("utf-8", "replace")
    asyncio.run(saying.say(settings, text, voice, output))


app.add_typer(voices_cli.app, name="voices")
app.add_typer(models_cli.app, name="models")


@app.command()
def doctor() -> None:
    """Look at this machine and say what works and what to do next."""
    from fishs2_daemon import doctor as doctoring

    settings = configuration.load(log_level="ERROR")
    logs.configure(settings)
    if not asyncio.run(doctoring.examine(settings, typer.echo)):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def bench(
    streams: Annotated[
        str,
        typer.Option(metavar="N,N,...", help="Answers at a time, a level each; those beyond the slots are skipped."),
    ] = "1,4",
    repeat: Annotated[str, typer.Option(metavar="N", help="Rounds of each level; one more goes before them.")] = "3",
    seconds: Annotated[str, typer.Option(metavar="S", help="Length of an answer; every text is another one.")] = "10",
    slots: Annotated[str | None, typer.Option(metavar="N", help="Slots of the S2 engine (FISHS2_SLOTS).")] = None,
    voice: Annotated[
        str | None, typer.Option(metavar="ID", help="Stored voice: also measured new, cold and warm.")
    ] = None,
    reference_seconds: Annotated[
        str | None, typer.Option(metavar="S", help="Make a voice of noise that long up; with --synthetic 10, 0: none.")
    ] = None,
    synthetic: Annotated[
        str | None, typer.Option(metavar="SHAPE", help="Measure a random model: tiny, bench (small) or s2-pro (large).")
    ] = None,
    quant: Annotated[str, typer.Option(metavar="TYPE", help="Of its weights, such as q8_0, q4_k_m or f16.")] = "q8_0",
    folder: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where random models are kept; else in the user's cache.")
    ] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write everything there, raw times too.")] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="URL", help="Measure an OpenAI-style server in turns: http://host:port/v1.")
    ] = None,
    compare_model: Annotated[str, typer.Option(metavar="ID", help="Model to ask it for.")] = "tts-1",
    compare_voice: Annotated[str, typer.Option(metavar="ID", help="Voice to ask it for.")] = "alloy",
    compare_rate: Annotated[str, typer.Option(metavar="HZ", help="Sample rate of its PCM.")] = "24000",
    compare_key_file: Annotated[str | None, typer.Option(metavar="FILE", help="File with its API key.")] = None,
    ratios: Annotated[
        bool, typer.Option("--ratios", help="Measure the ratios that developers watch instead, of a random model.")
    ] = False,
    engine: Engine = None,
    log_level: LogLevel = "ERROR",
) -> None:
    """Measure the engine: time to the first sound, speed, gaps, memory.

    The engine is the one that the settings choose, on its own worker process, or with --synthetic the S2 engine with a
    model of random weights, which speaks noise as fast as a real one of that size would speak.
    """
    from fishs2_daemon.bench.plan import Plan
    from fishs2_daemon.bench.run import bench as measure

    plan = Plan.of(
        streams=streams, repeat=repeat, seconds=seconds, voice=voice, reference_seconds=reference_seconds,
        synthetic=synthetic, quant=quant, folder=folder, json=json, compare=compare, compare_model=compare_model,
        compare_voice=compare_voice, compare_rate=compare_rate, compare_key_file=compare_key_file, ratios=ratios,
    )  # fmt: skip
    settings = configuration.load(engine=engine, slots=slots, log_level=log_level)
    logs.configure(settings)
    measure(settings, plan)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(f"fishs2-daemon {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point. An error of ours is one line and a status; a wrong setting ends with 78."""
    try:
        app()
    except ConfigError as error:
        sys.exit(_failed(error, EXIT_CONFIG))
    except Fishs2Error as error:
        sys.exit(_failed(error, EXIT_FAILED))
    except KeyboardInterrupt:
        sys.exit(130)
    except asyncio.CancelledError:  # SIGTERM
        sys.exit(143)


def _failed(error: Fishs2Error, status: int) -> int:
    print(f"fishs2-daemon: {error}", file=sys.stderr)
    return status
