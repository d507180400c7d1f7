"""Which engine speaks, and what is missing for the real one."""

import importlib.util
import os
from dataclasses import dataclass

from fishs2_daemon.settings import Settings


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """`missing` says what keeps `auto` from S2 Pro, and what to do about it; empty where nothing does."""

    name: str
    missing: str = ""


def choose_engine(settings: Settings) -> EngineChoice:
    """What is set; with `auto` S2 Pro where its files and libraries are there, else the preview voice."""
    if settings.engine != "auto":
        return EngineChoice(settings.engine)
    for path in (settings.model_path, settings.tokenizer_path):
        if not os.path.isfile(path):  # what may not be looked at is not there
            return EngineChoice("espeak", f"there is no {path}: run `fishs2-daemon models get`")
    if missing := [name for name in ("ggml", "numpy", "tokenizers") if importlib.util.find_spec(name) is None]:
        return EngineChoice("espeak", f"{', '.join(missing)} is missing: pip install 'fishs2-daemon[s2]'")
    return EngineChoice("s2")
