"""Whether ggml computes rightly on a backend: `python -m fishs2_daemon.engines.s2.proof BACKEND [DEVICE]`.

That is a child process, which loads native code and may die of it; `prove` starts one and says in words how it went. It
prints one JSON object: the fields of a `Proof`.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from dataclasses import asdict, dataclass, fields

from fishs2_daemon.errors import Fishs2Error

#: The child answers in one line; of its complaints the last words are looked at.
_READ_BYTES = 65536

_REASON_CHARS = 300

#: A killed process is gone in a moment, but for one that waits for a dead device.
_REAP_S = 1.0

#: Backends of which there may be several.
_NUMBERED = frozenset({"auto", "cuda"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """`reason` says what is wrong, and is empty where nothing is. What could not be found out has its default."""

    backend: str
    reason: str = ""
    #: As the engine names it: "cpu", "cuda:0", ...
    device: str = ""
    #: As its maker names it.
    device_name: str = ""
    free_bytes: int = 0
    total_bytes: int = 0
    ggml_version: str = ""
    #: What ggml was built with, such as AVX2, LLAMAFILE, USE_GRAPHS (CUDA's).
    features: tuple[str, ...] = ()
    #: Largest difference from numpy, as a share of the largest value.
    max_error: float = 0.0
    #: Why CUDA is out of the question; empty where it is not.
    no_cuda: str = ""

    @property
    def ok(self) -> bool:
        return not self.reason


async def prove(backend: str, device: int, timeout_s: float) -> Proof:
    """Compute on `backend` (a value of FISHS2_BACKEND) in a child process; `device` is the GPU's number.

    Never raises for what the child does: a crash, silence for `timeout_s`, or an answer that is none is a reason.
    """
    command = (sys.executable, "-m", "fishs2_daemon.engines.s2.proof", backend, str(device))
    try:
        # In a session of its own, so that whatever it started ends with it.
        child = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True
        )
    except OSError as error:
        return Proof(backend=backend, reason=f"the test cannot be started: {error}")
    status = None
    try:
        async with asyncio.timeout(timeout_s):
            said, complained = await _words(child)
            status = await child.wait()
    except TimeoutError:
        return Proof(backend=backend, reason=f"the test did not end within {timeout_s:g} s")
    finally:
        if status is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await _reap(child)
    return (_read(said) if status == 0 else None) or Proof(backend=backend, reason=_end(status, complained))


async def _words(child: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    said, complained = await asyncio.gather(_last(child.stdout), _last(child.stderr))
    return said, complained


async def _reap(child: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(_REAP_S):
            await _words(child)  # asyncio sees the end of a process when its pipes have been read to theirs
            await child.wait()
    except TimeoutError:
        child._transport.close()  # type: ignore[attr-defined]  # nothing public lets go of its pipes


async def _last(stream: asyncio.StreamReader | None) -> bytes:
    """The last of what comes until the end."""
    kept = b""
    while stream and (more := await stream.read(_READ_BYTES)):
        kept = (kept + more)[-_READ_BYTES:]
    return kept


def _read(answer: bytes) -> Proof | None:
    """None where it is no answer."""
    try:
        found = json.loads(answer)
        proof = Proof(**{**found, "features": tuple(found["features"])})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return proof if all(type(getattr(proof, field.name)) is type(field.default) for field in _DEFAULTED) else None


_DEFAULTED = [field for field in fields(Proof) if field.name != "backend"]


def _end(status: int, complained: bytes) -> str:
    words = complained.decode(errors="replace").strip().splitlines()
    last = f": {words[-1].strip()[:_REASON_CHARS]}" if words else ""
    if status == 0:
        return f"the test gave no answer{last}"
    if status > 0:
        return f"the test failed{last}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"the test was ended by {name}{last}"


def _compute(backend: str, device: int) -> Proof:
    """In this process, which a failed native assertion ends."""
    from fishs2_daemon.engines.s2.ggml import Backend
    from fishs2_daemon.engines.s2.ggml.library import VERSION
    from fishs2_daemon.engines.s2.proof_graph import TOLERANCE, features, largest_error

    try:
        with Backend.open(f"{backend}:{device}" if backend in _NUMBERED else backend) as opened:
            memory, built_with = opened.memory(), features(opened)
            error, where = largest_error(opened)
            return Proof(
                backend=backend,
                reason="" if error <= TOLERANCE else f"it computes wrongly: {where} is off by {error:.2g}",
                device=opened.device,
                device_name=opened.description,
                free_bytes=memory.free_bytes,
                total_bytes=memory.total_bytes,
                ggml_version=VERSION,
                features=built_with,
                max_error=error,
                no_cuda=opened.native.cuda_reason,
            )
    except Fishs2Error as failure:
        return Proof(backend=backend, reason=str(failure))


def main() -> int:
    # Native code writes where it likes: the answer alone goes to standard output.
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        try:
            backend, device = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
        except (IndexError, ValueError):
            print("usage: python -m fishs2_daemon.engines.s2.proof BACKEND [DEVICE]", file=sys.stderr)
            return 2
        answer.write(json.dumps(asdict(_compute(backend, device))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
