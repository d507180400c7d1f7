"""A compute device: the processor, or one GPU."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from fishs2_daemon.engines.s2.ggml.library import Library, library
from fishs2_daemon.errors import EngineError

#: The GPU that a thread has chosen.
_chosen = threading.local()


@dataclass(frozen=True, slots=True)
class Memory:
    free_bytes: int
    total_bytes: int


class Event:
    """A point in a backend's stream of work that can be waited for while more is started behind it.

    Where the device has none of its own (the processor, which has finished whatever was started), waiting is nothing.
    """

    def __init__(self, backend: "Backend", device: Any) -> None:
        """Use `Backend.event`."""
        native = backend.native
        self._backend = backend
        self._may_run_on = backend.device != "cpu"
        pointer = native.ggml_backend_event_new(device)
        self._pointer = native.ffi.gc(pointer, native.ggml_backend_event_free) if pointer != native.ffi.NULL else None

    def record(self) -> None:
        """Now: behind all that was started so far."""
        if self._pointer is not None:
            self._backend.native.ggml_backend_event_record(self._pointer, self._backend.pointer)

    def wait(self) -> None:
        if self._pointer is not None:
            self._backend.native.ggml_backend_event_synchronize(self._pointer)
        elif self._may_run_on:
            self._backend.synchronize()

    def close(self) -> None:
        """May be called twice."""
        if self._pointer is not None:
            self._backend.native.ffi.release(self._pointer)
            self._pointer = None


class Backend:
    """One stream of work on a device; graphs that are to overlap need a backend each.

    Not safe for several threads at once. Stores and graphs made on it must be closed first.
    """

    def __init__(self, native: Library, pointer: Any, device: str, threads: int) -> None:
        """Use `Backend.open`."""
        self.native = native
        #: "cpu", "cuda:0", ...
        self.device = device
        #: Threads that compute; 0 where the device is no processor.
        self.threads = threads
        self._pointer = native.ffi.gc(pointer, native.ggml_backend_free)
        self._device = native.ggml_backend_get_device(pointer)
        self.buffer_type = native.ggml_backend_get_default_buffer_type(pointer)
        self.closed = False

    @classmethod
    def open(cls, name: str = "auto", *, threads: int | None = None) -> "Backend":
        """Open "cpu", "cuda", "cuda:N", or with "auto" or "auto:N" that GPU, and the processor where there is none.

        `threads` counts for the processor only; None takes `default_threads()`.
        Raises `EngineError` when the device does not exist or ggml is not installed.
        """
        native = library()
        kind, _, number = name.partition(":")
        if kind == "auto" and (not number or number.isdecimal()):
            return cls.open(f"cuda:{number or 0}" if _gpu_count(native) else "cpu", threads=threads)
        if kind == "cuda" and (not number or number.isdecimal()):
            return cls._open_cuda(native, int(number or 0))
        if name != "cpu":
            raise EngineError(f"there is no backend {name!r}: use auto, cpu, cuda or cuda:N")
        if threads is not None and not 1 <= threads <= 512:
            raise EngineError(f"the processor backend takes 1 to 512 threads, not {threads}")
        pointer = native.ggml_backend_cpu_init()
        if pointer == native.ffi.NULL:
            raise EngineError("ggml cannot start its processor backend")
        threads = threads or default_threads()
        native.ggml_backend_cpu_set_n_threads(pointer, threads)
        return cls(native, pointer, "cpu", threads)

    @classmethod
    def _open_cuda(cls, native: Library, index: int) -> "Backend":
        if native.cuda_reason:
            raise EngineError(f"CUDA cannot be used: {native.cuda_reason}")
        count = _gpu_count(native)
        if index >= count:
            raise EngineError(f"there is no GPU cuda:{index}: ggml finds {count} of them")
        pointer = native.ggml_backend_cuda_init(index)
        if pointer == native.ffi.NULL:
            raise EngineError(f"ggml cannot start its backend on cuda:{index}")
        return cls(native, pointer, f"cuda:{index}", 0)

    @property
    def pointer(self) -> Any:
        if self.closed:
            raise EngineError(f"the backend {self.device} is closed")
        return self._pointer

    @property
    def description(self) -> str:
        """The device as its maker names it."""
        text = self.native.ffi.string(self.native.ggml_backend_dev_description(self._device))
        return bytes(text).decode(errors="replace").strip()

    @property
    def summary(self) -> str:
        """What computes, in a few words."""
        return f"{self.description}, {self.threads} threads" if self.threads else self.description

    @property
    def is_slow_build(self) -> bool:
        """Whether the processor's kernels for many columns at once were left out of this build of ggml (its vendored
        default): Q8_0 takes twice as long for a prompt, and 1.4 times for a batch of eight."""
        return self.device == "cpu" and not self.native.ggml_cpu_has_llamafile()

    def memory(self) -> Memory:
        """The memory of the device. Of a processor ggml reports all of it as free."""
        free, total = self.native.ffi.new("size_t *"), self.native.ffi.new("size_t *")
        self.native.ggml_backend_dev_memory(self._device, free, total)
        return Memory(int(free[0]), int(total[0]))

    def event(self) -> Event:
        """To be closed before the backend."""
        return Event(self, self._device)

    def enter(self) -> None:
        """Before a call that means the GPU that its thread has chosen: a thread that has chosen none would wake the
        first one, and take memory there."""
        if self.threads == 0 and getattr(_chosen, "device", "") != self.device:
            self.memory()  # in there ggml chooses
            _chosen.device = self.device

    def synchronize(self) -> None:
        """Wait until everything that was started on this backend is done."""
        self.enter()
        self.native.ggml_backend_synchronize(self.pointer)

    def close(self) -> None:
        """Give the device back. May be called twice."""
        if not self.closed:
            self.closed = True
            self.native.ffi.release(self._pointer)

    def __enter__(self) -> "Backend":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def default_threads() -> int:
    """Physical cores that this process may use, less one for the rest of the daemon; at least 1."""
    allowed = os.sched_getaffinity(0)
    cores = {_core(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota()) - 1)


def _core(cpu: int) -> tuple[str, str]:
    """Two hardware threads of one core have the same value."""
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        return (topology / "physical_package_id").read_text().strip(), (topology / "core_id").read_text().strip()
    except OSError:
        return "", str(cpu)


def _quota() -> int:
    """Processors that a container's quota (cgroup v2) amounts to: more threads than that wait for each other."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return len(os.sched_getaffinity(0))


def _gpu_count(native: Library) -> int:
    return 0 if native.cuda_reason else int(native.ggml_backend_cuda_get_device_count())
