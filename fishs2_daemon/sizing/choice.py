"""The published file that a machine should take (FISHS2_MODEL_QUANT=auto)."""

from collections.abc import Sequence
from dataclasses import dataclass

from fishs2_daemon.hardware import Hardware
from fishs2_daemon.settings import Settings
from fishs2_daemon.sizing.fits import Fit, fits

#: Slots that a file should leave room for: one who speaks, and one who does not have to wait.
_GOOD_SLOTS = 2

#: The estimate may be off by a quarter, and listeners still hear no gap.
_REAL_TIME_RTF = 0.8

#: The smallest that is taken for the sake of speed: others have less than four bits a weight, which is heard.
_QUICKEST = "q4_k_m"


@dataclass(frozen=True, slots=True)
class Choice:
    """`reason` is a line that begins with the name; where `fits` is false nothing does, and it is a warning."""

    quant: str
    reason: str
    fits: bool


def choose_quant(settings: Settings, hardware: Hardware) -> Choice:
    """The best quality that fits with two slots of the context that is set (else one), that has room on the disk, and
    that is expected to speak in real time, of those that are there already, else of all; where none is, as on a
    processor, the quickest that still sounds well."""
    return choice_of(fits(settings, hardware), settings, hardware)


def choice_of(found: Sequence[Fit], settings: Settings, hardware: Hardware) -> Choice:
    """`found` is what `fits` says of them."""
    able = [fit for fit in found if fit.has_memory and fit.has_disk]
    if not able:
        return _none(found, settings, hardware)
    names = [fit.quant for fit in found]
    sound = [fit for fit in able if names.index(fit.quant) <= names.index(_QUICKEST)]
    good = settings.slots or _GOOD_SLOTS
    able = [fit for fit in sound or able if fit.slots >= good] or sound or able
    quick = [fit for fit in able if _is_quick(fit)]
    if quick:
        # What is there is not fetched in another quality because a little more memory, or less, is free today.
        best = next((fit for fit in quick if not fit.missing_bytes), quick[0])
        what = "the best in real time" if best.rtf else "the best"
    elif sound:
        best, what = able[-1], "the quickest that sounds well and"
    else:
        best, what = able[0], "the best"
    needed = f"{best.needed_bytes >> 20} of {best.place.free_bytes >> 20} MB"
    reason = (
        f"{what} that fits {best.place.name}, with {best.slots_in_words} in {needed}; {best.speed} is to be expected"
    )
    return Choice(best.quant, f"{best.quant}: {reason}", True)


def _is_quick(fit: Fit) -> bool:
    """Where a GPU's bandwidth is not known, nothing speaks against it."""
    if fit.place.gpu is None or fit.place.layers_below:
        return False
    return fit.rtf_expected is None or fit.rtf_expected <= _REAL_TIME_RTF


def _none(found: Sequence[Fit], settings: Settings, hardware: Hardware) -> Choice:
    there = [fit for fit in found if not fit.missing_bytes]
    smallest = next((fit for fit in reversed(found) if fit.has_memory), (there or found)[-1])
    shortage = smallest.shortage
    if not shortage and settings.skip_downloads:
        shortage = "it is not there, and FISHS2_SKIP_DOWNLOADS forbids to fetch it"
    elif not shortage:
        free = (hardware.disk_free_bytes or 0) >> 20
        needed = smallest.missing_bytes >> 20
        shortage = f"{needed} MB more are needed on the disk, and {free} MB are free at {hardware.models_dir}"
    which = "the smallest that is there" if there else "the smallest"
    return Choice(
        smallest.quant,
        f"{smallest.quant}: nothing fits, and this is {which}: {shortage}",
        False,
    )
