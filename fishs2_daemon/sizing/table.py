"""The sums, as lines of text."""

from collections.abc import Sequence

from fishs2_daemon.artifacts.artifact import PUBLISHED_BYTES
from fishs2_daemon.artifacts.progress import megabytes
from fishs2_daemon.engines.s2.needs import RESERVE
from fishs2_daemon.settings import Settings
from fishs2_daemon.sizing.choice import Choice
from fishs2_daemon.sizing.fits import EFFICIENCIES, Fit

_COLUMNS = (
    f"{'file':<8}{'on disk':>9}{'weights':>9}{'graphs':>8}{'codec':>7}{'voices':>8}{'reserve':>9}"
    f"{'slots x each':>14}{'needed':>9}{'free':>8}  "
)


def lines(found: Sequence[Fit], choice: Choice, settings: Settings) -> list[str]:
    """`found` is what `fits` says, `choice` what came of it."""
    place = found[0].place
    told = [f"S2 Pro on {place.name}, slots of {settings.context} positions; MB of memory:", _COLUMNS.rstrip()]
    told += [_row(fit, choice) for fit in found]
    if place.layers_below:
        below = f"{found[0].below_bytes >> 20} to {found[-1].below_bytes >> 20} MB"
        told += [
            f"FISHS2_N_GPU_LAYERS={settings.n_gpu_layers}: the processor does the first {place.layers_below} layers,",
            f"with {below} of the machine's memory, of which {place.ram_free_bytes >> 20} MB are free.",
        ]
    elif place.gpu is None:
        told.append("RTF is computing time over sounding time: a processor is for trying, not for real time.")
    else:
        told += _of_gpu(place.gpu.bandwidth)
    told.append(f"Measure it with: fishs2-daemon bench --synthetic s2-pro --quant {choice.quant}")
    return told


def _of_gpu(bandwidth: int | None) -> list[str]:
    if not bandwidth:
        return ["The bandwidth of its memory is not known, and so the speed is not."]
    least, most = EFFICIENCIES
    return [
        "RTF is computing time over sounding time, an estimate for one text at a time: the bytes that a frame reads,",
        f"at {least:.0%} to {most:.0%} of the memory's {bandwidth // 10**9} GB/s, which engines for this model reach.",
    ]


def _row(fit: Fit, choice: Choice) -> str:
    needs, place = fit.needs, fit.place
    sums = (
        f"{fit.quant:<8}{megabytes(PUBLISHED_BYTES[fit.quant]):>9}{needs.weights >> 20:>9}{needs.graphs >> 20:>8}"
        f"{needs.codec >> 20:>7}{needs.voices >> 20:>8}{RESERVE + place.reserve_bytes >> 20:>9}"
        f"{f'{fit.slots_told} x {needs.slot >> 20}':>14}{fit.needed_bytes >> 20:>9}{place.free_bytes >> 20:>8}"
    )
    return f"{sums}  {', '.join(_remarks(fit, choice))}"


def _remarks(fit: Fit, choice: Choice) -> list[str]:
    remarks = [fit.speed if fit.has_memory else "does not fit"]
    if not fit.missing_bytes:
        remarks.append("is there")
    elif not fit.has_disk:
        remarks.append("no room on the disk")
    if choice.fits and fit.quant == choice.quant:
        remarks.append("recommended")
    return remarks
