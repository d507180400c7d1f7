"""Where the frame thread's time goes: the part that is the host's own, frame by frame."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from fishs2_daemon.engines.s2.generator import Generator
from fishs2_daemon.engines.s2.ggml import Backend, Event, Graph
from fishs2_daemon.engines.s2.runner import Runner

#: What computes, or waits for what does.
_COMPUTING = ((Graph, "start"), (Backend, "synchronize"), (Event, "wait"))


@contextmanager
def host_times() -> Iterator[list[float]]:
    """Seconds of each round of every `Runner`, and of each `Generator.step`, that started a frame and read no prompt,
    less those inside ggml. The list grows while the context lasts."""
    rounds: list[float] = []
    here = _Here()

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            before, began = here.computing_s, time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                # Not the sum: one of these may call another.
                here.computing_s = before + time.perf_counter() - began

        return run

    def counted(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                setattr(here, name, getattr(here, name) + 1)
                return call(*args, **kwargs)

            return run

        return wrap

    def rounded(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            here.computing_s, here.submitted, here.read = 0.0, 0, 0
            began = time.perf_counter()
            result = call(*args, **kwargs)
            if here.submitted and not here.read:
                rounds.append(time.perf_counter() - began - here.computing_s)
            return result

        return run

    with ExitStack() as stack:
        for owner, name in _COMPUTING:
            stack.enter_context(_replaced(owner, name, timed))
        stack.enter_context(_replaced(Generator, "submit", counted("submitted")))
        stack.enter_context(_replaced(Generator, "prefill", counted("read")))
        stack.enter_context(_replaced(Runner, "_round", rounded))
        stack.enter_context(_replaced(Generator, "step", rounded))
        yield rounds


@contextmanager
def _replaced(owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """A method with something around it, for all instances, while the context lasts."""
    original = getattr(owner, name)
    setattr(owner, name, wrap(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


class _Here(threading.local):
    """Of the thread that asks."""

    computing_s = 0.0
    submitted = 0
    read = 0
