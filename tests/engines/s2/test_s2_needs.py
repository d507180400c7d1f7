"""Sums over S2 Pro's sizes, against what was published of its files and computed by others."""

from pathlib import Path

import pytest

from fishs2_daemon.artifacts.artifact import PUBLISHED_BYTES
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.gguf import GgufFile
from fishs2_daemon.engines.s2.gguf_writer import header, lay_out
from fishs2_daemon.engines.s2.memory import weights_of as weights_of_file
from fishs2_daemon.engines.s2.model_file import read_config
from fishs2_daemon.engines.s2.needs import Needs, frame_bytes, weights_of
from fishs2_daemon.engines.s2.quantisations import QUANTISATIONS, stored_tensors
from fishs2_daemon.engines.s2.tiny import metadata
from fishs2_daemon.engines.s2.tiny_geometry import S2_PRO

CONFIG = S2_PRO.config()
MB = 1 << 20


@pytest.mark.parametrize("quant", PUBLISHED_BYTES)
def test_a_plan_is_that_of_the_file(quant: str, tmp_path: Path) -> None:
    """Of a file that is all there but for its values: the disk keeps none of its gigabytes."""
    stored = list(stored_tensors(CONFIG, QUANTISATIONS[quant]))
    tensors = lay_out(stored)
    head = header(metadata(CONFIG, GgmlType.F16), tensors)
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + tensors[-1].offset + tensors[-1].nbytes)
    size = path.stat().st_size
    assert path.stat().st_blocks * 512 < MB
    assert abs(size - PUBLISHED_BYTES[quant]) < 0.015 * size
    types = {name: kind for name, _, kind in stored}
    with GgufFile.open(path) as gguf:
        config = read_config(gguf)
        for on_gpu in (False, True):
            assert weights_of_file(gguf, config, on_gpu=on_gpu) == weights_of(types, CONFIG, on_gpu=on_gpu)


def test_s2_pro_s_weights_are_those_that_were_loaded() -> None:
    """Measured on a processor with such a file: 2998.5 MB."""
    types = {name: kind for name, _, kind in stored_tensors(CONFIG, QUANTISATIONS["q4_k_m"])}
    assert weights_of(types, CONFIG, on_gpu=False) / MB == pytest.approx(2998.5, rel=0.003)


@pytest.mark.parametrize(
    ("quant", "gigabytes"),
    [
        # Slow layers once, fast ones and their head nine times, the head's rows: 7.83 GB at 8.5 bits a weight.
        ("q8_0", 7.83),
        # 3.633 billion of the slow layers, 9 times 0.414 billion of the fast ones, 11 million of the head.
        ("f16", 2 * (3.633 + 9 * 0.4145 + 0.0111)),
    ],
)
def test_a_frame_reads_what_its_layers_weigh(quant: str, gigabytes: float) -> None:
    types = {name: kind for name, _, kind in stored_tensors(CONFIG, QUANTISATIONS[quant])}
    keys = 147_456 * 1000
    read = frame_bytes(types, CONFIG) - keys
    codec = read - gigabytes * 1e9
    # 75 million values of its convolutions and more in F32, 109 million of its transformer in F16.
    assert 0.4e9 < codec < 0.65e9


def test_slots_are_those_that_have_room() -> None:
    needs = Needs(weights=1000, graphs=200, codec=100, voices=50, positions=60, stream=40)
    once = 1350 + (512 << 20)
    assert (needs.once, needs.slot, needs.of(3)) == (once, 100, once + 300)
    assert [needs.slots_in(once + room, 8) for room in (-1, 0, 99, 100, 250, 10_000)] == [0, 0, 0, 1, 2, 8]
    assert needs.slots_in(0, 8) == 0
