"""From the settings to a pipeline, on each generation of the interface."""

import re
from pathlib import Path

import pytest

from fishs2_daemon.engines.base import EngineOptions
from fishs2_daemon.engines.s2cpp.engine import S2CppEngine
from fishs2_daemon.errors import EngineError
from fishs2_daemon.speech import EngineInfo
from tests.engines.s2cpp.standin import Install, StandIn, loaded, said, sound


async def test_it_says_what_it_is(standin: StandIn) -> None:
    engine = S2CppEngine(EngineOptions(**standin.settings, backend="cuda", gpu_device=2))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="not loaded"):
        engine.info()
    told: list[str] = []
    info = await engine.load(lambda what, fraction: told.append(what))
    assert told == ["loading libs2 and the model"]
    assert info == engine.info()
    assert isinstance(info, EngineInfo)
    assert (info.name, info.sample_rate, info.slots, info.default_voice) == ("s2cpp", 44100, 1, "default")
    assert (info.clones, info.device) == (True, "cuda:2 (s2.cpp)")
    assert [voice.id for voice in info.voices] == ["default"]
    await engine.close()
    await engine.close()


@pytest.mark.parametrize(("backend", "stride", "codec"), [("cuda", 4, 1), ("cpu", 16, 0)])
async def test_the_gpu_s_arguments_and_the_stream_s(standin: StandIn, backend: str, stride: int, codec: int) -> None:
    async with loaded(standin, backend=backend, gpu_device=1, n_gpu_layers=12) as engine:
        await said(engine, "Hi.")
    place = "gpu 1 backend 1 layers 12" if codec else "gpu -1 backend -1 layers -1"
    files = f"{standin.folder}/tiny.gguf {standin.folder}/tokenizer.json"
    assert standin.called("files") == [f"files {files} {place} codec {codec}"]
    assert standin.called("stride") == [
        f"stride {stride} holdback 0 context -1 low latency 0 segments 0 180 0 voice 0 0"
    ]


async def test_the_stride_where_there_is_nothing_else_to_set(install: Install) -> None:
    standin = install("-DNO_EX")
    async with loaded(standin, backend="vulkan") as engine:
        await said(engine, "Hi.")
    assert standin.called("stride") == ["stride 4"]


async def test_the_parts_of_the_older_interface_are_borrowed_and_given_back_in_order(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    standin = install("-DOLD_ABI")
    async with loaded(standin, backend="cuda", gpu_device=1, n_gpu_layers=12) as engine:
        await said(engine, "Hi.")
        model = f"{standin.folder}/tiny.gguf"
        assert standin.calls[:5] == [
            f"model {model} gpu 1 backend 1",
            f"tokenizer {standin.folder}/tokenizer.json",
            "sync 1 1",
            f"codec {model} gpu 1 backend 1",
            "pipeline of parts",
        ]
    released = [call.split()[1].rstrip(",") for call in standin.called("release")]
    assert released[-4:] == ["pipeline", "model", "codec", "tokenizer"]
    assert "FISHS2_N_GPU_LAYERS has no effect" in caplog.text
    assert "this libs2 does not stream" in caplog.text


async def test_a_codec_that_shares_the_model_s_file_is_preferred(install: Install) -> None:
    standin = install("-DNO_FROM_FILES")
    async with loaded(standin, backend="vulkan", n_gpu_layers=7):
        model = f"{standin.folder}/tiny.gguf gpu 0 backend 0"
        assert standin.called("model") == [f"model {model} layers 7"]
        assert standin.called("shared codec") == [f"shared codec {model}"]
        assert not standin.called("codec")


async def test_auto_goes_on_to_the_next_device(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_REFUSES", "1")
    (standin.folder / "libggml-cuda.so").write_bytes(standin.library.read_bytes())
    async with loaded(standin, backend="auto") as engine:
        assert engine.info().device == "cpu (s2.cpp)"
        assert [call.split(" gpu ")[1] for call in standin.called("files")] == [
            "0 backend 1 layers -1 codec 1",
            "-1 backend -1 layers -1 codec 0",
        ]
        assert await said(engine, "Hi.") == sound("Hi.")


async def refusal(standin: StandIn, **options: object) -> str:
    with pytest.raises(EngineError) as refused:
        async with loaded(standin, **options):
            pass
    return str(refused.value)


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("STANDIN_REFUSES", "1", "libs2 cannot load tiny.gguf.* on cuda:0 (0): the file may be broken"),
        ("STANDIN_NO_TOKENIZER", "1", "libs2 cannot load tokenizer.json on cuda:0"),
        ("STANDIN_NO_CODEC", "1", "libs2 cannot load the codec of tiny.gguf on cuda:0"),
        ("STANDIN_NO_PIPELINE", "1", "libs2 cannot load a pipeline of tiny.gguf on cuda:0"),
        ("STANDIN_NO_MEMORY", "codec", "libs2 has no memory left"),
        ("STANDIN_NO_MEMORY", "codes", "libs2 has no memory left"),
    ],
)
async def test_what_cannot_be_loaded_is_named_and_all_is_given_back(
    install: Install, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, error: str
) -> None:
    monkeypatch.setenv(variable, value)
    standin = install("-DOLD_ABI")
    assert re.search(error.replace("(0)", r"\(0\)"), await refusal(standin, backend="cuda"))
    assert standin.called("release")[-1].endswith(", 0 left")


async def test_a_pipeline_of_files_that_is_refused(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_REFUSES", "-1")
    assert (await refusal(standin)).startswith("libs2 cannot load tiny.gguf and tokenizer.json on cpu (0)")


async def test_files_that_would_end_the_process_never_reach_it(standin: StandIn, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    assert await refusal(standin, model_path=str(nothing)) == (
        f"FISHS2_MODEL_PATH={nothing}: cannot be read: No such file or directory"
    )
    assert (await refusal(standin, model_path=str(tmp_path))).endswith("cannot be read: Is a directory")
    nothing.write_bytes(b"GG")
    assert (await refusal(standin, model_path=str(nothing))).endswith("this is no GGUF file")
    assert (
        await refusal(standin, tokenizer_path=str(nothing)) == f"FISHS2_TOKENIZER_PATH={nothing}: this is no JSON file"
    )
    assert not standin.called("files")
