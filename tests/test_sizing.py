"""Which file is right for a machine: sums that can be done by hand, on recorded GPUs and on none."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fishs2_daemon import configuration
from fishs2_daemon.artifacts.artifact import PUBLISHED_BYTES
from fishs2_daemon.errors import ConfigError
from fishs2_daemon.hardware import Hardware, look
from fishs2_daemon.nvidia import Gpu
from fishs2_daemon.sizing.check import needs_gpu, require_gpu
from fishs2_daemon.sizing.choice import choose_quant
from fishs2_daemon.sizing.fits import Fit, fits
from fishs2_daemon.sizing.table import lines
from tests.recorded_gpus import H200, MIB, RTX_2060, RTX_3060, RTX_3060_TI, RTX_4090, Card, Machine

#: A home's machine, without a GPU.
HOME = Hardware(ram_bytes=32 << 30, ram_free_bytes=28 << 30, disk_free_bytes=100 << 30)

UNKNOWN = Gpu(0, "NVIDIA Unheard Of", "550.1", 24 << 30, 23 << 30, None)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "gpus", monkeypatch)


def seen(machine: Machine, *cards: Card) -> Hardware:
    """HOME with these cards, as their library tells of them."""
    machine.nvml(*cards)
    return replace(HOME, gpus=look(configuration.load()).gpus)


def sums(hardware: Hardware, **settings: Any) -> dict[str, Fit]:
    return {fit.quant: fit for fit in fits(configuration.load(**settings), hardware)}


# Recorded cards


@pytest.mark.parametrize(
    ("card", "slots", "chosen"),
    [
        # Most slots of 4096 positions for f16, q8_0, q6_k, q5_k_m, q4_k_m, q3_k, q2_k. For q5_k_m on the first one:
        # weights 3555, graphs 106, codec 84, voices 512, reserve 812, slots of 620: 5689 for one, 6309 for two.
        (RTX_2060, (0, 0, 0, 1, 1, 2, 3), "q4_k_m"),
        (RTX_3060_TI, (0, 2, 3, 4, 5, 5, 6), "q6_k"),
        (RTX_3060, (2, 8, 8, 8, 8, 8, 8), "q4_k_m"),
        (RTX_4090, (8, 8, 8, 8, 8, 8, 8), "f16"),
        (H200, (8, 8, 8, 8, 8, 8, 8), "f16"),
    ],
    ids=lambda value: value.name if isinstance(value, Card) else "",
)
def test_what_fits_a_card(machine: Machine, card: Card, slots: tuple[int, ...], chosen: str) -> None:
    hardware = seen(machine, card)
    found = sums(hardware)
    assert tuple(fit.slots for fit in found.values()) == slots
    assert tuple(found) == tuple(PUBLISHED_BYTES)
    for fit in found.values():
        assert fit.has_memory == (fit.needed_bytes <= card.free * MIB)
        if 0 < fit.slots < 8:
            assert fit.needed_bytes + fit.needs.slot > card.free * MIB
    choice = choose_quant(configuration.load(), hardware)
    assert (choice.quant, choice.fits) == (chosen, True)
    what = "the quickest that sounds well and" if card is RTX_2060 else "the best in real time"
    assert choice.reason.startswith(f"{chosen}: {what} that fits GPU 0 ({card.name}), with ")
    assert f" of {card.free} MB; RTF " in choice.reason


def test_the_sums_are_those_of_the_parts(machine: Machine) -> None:
    fit = sums(seen(machine, RTX_3060_TI), slots=2)["q8_0"]
    needs = fit.needs
    assert [n >> 20 for n in (needs.weights, needs.graphs, needs.codec, needs.voices)] == [4777, 106, 84, 512]
    # 2 * 36 layers * 8 heads * 128 * 4352 cells in F16, and the codec's 2 * 8 layers * 1024 * 128 columns in F32.
    assert needs.slot == 641_728_512 + 8_388_608
    parts = needs.weights + needs.graphs + needs.codec + needs.voices + (512 << 20) + (300 << 20)
    assert fit.needed_bytes == parts + 2 * needs.slot


@pytest.mark.parametrize(
    ("card", "quant", "at_full_bandwidth"),
    [
        # Milliseconds that a frame's bytes take, less the codec and the keys: 7.83 GB in q8_0, 15.6 - 0.8 in f16.
        (RTX_4090, "q8_0", 7.77),
        (RTX_3060, "q8_0", 21.8),
        (RTX_4090, "f16", 14.7),
        (H200, "f16", 3.02),
    ],
)
def test_the_speed_is_a_share_of_the_bandwidth(
    machine: Machine, card: Card, quant: str, at_full_bandwidth: float
) -> None:
    fit = sums(seen(machine, card))[quant]
    assert fit.rtf is not None
    assert fit.rtf_expected is not None
    best, worst = fit.rtf
    assert best * 46.44 * 0.50 == pytest.approx(at_full_bandwidth, rel=0.1)
    assert worst * 46.44 * 0.34 == pytest.approx(at_full_bandwidth, rel=0.1)
    assert worst * 0.34 > at_full_bandwidth / 46.44  # with the codec
    assert fit.rtf_expected * 0.42 == pytest.approx(best * 0.50, rel=0.001)


def test_no_card_is_quicker_than_its_kernels_start(machine: Machine) -> None:
    rtf = sums(seen(machine, replace(H200, clock=320100)))["q2_k"].rtf
    assert rtf is not None
    assert rtf[0] == pytest.approx(1.7 / 46.44, rel=0.01)
    assert rtf[1] == pytest.approx(2.8 / 46.44, rel=0.01)


# What else decides


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({}, "q6_k"),
        ({"slots": 1}, "q6_k"),
        ({"slots": 4}, "q5_k_m"),
        ({"slots": 5}, "q4_k_m"),
        ({"slots": 6}, "q2_k"),
        ({"context": 32768}, "q2_k"),
        ({"context": 16384, "slots": 1}, "q5_k_m"),  # 3555 + 118 + 84 + 512 + 812 + 2348 of 7802
        ({"context": 256, "voice_cache_mb": 0, "slots": 40}, "q5_k_m"),  # 3555 + 94 + 84 + 812 + 40 * 80
        ({"voice_cache_mb": 4000}, "q2_k"),
        ({"backend": "cpu"}, "q4_k_m"),
    ],
)
def test_the_settings_decide_with_the_card(machine: Machine, settings: dict[str, Any], chosen: str) -> None:
    choice = choose_quant(configuration.load(**settings), seen(machine, RTX_3060_TI))
    assert choice.quant == chosen
    assert chosen in choice.reason


def test_a_card_that_is_too_slow_takes_the_quickest_that_sounds_well(machine: Machine) -> None:
    choice = choose_quant(configuration.load(), seen(machine, replace(RTX_3060, clock=4000)))
    assert choice.reason.startswith(
        "q4_k_m: the quickest that sounds well and that fits GPU 0 (NVIDIA GeForce RTX 3060)"
    )


def test_an_unknown_card_takes_the_best_that_fits() -> None:
    choice = choose_quant(configuration.load(), replace(HOME, gpus=(UNKNOWN,)))
    assert choice.reason.startswith(
        "f16: the best that fits GPU 0 (NVIDIA Unheard Of), with 8 slots in 14983 of 23552 MB"
    )
    assert choice.reason.endswith("; RTF unknown is to be expected")


def test_every_gpu_that_is_set_must_have_room(machine: Machine) -> None:
    both = seen(machine, RTX_4090, RTX_2060)
    chosen = {devices: choose_quant(configuration.load(gpu_device=devices), both) for devices in ("0", "1", "0,1", "7")}
    assert {devices: choice.quant for devices, choice in chosen.items()} == {
        "0": "f16", "1": "q4_k_m", "0,1": "q4_k_m", "7": "q4_k_m",
    }  # fmt: skip
    assert "GPU 1 (NVIDIA GeForce RTX 2060)" in chosen["0,1"].reason


def test_a_gpu_without_memory_of_its_own_has_the_machine_s(machine: Machine) -> None:
    hardware = seen(machine, Card("NVIDIA GB10", 0, 0, None, None))
    fit = sums(hardware)["q8_0"]
    assert fit.place.free_bytes == HOME.ram_free_bytes
    assert fit.place.name == "GPU 0 (NVIDIA GB10)"


@pytest.mark.parametrize(
    ("backend", "ggml", "place"),
    [
        ("auto", None, "GPU 0"),
        ("auto", {"base", "cpu"}, "the processor"),
        ("auto", {"base", "cpu", "cuda"}, "GPU 0"),
        ("auto", {"base", "cpu", "vulkan"}, "the processor"),
        ("vulkan", {"base", "cpu", "vulkan"}, "the processor"),
        ("cuda", {"base", "cpu"}, "GPU 0"),
        ("cpu", {"base", "cpu", "cuda"}, "the processor"),
    ],
)
def test_where_it_computes(machine: Machine, backend: str, ggml: set[str] | None, place: str) -> None:
    hardware = replace(seen(machine, RTX_4090), ggml=None if ggml is None else frozenset(ggml))
    assert sums(hardware, backend=backend)["q8_0"].place.name.startswith(place)


def test_layers_on_the_processor_take_its_memory(machine: Machine) -> None:
    card = seen(machine, RTX_2060)
    whole, half, none = (sums(card, n_gpu_layers=n)["q8_0"] for n in (36, 18, 0))
    assert (whole.slots, whole.below, whole.needs) == (0, None, sums(card)["q8_0"].needs)
    assert half.below is not None
    assert half.slots == 5
    assert half.needs.positions * 2 == half.below.positions * 2 == whole.needs.positions
    # The tables that embed a frame's codes lie on neither device.
    assert 0 < whole.needs.weights - half.needs.weights - half.below.weights < 120 * MIB
    assert (half.rtf, half.speed) == (None, "slowed by the processor")
    assert none.needs.positions == 0
    assert choose_quant(configuration.load(n_gpu_layers=18), card).quant == "q4_k_m"
    little = replace(card, ram_free_bytes=2000 * MIB)
    assert sums(little, n_gpu_layers=18)["q8_0"].slots == 0
    assert "MB for the layers on the processor, and 2000 MB are free" in sums(little, n_gpu_layers=18)["q8_0"].shortage


# What is there


def test_what_is_there_is_not_fetched_in_another_quality(machine: Machine) -> None:
    card = seen(machine, RTX_3060_TI)
    there = replace(card, missing_bytes={**card.missing_bytes, "q5_k_m": 0})
    assert choose_quant(configuration.load(), card).quant == "q6_k"
    assert choose_quant(configuration.load(), there).quant == "q5_k_m"
    none = replace(there, gpus=(replace(card.gpus[0], free_bytes=2000 * MIB),))
    choice = choose_quant(configuration.load(), none)
    assert (choice.quant, choice.fits) == ("q5_k_m", False)
    assert "this is the smallest that is there" in choice.reason


# Without a GPU


@pytest.mark.parametrize(
    ("ram_mb", "chosen"),
    [(64000, "q4_k_m"), (5730, "q4_k_m"), (5700, "q4_k_m"), (5090, "q2_k"), (4600, "q3_k"), (4300, "q2_k")],
)
def test_a_processor_takes_the_quickest_that_sounds_well(ram_mb: int, chosen: str) -> None:
    """With little memory one slot, before weights of less than four bits; with less than that two slots of those, then
    one."""
    choice = choose_quant(configuration.load(), replace(HOME, ram_free_bytes=ram_mb * MIB))
    assert (choice.quant, choice.fits) == (chosen, True)
    assert "the processor" in choice.reason
    assert choice.reason.endswith("RTF well above 1 is to be expected")


def test_a_processor_writes_the_scores_of_attention(machine: Machine) -> None:
    on_gpu, on_cpu = (sums(seen(machine, H200), backend=name)["q8_0"].needs for name in ("auto", "cpu"))
    assert on_cpu.graphs - on_gpu.graphs == 512 * 32 * 4352 * 4


# The disk


def test_a_file_that_has_no_room_is_not_taken(machine: Machine) -> None:
    full = replace(seen(machine, RTX_4090), disk_free_bytes=5_000_000_000)
    assert choose_quant(configuration.load(), full).quant == "q6_k"
    there = replace(full, missing_bytes={**PUBLISHED_BYTES, "q8_0": 0})
    assert choose_quant(configuration.load(), there).quant == "q8_0"
    begun = replace(full, missing_bytes={**PUBLISHED_BYTES, "f16": 4_900_000_000})
    assert choose_quant(configuration.load(), begun).quant == "f16"
    unknown = replace(full, disk_free_bytes=None)
    assert choose_quant(configuration.load(), unknown).quant == "f16"


def test_without_downloads_only_what_is_there_is_taken(machine: Machine) -> None:
    card = seen(machine, RTX_4090)
    offline = configuration.load(skip_downloads=True)
    assert choose_quant(offline, replace(card, missing_bytes={**PUBLISHED_BYTES, "q5_k_m": 0})).quant == "q5_k_m"
    assert choose_quant(offline, card).quant == "f16"  # to be put there by hand
    too_large = replace(seen(machine, RTX_2060), missing_bytes={**PUBLISHED_BYTES, "f16": 0})
    choice = choose_quant(offline, too_large)
    assert (choice.quant, choice.fits) == ("q2_k", False)
    assert choice.reason.endswith("it is not there, and FISHS2_SKIP_DOWNLOADS forbids to fetch it")


# Where nothing fits


def test_a_card_that_is_too_small_is_told_with_the_sums(machine: Machine) -> None:
    choice = choose_quant(configuration.load(), seen(machine, replace(RTX_2060, free=2000)))
    assert (choice.quant, choice.fits) == ("q2_k", False)
    assert choice.reason == (
        "q2_k: nothing fits, and this is the smallest: 1 slot would take 4480 MB on GPU 0 (NVIDIA GeForce RTX 2060), "
        "and 2000 MB are free"
    )


def test_a_disk_that_is_too_small_is_told_with_the_sums(machine: Machine) -> None:
    choice = choose_quant(configuration.load(), replace(seen(machine, RTX_4090), disk_free_bytes=1000 * MIB))
    assert (choice.quant, choice.fits) == ("q2_k", False)
    assert choice.reason.endswith("2479 MB more are needed on the disk, and 1000 MB are free at models")


def test_a_machine_that_tells_nothing() -> None:
    choice = choose_quant(configuration.load(), Hardware())
    assert (choice.quant, choice.fits) == ("q2_k", False)
    assert "on the processor, and 0 MB are free" in choice.reason


# As text


def table(hardware: Hardware, **settings: Any) -> list[str]:
    loaded = configuration.load(**settings)
    return lines(fits(loaded, hardware), choose_quant(loaded, hardware), loaded)


def test_the_table_shows_the_sums(machine: Machine) -> None:
    there = replace(seen(machine, RTX_3060_TI), missing_bytes={**PUBLISHED_BYTES, "q8_0": 0})
    told = table(there)
    rows = {line.split()[0]: " ".join(line.split()) for line in told}
    assert told[0] == "S2 Pro on GPU 0 (NVIDIA GeForce RTX 3060 Ti), slots of 4096 positions; MB of memory:"
    assert rows["file"] == "file on disk weights graphs codec voices reserve slots x each needed free"
    assert rows["f16"] == "f16 9.90 GB 8508 106 84 512 812 1 x 620 10643 7802 does not fit"
    assert rows["q8_0"] == "q8_0 5.63 GB 4777 106 84 512 812 2 x 620 7531 7802 RTF 0.82-1.20, is there"
    assert rows["q6_k"] == "q6_k 4.50 GB 3962 106 84 512 812 3 x 620 7337 7802 RTF 0.65-0.95, recommended"
    assert "at 34% to 50% of the memory's 448 GB/s, which engines for this model reach." in told
    assert told[-1] == "Measure it with: fishs2-daemon bench --synthetic s2-pro --quant q6_k"
    assert max(map(len, told)) <= 120


def test_the_table_of_a_processor_promises_nothing() -> None:
    told = table(HOME)
    assert told[0] == "S2 Pro on the processor, slots of 4096 positions; MB of memory:"
    assert "RTF is computing time over sounding time: a processor is for trying, not for real time." in told
    assert sum("RTF well above 1" in line for line in told) == 7


def test_the_table_says_what_is_not_known_or_not_possible(machine: Machine) -> None:
    assert "The bandwidth of its memory is not known, and so the speed is not." in table(replace(HOME, gpus=(UNKNOWN,)))
    full = table(replace(seen(machine, RTX_2060), disk_free_bytes=0), n_gpu_layers=30)
    assert sum("no room on the disk" in line for line in full) == 7
    assert not any("recommended" in line for line in full)
    assert "FISHS2_N_GPU_LAYERS=30: the processor does the first 6 layers," in full
    assert not any("bandwidth" in line or "GB/s" in line for line in full)


# The GPU that was asked for


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"backend": "cuda", "engine": "s2"}, True),
        ({"backend": "cuda", "engine": "s2cpp"}, True),
        ({"backend": "cuda", "engine": "espeak"}, False),
        ({"backend": "cuda", "engine": "remote"}, False),
        ({"backend": "cuda", "engine": "auto"}, False),  # the preview voice speaks
        ({"backend": "cuda", "engine": "auto", "model_quant": "q6_k"}, True),  # its file will be fetched
        ({"backend": "cuda", "engine": "s2", "skip_gpu_check": True}, False),
        ({"backend": "auto", "engine": "s2"}, False),
        ({"backend": "cpu", "engine": "s2"}, False),
        ({"backend": "auto", "engine": "s2", "gpu_device": "7"}, False),
    ],
)
def test_a_gpu_that_was_asked_for_must_be_there(settings: dict[str, Any], needed: bool) -> None:
    loaded = configuration.load(**settings)
    assert needs_gpu(loaded) is needed
    if not needed:
        require_gpu(loaded, HOME)
        return
    with pytest.raises(ConfigError) as caught:
        require_gpu(loaded, HOME)
    for words in ("FISHS2_BACKEND", "no NVIDIA GPU", "Install NVIDIA's driver", "auto or cpu", "FISHS2_SKIP_GPU_CHECK"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_number_that_no_gpu_has(machine: Machine) -> None:
    both = seen(machine, RTX_4090, RTX_2060)
    require_gpu(configuration.load(backend="cuda", engine="s2", gpu_device="1,0"), both)
    with pytest.raises(ConfigError, match=r"FISHS2_GPU_DEVICE: 2, 5 is not allowed; allowed: 0, 1 \(NVIDIA GeForce"):
        require_gpu(configuration.load(backend="cuda", engine="s2", gpu_device="0,2,5"), both)


# Where it may run


def test_the_daemon_can_plan_without_the_engine_s_libraries() -> None:
    hide = ("numpy", "cffi", "_cffi_backend", "ggml", "tokenizers", "pynvml", "huggingface_hub")
    program = (
        "import sys\n"
        f"for name in {hide}: sys.modules[name] = None\n"
        "from fishs2_daemon import configuration\n"
        "from fishs2_daemon.hardware import Hardware\n"
        "from fishs2_daemon.sizing import check, choice, table\n"
        "print(choice.choose_quant(configuration.load(), Hardware(ram_free_bytes=1 << 34)).quant)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "q4_k_m\n"


def test_a_slice_of_a_gpu_is_one_and_what_hides_them_all_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = configuration.load(engine="s2", backend="cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    require_gpu(settings, Hardware())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=-1 may hide it"):
        require_gpu(settings, Hardware())
