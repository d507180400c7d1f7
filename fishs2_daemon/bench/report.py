"""The figures: as JSON for machines, as tables for people."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fishs2_daemon.errors import InvalidRequest

#: Of the JSON; a field that changes its meaning makes another one.
SCHEMA = 2

UNKNOWN = "-"

_Figures = dict[str, Any]


def write(path: Path, report: _Figures) -> None:
    """The file appears whole or not at all. Raises `InvalidRequest` where it cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise InvalidRequest(f"--json {path}: cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def show(report: _Figures, console: Console) -> None:
    """What `run` and `ratios` report, whichever parts of it are there."""
    for line in _head(report):
        console.print(line, highlight=False, markup=False)
    if report.get("voice"):
        console.print(_voice_table(report["voice"]))
    if report.get("compared"):
        for ours, theirs in zip(report["levels"], report["compared"]["levels"], strict=True):
            console.print(_side_by_side(ours, theirs, report["compared"]["url"]))
    elif report.get("levels"):
        console.print(_level_table(report["levels"]))
    if report.get("ratios"):
        console.print(_ratio_table(report["ratios"]))
    for note in report["notes"]:
        console.print(note, highlight=False, markup=False)


def _head(report: _Figures) -> list[str]:
    software, hardware, engine = report["software"], report["hardware"], report["engine"]
    gpus = ", ".join(f"{gpu['name']} (driver {gpu['driver']})" for gpu in hardware["gpus"])
    commit = f" ({software['commit'][:10]})" if software["commit"] else ""
    lines = [
        f"fishs2-daemon {software['version']}{commit}, "
        f"{hardware['cpu']}, {hardware['cores']} cores, load {hardware['load_1min']:.1f}, {gpus or 'no GPU'}"
    ]
    if model := engine["model"]:
        lines.append(
            f"{engine['name']}: {model['name']} ({model['size_bytes'] >> 20} MB, {model['quant']}), "
            f"backend {engine['backend']}, {engine['slots']} slots of {engine['context']} positions"
        )
    else:
        lines.append(f"{engine['name']}: {engine['slots']} at a time")
    if kernels := engine["frame_kernels"]:
        lines.append(f"a frame: one graph of {kernels} kernels, before the backend fuses some")
    return lines


def _level_table(levels: Sequence[_Figures]) -> Table:
    table = Table("streams", *(str(level["streams"]) for level in levels))
    for column in table.columns[1:]:
        column.justify = "right"
    for title, value, form in _ROWS:
        table.add_row(title, *(_shown(value(level), form) for level in levels))
    return table


def _side_by_side(ours: _Figures, theirs: _Figures, url: str) -> Table:
    table = Table(f"{ours['streams']} streams", "ours", url, "ours / theirs")
    for column in table.columns[1:]:
        column.justify = "right"
    for title, value, form in _ROWS:
        one, other = value(ours), value(theirs)
        ratio = one / other if one is not None and other else None
        table.add_row(title, _shown(one, form), _shown(other, form), _shown(ratio, "{:.3f}"))
    return table


def _voice_table(voice: _Figures) -> Table:
    table = Table("voice", "TTFA p50 ms", "p95", "p99", "answers")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind in ("new", "cold", "warm"):
        figures = voice[kind]
        values = [_shown(figures["ttfa_ms"][name], "{:.0f}") for name in ("p50", "p95", "p99")]
        table.add_row(_KINDS[kind], *values, str(figures["answers"]))
    return table


def _ratio_table(ratios: Sequence[_Figures]) -> Table:
    table = Table("ratio", "measured", "goal", "", "of")
    for ratio in ratios:
        goal = f"{'<=' if ratio['at_most'] else '>='} {ratio['goal']:g}"
        verdict = "ok" if ratio["is_met"] else "MISSED"
        table.add_row(ratio["name"], f"{ratio['value']:.3g}", goal, verdict, ratio["detail"])
    return table


def _shown(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)


def _at(name: str, part: str | None = None) -> Callable[[_Figures], float | None]:
    return (lambda level: level[name][part]) if part else (lambda level: level[name])


_KINDS = {
    "new": "new (its codes are made)",
    "cold": "cold (its codes are on disk)",
    "warm": "warm (it was heard before)",
}

_ROWS: tuple[tuple[str, Callable[[_Figures], float | None], str], ...] = (
    *((f"TTFA {name}, ms", _at("ttfa_ms", name), "{:.0f}") for name in ("p50", "p95", "p99")),
    *((f"RTF {name}", _at("rtf", name), "{:.3f}") for name in ("p50", "p95", "p99")),
    ("frames/s", _at("frames_per_s"), "{:.1f}"),
    ("audio s/s", _at("audio_s_per_s"), "{:.2f}"),
    ("audio, s", _at("audio_s"), "{:.1f}"),
    ("underruns, s", _at("underrun_s"), "{:.2f}"),
    *((f"answers with < {name[1:]} ms of them", _at("continuity", name), "{:.0%}") for name in ("c50", "c100", "c200")),
    ("peak RAM of the worker, MB", _at("peak_ram_mb"), "{:.0f}"),
    ("VRAM of the worker, MB", _at("vram_mb"), "{:.0f}"),
    ("answers", _at("answers"), "{:d}"),
)
