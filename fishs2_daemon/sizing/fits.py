"""What each published file would take on a machine, and how fast it would speak there."""

from collections.abc import Mapping
from dataclasses import dataclass

from fishs2_daemon.artifacts.artifact import PUBLISHED_BYTES
from fishs2_daemon.artifacts.part import SPARE_BYTES
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.needs import (
    MOST_CPU_SLOTS,
    MOST_GPU_SLOTS,
    Needs,
    frame_bytes,
    lower_needs,
    needs,
    weights_of,
)
from fishs2_daemon.engines.s2.placement import lower_skips, upper_skips
from fishs2_daemon.engines.s2.quantisations import QUANTISATIONS, stored_tensors
from fishs2_daemon.engines.s2.tiny_geometry import S2_PRO
from fishs2_daemon.hardware import Hardware
from fishs2_daemon.nvidia import Gpu
from fishs2_daemon.settings import Settings

#: Shares of its memory's bandwidth that engines for this model reach on a GPU, the least and the most of six reports.
EFFICIENCIES = (0.34, 0.50)

#: Seconds that the 1100 kernels of a frame take to be started, at 2.5 and at 1.5 microseconds each.
_KERNELS_S = (0.0028, 0.0017)

#: What CUDA takes for a process before the engine asks for anything: 150 to 500 MB, by the card.
_CUDA_BYTES = 300 << 20

_CONFIG = S2_PRO.config()
_FRAME_S = _CONFIG.codec.frame_samples / _CONFIG.codec.sample_rate


@dataclass(frozen=True, slots=True)
class Place:
    """Where the model would compute; a processor where `gpu` is None. `layers_below` of its layers are the processor's
    all the same. `reserve_bytes` is taken there before the engine takes anything."""

    gpu: Gpu | None
    free_bytes: int
    ram_free_bytes: int
    layers_below: int = 0

    @property
    def name(self) -> str:
        return f"GPU {self.gpu.number} ({self.gpu.name})" if self.gpu else "the processor"

    @property
    def reserve_bytes(self) -> int:
        return _CUDA_BYTES if self.gpu else 0


@dataclass(frozen=True, slots=True)
class Fit:
    """`slots` have room, 0 where fewer have than are asked for; the sums are told for `slots_told`. `rtf` is the
    estimate, from the best to the worst, None where nothing is known. `below` is what the first layers take of the
    machine's own memory. `missing_bytes` of the file are still to be fetched, and `has_disk` says whether they can be.
    """

    quant: str
    place: Place
    needs: Needs
    below: Needs | None
    slots: int
    slots_told: int
    missing_bytes: int
    has_disk: bool
    rtf: tuple[float, float] | None

    @property
    def needed_bytes(self) -> int:
        return self.needs.of(self.slots_told) + self.place.reserve_bytes

    @property
    def below_bytes(self) -> int:
        return self.below.of(self.slots_told) if self.below else 0

    @property
    def has_memory(self) -> bool:
        return self.slots > 0

    @property
    def shortage(self) -> str:
        """What lacks memory, and how much is needed and free; empty where nothing does."""
        needed, free, where = self.needed_bytes, self.place.free_bytes, f"on {self.place.name}"
        if needed <= free:
            needed, free, where = self.below_bytes, self.place.ram_free_bytes, "for the layers on the processor"
        if needed <= free:
            return ""
        return f"{self.slots_in_words} would take {needed >> 20} MB {where}, and {free >> 20} MB are free"

    @property
    def slots_in_words(self) -> str:
        return "1 slot" if self.slots_told == 1 else f"{self.slots_told} slots"

    @property
    def speed(self) -> str:
        """What to expect, in a few words."""
        if self.rtf:
            return f"RTF {self.rtf[0]:.2f}-{self.rtf[1]:.2f}"
        if self.place.gpu is None:
            return "RTF well above 1"
        return "slowed by the processor" if self.place.layers_below else "RTF unknown"

    @property
    def rtf_expected(self) -> float | None:
        return 2 / (1 / self.rtf[0] + 1 / self.rtf[1]) if self.rtf else None


def place_for(settings: Settings, hardware: Hardware) -> Place:
    """The tightest of the GPUs that are set, where one will be used; else the processor."""
    chosen = [gpu for gpu in hardware.gpus if gpu.number in settings.gpu_device] or [*hardware.gpus]
    # Left to itself, a ggml that was built for processors alone takes one.
    has_cuda = hardware.ggml is None or "cuda" in hardware.ggml or settings.backend == "cuda"
    if settings.backend == "cpu" or not chosen or not has_cuda:
        return Place(None, hardware.ram_free_bytes, hardware.ram_free_bytes)
    gpu = min(chosen, key=hardware.free_bytes)
    upper, layers = settings.n_gpu_layers, _CONFIG.slow.layers
    below = 0 if upper < 0 else max(0, layers - upper)
    return Place(gpu, hardware.free_bytes(gpu), hardware.ram_free_bytes, below)


def fits(settings: Settings, hardware: Hardware) -> list[Fit]:
    """Of every published file, the best quality first."""
    place = place_for(settings, hardware)
    may_fetch = not settings.skip_downloads or all(hardware.missing_bytes.values())
    return [_fit(quant, settings, hardware, place, may_fetch=may_fetch) for quant in PUBLISHED_BYTES]


def _fit(quant: str, settings: Settings, hardware: Hardware, place: Place, *, may_fetch: bool) -> Fit:
    types, on_gpu, lower = types_of(quant), place.gpu is not None, place.layers_below
    context = min(settings.context, _CONFIG.slow.context)
    voices = settings.voice_cache_mb << 20
    weights = weights_of(types, _CONFIG, upper_skips(lower), on_gpu=on_gpu)
    told = needs(_CONFIG, weights, context=context, voices=voices, fused=on_gpu, lower=lower)
    most = settings.slots or (MOST_GPU_SLOTS if on_gpu else MOST_CPU_SLOTS)
    slots, below = told.slots_in(place.free_bytes - place.reserve_bytes, most), None
    if lower:
        weights = weights_of(types, _CONFIG, lower_skips(lower), on_gpu=False)
        below = lower_needs(_CONFIG, weights, context=context, voices=voices, lower=lower)
        slots = min(slots, below.slots_in(place.ram_free_bytes, most))
    least = settings.slots or 1
    missing, free = hardware.missing_bytes[quant], hardware.disk_free_bytes
    has_room = may_fetch and (free is None or missing + SPARE_BYTES <= free)
    return Fit(
        quant=quant,
        place=place,
        needs=told,
        below=below,
        slots=slots if slots >= least else 0,
        slots_told=max(slots, least),
        missing_bytes=missing,
        has_disk=not missing or has_room,
        rtf=_rtf(types, place),
    )


def types_of(quant: str) -> Mapping[str, GgmlType]:
    """The types of the tensors of a published file, by their names."""
    return {name: kind for name, _, kind in stored_tensors(_CONFIG, QUANTISATIONS[quant])}


def _rtf(types: Mapping[str, GgmlType], place: Place) -> tuple[float, float] | None:
    """Seconds of computing for a second of sound, one text at a time."""
    if place.gpu is None or not place.gpu.bandwidth or place.layers_below:
        return None
    reading_s = frame_bytes(types, _CONFIG) / place.gpu.bandwidth
    worst, best = (max(reading_s / share, floor) for share, floor in zip(EFFICIENCIES, _KERNELS_S, strict=True))
    return best / _FRAME_S, worst / _FRAME_S
