"""What this machine has for a model: GPUs, memory, room on the disk, the libraries that compute."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fishs2_daemon import ram
from fishs2_daemon.artifacts import standing
from fishs2_daemon.artifacts.artifact import PUBLISHED_BYTES, Artifact, model
from fishs2_daemon.artifacts.errors import ArtifactError
from fishs2_daemon.artifacts.standing import State
from fishs2_daemon.nvidia import Gpu, gpus
from fishs2_daemon.settings import Settings


@dataclass(frozen=True, slots=True)
class Hardware:
    """`ram_free_bytes` is what can be had without swapping. `disk_free_bytes` is at the models' folder, None where that
    cannot be known; `missing_bytes` is what of each published file is still to be fetched. `ggml` names the backends of
    the ggml that is installed, None where there is none."""

    gpus: tuple[Gpu, ...] = ()
    ram_bytes: int = 0
    ram_free_bytes: int = 0
    models_dir: Path = Path("models")
    disk_free_bytes: int | None = None
    missing_bytes: Mapping[str, int] = field(default_factory=lambda: dict(PUBLISHED_BYTES))
    ggml: frozenset[str] | None = None

    def free_bytes(self, gpu: Gpu) -> int:
        """On a GPU without memory of its own, the machine's."""
        return self.ram_free_bytes if gpu.free_bytes is None else gpu.free_bytes


def look(settings: Settings) -> Hardware:
    """Takes a second where there is a GPU, up to half a minute where its driver hangs."""
    total, artifacts = ram.total_bytes(), {quant: model(settings, quant) for quant in PUBLISHED_BYTES}
    available = ram.available_bytes()
    folder = next(iter(artifacts.values())).path.parent
    return Hardware(
        gpus=tuple(gpus()),
        ram_bytes=total,
        ram_free_bytes=total if available is None else available,
        models_dir=folder,
        disk_free_bytes=_free(folder),
        missing_bytes={quant: _missing(artifact) for quant, artifact in artifacts.items()},
        ggml=_ggml(),
    )


def _free(folder: Path) -> int | None:
    folder = folder.absolute()
    there = next((path for path in (folder, *folder.parents) if os.path.isdir(path)), None)
    try:
        return shutil.disk_usage(there).free if there else None
    except OSError:
        return None


def _missing(artifact: Artifact) -> int:
    try:
        seen = standing.look(artifact.path)
    except ArtifactError:
        return artifact.published_bytes
    if seen.state in (State.ABSENT, State.PARTIAL):
        return max(0, artifact.published_bytes - seen.size)
    return 0


def _ggml() -> frozenset[str] | None:
    """By the names of its libraries, of which none is loaded here."""
    spec = importlib.util.find_spec("ggml")
    if spec is None or spec.origin is None:
        return None
    libraries = Path(spec.origin).parent.glob("lib/libggml-*.so")
    return frozenset(path.stem.removeprefix("libggml-") for path in libraries)
