"""The stage, in the ways that it is set."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from stage import GOLDEN, META, QUICK, SLOTS, Machine, Stage4

from fishs2_daemon.engines.s2 import vocoder as vocoder_module
from fishs2_daemon.engines.s2.codec import Decoder
from fishs2_daemon.engines.s2.generator import Generator
from fishs2_daemon.engines.s2.ggml import Backend
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.tiny import make_model


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codec") / "codec.gguf"
    make_model(path, QUICK, seed=5)
    return path


@pytest.fixture(scope="module")
def machine(backend: Backend, codec: Path) -> Iterator[Machine]:
    with (
        Backend.open("cpu", threads=1) as sound,
        Backend.open("cpu", threads=1) as other,
        Model.load(GOLDEN / "tiny-f32.gguf", backend, im_end=META["im_end"]) as model,
        Model.load(codec, sound) as codec_model,
        Decoder(codec_model, streams=SLOTS, together=True) as decoder,
        Decoder(codec_model, backend=other) as whole_decoder,
        closing(Generator(model, slots=SLOTS, context=1024, rope="f32", kv_type="f32")) as generator,
    ):
        yield Machine(generator, decoder, whole_decoder)


@pytest.fixture(scope="module")
def ending_machine(backend: Backend, ending: Path, machine: Machine) -> Iterator[Machine]:
    """One whose texts end by themselves."""
    with (
        Model.load(ending, backend, im_end=META["im_end"]) as model,
        closing(Generator(model, slots=SLOTS, context=1024, rope="f32", kv_type="f32")) as generator,
    ):
        yield Machine(generator, machine.decoder, machine.whole_decoder)


@pytest.fixture(params=[False, True], ids=["one by one", "run ahead"])
def stage(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Stage4]:
    with machine.running(run_ahead=request.param) as stage:
        yield stage


@pytest.fixture
def exact_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks carry floats: sixteen bits would hide small differences."""
    monkeypatch.setattr(vocoder_module, "_pcm16", lambda samples: samples.tobytes())
