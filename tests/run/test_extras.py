"""Who needs which libraries: the extras that run.py installs for the engine that will speak."""

import pytest

from tests.run.project import Box


@pytest.mark.parametrize(
    ("arguments", "environment", "extras"),
    [
        ([], {}, "preview"),
        ([], {"FISHS2_ENGINE": "s2"}, "preview,s2"),
        ([], {"FISHS2_ENGINE": "espeak", "FISHS2_MODEL_QUANT": "q6_k"}, "preview"),
        ([], {"FISHS2_ENGINE": "remote", "FISHS2_BACKEND": "cuda"}, "preview,remote"),
        ([], {"FISHS2_ENGINE": "s2cpp", "FISHS2_BACKEND": "vulkan"}, "preview,s2cpp"),
        ([], {"FISHS2_MODEL_QUANT": "q6_k"}, "preview,s2"),
        ([], {"FISHS2_MODEL_QUANT": ""}, "preview"),
        ([], {"FISHS2_BACKEND": "cpu"}, "preview"),
        (["--model-quant", "auto"], {}, "preview,s2"),
        (["serve", "--model-q4"], {}, "preview,s2"),
        (["--engine", "s2"], {}, "preview,s2"),
        (["--engine=remote"], {"FISHS2_ENGINE": "s2"}, "preview,remote"),
        (["models", "list"], {"FISHS2_ENGINE": "s2cpp"}, "preview,s2cpp"),
        (["bench", "--synthetic", "s2-pro"], {"FISHS2_ENGINE": "espeak"}, "preview,s2"),
        (["bench"], {}, "preview"),
    ],
)
def test_the_extras_of_the_engine_that_will_speak_are_installed(
    box: Box, arguments: list[str], environment: dict[str, str], extras: str
) -> None:
    assert box.call(*arguments, **environment).status == 0
    assert box.installations == [call for call in box.installations if call.endswith(f"--editable .[{extras}]")]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("export FISHS2_ENGINE = 's2'\n", True),
        ("fishs2_engine=S2\n", True),
        ("# FISHS2_ENGINE=s2\nFISHS2_MODEL_QUANT=\nFISHS2_MODEL_PATH= # none\n", False),
        ("FISHS2_ENGINE=s2\nFISHS2_ENGINE=espeak\n", False),
        ("FISHS2_MODEL_URL=http://127.0.0.1/model.gguf", True),
        ("\ufeffFISHS2_ENGINE=s2\n", True),
        ("FISHS2_ENGINE='s2' # not espeak\n", True),
        ("FISHS2_MODEL_QUANT=''\nFISHS2_MODEL_PATH=\"\"\n", False),
    ],
)
def test_the_env_file_counts(box: Box, text: str, wanted: bool) -> None:
    (box.root / ".env").write_text(text, encoding="utf-8")
    box.call()
    assert box.installations[0].endswith(".[preview,s2]" if wanted else ".[preview]")


def test_a_model_that_is_there_wants_its_engine(box: Box) -> None:
    (box.root / "models").mkdir()
    (box.root / "models/s2-pro-q6_k.gguf").touch()
    box.call()
    assert box.installations[0].endswith(".[preview,s2]")


@pytest.mark.parametrize("folder", ["elsewhere", "~"])
def test_a_model_that_is_where_it_is_kept_wants_its_engine(box: Box, folder: str) -> None:
    home = box.root / "home"
    for there in (box.root / "elsewhere", home):
        there.mkdir()
    told = {"FISHS2_MODELS_DIR": folder, "HOME": str(home)}
    box.call(**told)
    assert box.installations[0].endswith(".[preview]")
    ((home if folder == "~" else box.root / folder) / "mine.gguf").touch()
    box.call(**told)
    assert box.installations[-1].endswith(".[preview,s2]")


def test_without_a_compiler_the_preview_voice_is_all_there_is(box: Box) -> None:
    (box.tools / "g++").unlink()
    result = box.call(FISHS2_ENGINE="s2")
    assert result.status == 0
    assert "no C++ compiler" in result.err
    assert box.installations[0].endswith(".[preview]")
