"""Where the files lie and come from."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon import configuration
from fishs2_daemon.artifacts.artifact import PUBLISHED_BYTES, Artifact, ModelFiles, locate, model, tokenizer
from fishs2_daemon.errors import ConfigError
from fishs2_daemon.settings import Settings

ADDRESS = "https://files.example/s2.gguf"


def test_the_names_are_the_published_ones() -> None:
    settings = configuration.load()
    for quant in PUBLISHED_BYTES:
        artifact = model(settings, quant)
        assert (artifact.path, artifact.file) == (Path(f"models/s2-pro-{quant}.gguf"), f"s2-pro-{quant}.gguf")
        assert (artifact.repository, artifact.url) == ("rodrigomt/s2-pro-gguf", "")
    assert model(settings).path == Path("models/s2-pro-q8_0.gguf")
    assert tokenizer(settings).path == Path("models/tokenizer.json")
    assert configuration.load(model_quant="Q6_K").model_quant == "q6_k"
    assert model(configuration.load(model_quant="q6_k")).file == "s2-pro-q6_k.gguf"


def test_a_path_an_address_and_a_hash_belong_to_the_file_that_is_set() -> None:
    settings = configuration.load(
        model_path="elsewhere/m.gguf", model_quant="q6_k", model_url=ADDRESS, model_sha256="AB" * 32,
        hf_repo_id="me/mine",
    )  # fmt: skip
    own = model(settings)
    assert (own.path, own.url, own.sha256) == (Path("elsewhere/m.gguf"), ADDRESS, "ab" * 32)
    other = model(settings, "q2_k")
    assert (other.path, other.url, other.sha256) == (Path("models/s2-pro-q2_k.gguf"), "", "")
    assert own.repository == other.repository == "me/mine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hf_repo_id", "no slash"), ("hf_repo_id", "a/b/c"), ("model_url", "ftp://x/y"), ("model_sha256", "abc"),
        ("tokenizer_url", "file:///etc/passwd"), ("tokenizer_sha256", "g" * 64), ("accept_license", "perhaps"),
    ],
)  # fmt: skip
def test_a_wrong_source_is_refused_in_one_line(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^FISHS2_{name.upper()}(?: \(--[\w-]+\))?: .* is not allowed; allowed: "):
        configuration.load(**{name: value})


def test_a_blank_source_is_none() -> None:
    settings = configuration.load(model_url="", tokenizer_url=" ", model_sha256="", tokenizer_sha256="")
    assert (settings.model_url, settings.tokenizer_url, settings.model_sha256, settings.tokenizer_sha256) == (None,) * 4


def test_a_service_fetches_into_its_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", f"{tmp_path}/cache:{tmp_path}/other")
    cache = tmp_path / "cache" / "models"
    assert locate(configuration.load()) == ModelFiles(cache / "s2-pro-q8_0.gguf", cache / "tokenizer.json")
    assert locate(configuration.load(models_dir="mine")).model == Path("mine/s2-pro-q8_0.gguf")
    assert locate(configuration.load(tokenizer_path="t.json")).tokenizer == Path("t.json")
    Path("models").mkdir()
    Path("models/s2-pro-q8_0.gguf").touch()  # somebody put it there by hand
    assert locate(configuration.load()) == ModelFiles(Path("models/s2-pro-q8_0.gguf"), cache / "tokenizer.json")


@given(st.text(), st.text(), st.integers())
def test_an_artifact_goes_through_json(file: str, url: str, size: int) -> None:
    artifact = Artifact(Path("models", "x"), file, "a/b", url, "", size)
    assert Artifact.from_json(artifact.to_json()) == artifact


def test_every_quantisation_has_a_size() -> None:
    from typing import get_args

    assert ("auto", *PUBLISHED_BYTES) == get_args(Settings.model_fields["model_quant"].annotation)


def test_a_tokenizer_beside_a_model_that_was_named_is_taken(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    model = tmp_path / "mine" / "tiny.gguf"
    assert configuration.load(model_path=model).tokenizer_path == Path("models/tokenizer.json")
    (tmp_path / "mine" / "tokenizer.json").touch()
    assert configuration.load(model_path=model).tokenizer_path == tmp_path / "mine" / "tokenizer.json"
    named = configuration.load(model_path=model, tokenizer_path=tmp_path / "other.json")
    assert named.tokenizer_path == tmp_path / "other.json"
