"""Children that fetch: forked from one process that has imported everything, at work after a few milliseconds."""

import multiprocessing
import os
import resource
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from huggingface_hub import get_session

from fishs2_daemon.artifacts.artifact import Artifact
from fishs2_daemon.artifacts.bundle import Bundle, install
from fishs2_daemon.artifacts.download import download
from fishs2_daemon.artifacts.errors import ArtifactError
from fishs2_daemon.artifacts.progress import Progress

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["fishs2_daemon.artifacts.transfer", "huggingface_hub.file_download", __name__])

get_session()  # reads the machine's certificates, which takes longer than all else


def fetching(artifact: Artifact) -> BaseProcess:
    """A started process. It ends with 0 when the file is whole."""
    child = _CONTEXT.Process(target=_fetch, args=(artifact, os.environ["HF_ENDPOINT"]))
    child.start()
    return child


def installing(bundle: Bundle, *, force: bool = False) -> BaseProcess:
    """A started process that unpacks slowly. It ends with 0 when the folder is whole."""
    child = _CONTEXT.Process(target=_install, args=(bundle, force))
    child.start()
    return child


def failing(artifact: Artifact, largest_file: int) -> tuple[str, str]:
    """Name and text of the error of a process that may write no file beyond so many bytes."""
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    child = _CONTEXT.Process(target=_fail, args=(artifact, os.environ["HF_ENDPOINT"], largest_file, theirs))
    child.start()
    theirs.close()
    with ours:
        answer: tuple[str, str] = ours.recv()
    child.join()
    return answer


def _fetch(artifact: Artifact, endpoint: str) -> None:
    os.environ["HF_ENDPOINT"] = endpoint  # the process that forks has an older environment
    download(artifact, lambda _: None, lambda: None)


def _install(bundle: Bundle, force: bool) -> None:
    def tell(progress: Progress) -> None:
        if progress.doing == "unpacking":
            time.sleep(0.001)

    install(bundle, tell, lambda: None, force=force)


def _fail(artifact: Artifact, endpoint: str, largest_file: int, port: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        _fetch(artifact, endpoint)
    except ArtifactError as error:
        port.send((type(error).__name__, str(error)))
