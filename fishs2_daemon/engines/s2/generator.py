"""Frames of several sequences at a time, each in a slot of its own."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.fast import FastAR
from fishs2_daemon.engines.s2.frame import PARITIES, FrameGraph, FrameState
from fishs2_daemon.engines.s2.ggml import DType, Event
from fishs2_daemon.engines.s2.kv import Snapshot
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.noise import Noise
from fishs2_daemon.engines.s2.rope import RopeKind
from fishs2_daemon.engines.s2.sampling import Rules, Sampler, Sampling
from fishs2_daemon.engines.s2.sizes import PREFILL_TOKENS, RUNS_TO_CAPTURE
from fishs2_daemon.engines.s2.slow import SlowAR, SlowTrace
from fishs2_daemon.errors import EngineError

#: Why a sequence has no more frames: the model said so, or there is no room for another.
Finish = Literal["stop", "length"]

#: Seeds are reduced to this many bits; numpy takes no negative ones.
_SEED_MASK = (1 << 64) - 1

KV_TYPES = {"f16": DType.F16, "f32": DType.F32}


@dataclass(slots=True)
class _Sequence:
    """`position` is that of the next input: at first the prompt's last column, which is computed a second time, as its
    hidden state is where the first frame comes from."""

    prompt: int
    position: int
    column: npt.NDArray[np.integer]  # [1 + K, 1]; kept up where the device does not do it
    max_frames: int | None
    min_frames: int
    rules: Rules
    noise: Noise
    started: int = 0
    finish: Finish | None = None


@dataclass(slots=True)
class _Flight:
    """Frames that were started and not collected yet."""

    sequences: dict[int, _Sequence]  # by slot
    parity: int
    done: Event


class Generator:
    """Slots are prefilled, started, then stepped; a slot may be prefilled anew at any time.

    `step` is `submit` and `collect`; on a GPU the next frame may be submitted before the last one is collected, so
    that it never waits for the host, unless the first layers are elsewhere. Not for several threads at once. The same
    seed gives the same noise, whatever else is in the batch; kernels depend on the batch's size, so that a near tie
    may end differently.
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int = 1,
        context: int = 4096,
        rope: RopeKind = "bf16",
        kv_type: Literal["f16", "f32"] = "f16",
        lower: Model | None = None,
    ) -> None:
        """`context` is at most the model's; `lower` holds the slow transformer's first layers where `model` does not:
        see `lower_skips` and `upper_skips`. Raises `EngineError` when the device has not enough memory."""
        if model.im_end is None:
            raise EngineError("the model was loaded without its transformers")
        self.slots, self._model = slots, model
        config, kv = model.config.slow, KV_TYPES[kv_type]
        self.context = min(context, config.context)
        self.slow = SlowAR(model, slots=slots, context=self.context, rope=rope, kv_type=kv, lower=lower)
        self.fast = FastAR(model, slots=slots, rope=rope, kv_type=kv)
        self._state = FrameState(model, slots)
        tokens, codes = (
            Sampler(model, n, slots=slots, chunked=model.backend.device != "cpu")
            for n in (config.codebook_size + 1, config.codebook_size)
        )
        self._frame = FrameGraph(model, self.slow, self.fast, tokens, codes, self._state)
        self._prompts: dict[int, tuple[int, npt.NDArray[np.integer]]] = {}
        self._sequences: dict[int, _Sequence] = {}
        self._flights: deque[_Flight] = deque()
        self._events = [model.backend.event() for _ in range(PARITIES)]
        self._end = config.codebook_size

    def warm(self) -> None:
        """Build every graph that sequences without a least length will need, and on a GPU run each."""
        sizes = sorted({self._batch_size(n) for n in range(1, self.slots + 1)} - {1}, reverse=True)
        firsts = [(0, size) for size in sizes] + [(slot, 1) for slot in range(self.slots)]
        counts = self.slow.stack.cell_counts(largest_first=True)
        on_cpu = self._model.backend.device == "cpu"
        # The largest of all comes first, and every other one twice: those that were built before the memory was large
        # enough for all are stale.
        self._frame.get(*firsts[0], counts[0], endless=True)
        for cells in 2 * counts:
            for tokens in PREFILL_TOKENS[-1:] if on_cpu else reversed(PREFILL_TOKENS):
                for slot in range(self.slots):
                    self.slow.build(slot, tokens, cells)
            for first, size in firsts:
                self.slow.build_lift(first, size, cells)
                self._frame.get(first, size, cells)
        if not on_cpu:
            self._run(firsts, counts)

    def _run(self, firsts: Sequence[tuple[int, int]], counts: Sequence[int]) -> None:
        """Kernels take their workspaces when they first run, and end the process where there is no room for them. Of
        what is captured the largest is proof enough: CUDA forgets what it has not run for ten seconds."""
        runs = RUNS_TO_CAPTURE
        for cells in counts:
            for first, size in firsts:
                graph = self._frame.get(first, size, cells)
                for index in range(size):
                    self._frame.place(graph, index, first + index, None)
                for _ in range(runs):
                    graph.compute()
                runs = 1
        rows = self._model.config.slow.codebooks + 1
        for tokens in PREFILL_TOKENS:
            self.prefill(0, np.zeros((rows, min(tokens, self.context)), np.int32))
        self.wait()
        self._prompts.clear()

    @property
    def frame_kernels(self) -> int:
        """Of one sequence's frame; see `Graph.n_kernels`."""
        return self._frame.get(0, 1, 1).n_kernels

    def prefill(self, slot: int, columns: npt.NDArray[np.integer], start: int = 0) -> None:
        """Put `columns` [1 + K, T] at a slot's positions from `start` on; earlier ones must be there.

        Ends what the slot was doing. Raises `EngineError` when they do not fit.
        """
        known = self._prompts.get(slot, (0,))[0]
        if start > known:
            raise EngineError(f"slot {slot} holds {known} positions, and cannot go on at {start}")
        self._sequences.pop(slot, None)
        self._prompts.pop(slot, None)
        self.slow.prefill(slot, columns, start)
        self._prompts[slot] = (start + columns.shape[1], columns[:, -1:].copy())

    def save(self, slot: int, positions: int) -> Snapshot:
        """A copy of what the slot's first `positions` hold, which must be there. Raises `EngineError` when the device
        has not enough memory."""
        self._check_known(slot, positions)
        return self.slow.save(slot, positions)

    def load(self, slot: int, snapshot: Snapshot) -> None:
        """Put a copy back, into any slot: it goes on behind those positions. Ends what the slot was doing."""
        self._sequences.pop(slot, None)
        self.slow.load(slot, snapshot)
        nothing = np.zeros((self._model.config.slow.codebooks + 1, 0), np.int32)
        self._prompts[slot] = (snapshot.positions, nothing)

    def start(self, slot: int, sampling: Sampling) -> None:
        """Begin to speak after the slot's prompt. The prompt stays: a slot may be started several times."""
        length, column = self._prompts.get(slot, (0, np.zeros((0, 0), np.int32)))
        if not column.size:
            raise EngineError(f"slot {slot} has no prompt")
        self._state.begin(slot, self.slow.embed(column)[0] if self.can_run_ahead else None)
        ranks = self._frame.ranks
        noise = Noise(sampling.seed & _SEED_MASK, codebooks=self._model.config.slow.codebooks, ranks=ranks)
        rules = Rules.of(sampling, ranks)
        self._sequences[slot] = _Sequence(
            length, length - 1, column, sampling.max_frames, sampling.min_frames, rules, noise
        )

    def step(self, slots: Sequence[int]) -> list[npt.NDArray[np.int32] | None]:
        """The next frame's codes [K] of each of these slots, None where there is none: `finish` says why.

        One graph for all of them. Raises `EngineError` for a slot that was not started.
        """
        self.submit(slots)
        frames = self.collect()
        return [frames.get(slot) for slot in slots]

    def submit(self, slots: Sequence[int]) -> None:
        """Start the next frame of those of these slots that are not finished."""
        running = {}
        for slot in slots:
            sequence = self._sequences.get(slot)
            if sequence is None:
                raise EngineError(f"slot {slot} was not started")
            most = sequence.max_frames
            if sequence.position >= self.context or (most is not None and sequence.started >= most):
                sequence.finish = sequence.finish or "length"
            if sequence.finish is None:
                running[slot] = sequence
        if running:
            self._flights.append(self._launch(running))
            for sequence in running.values():
                sequence.position += 1
                sequence.started += 1

    @property
    def can_run_ahead(self) -> bool:
        """Whether a frame may be submitted before the one before it is collected: not if it starts from its codes."""
        return self.slow.lower is None

    @property
    def in_flight(self) -> int:
        """Frames that were submitted and not collected; at most `PARITIES`, or one where none may run ahead."""
        return len(self._flights)

    def collect(self) -> dict[int, npt.NDArray[np.int32]]:
        """Wait for the oldest frame in flight: the codes [K] of every slot that has spoken one, and is still at the
        text that it was submitted for. Nothing in flight is no frames."""
        if not self._flights:
            return {}
        flight = self._flights.popleft()
        flight.done.wait()
        results = self._state.read()
        frames: dict[int, npt.NDArray[np.int32]] = {}
        for slot, sequence in flight.sequences.items():
            if self._sequences.get(slot) is not sequence or sequence.finish == "stop":
                continue
            frame = results[self._state.result_row(slot, flight.parity)]
            if frame[0] == self._end:
                sequence.finish = "stop"
            else:
                frames[slot] = frame[1:]
                if not self.can_run_ahead:
                    sequence.column = frame[:, None].copy()
                    sequence.column[0] += self._model.config.slow.semantic_begin
        return frames

    def finish(self, slot: int) -> Finish | None:
        """Why a started slot has no more frames; None while it may have."""
        return self._sequences[slot].finish

    def is_over(self, slot: int) -> bool:
        """Whether a started slot has no more frames, and none in flight either."""
        sequence = self._sequences[slot]
        return sequence.finish is not None and all(
            flight.sequences.get(slot) is not sequence for flight in self._flights
        )

    def rest(self, slot: int, kept: int) -> int:
        """End what the slot was saying, of which `kept` frames count; the number of positions that it holds: the
        prompt's and those frames', but for the last one where it was never fed."""
        sequence = self._sequences.pop(slot)
        known = min(sequence.position, sequence.prompt + kept)
        self._prompts[slot] = (known, self._prompts[slot][1][:, :0])
        return known

    def wait(self) -> None:
        """Until everything that was started is done."""
        self._model.backend.synchronize()

    def abandon(self) -> None:
        """Forget every prompt and every frame, as after a failure."""
        self._flights.clear()
        self._sequences.clear()
        self._prompts.clear()

    def slow_logits(self, columns: npt.NDArray[np.integer]) -> SlowTrace:
        """Of every column of `columns` [1 + K, T]: logits, hidden state, and what the fast transformer is given.

        For tests, and to compare engines. Takes slot 0, which loses its prompt.
        """
        self._sequences.pop(0, None)
        self._prompts.pop(0, None)
        return self.slow.trace(0, columns)

    def fast_logits(
        self, slow_state: npt.NDArray[np.float32], codes: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.float32]:
        """Of codes 1 and on of some frames, given their slow states `[n, width]` and codes `[n, K]`:
        `[n, K - 1, codebook_size]`."""
        return self.fast.logits(slow_state, codes)

    @property
    def position_bytes(self) -> int:
        """Memory of the keys and values of one position."""
        return self.slow.position_bytes

    @property
    def n_bytes(self) -> int:
        """Memory of the keys and values of all slots, and of the graphs."""
        return self.slow.n_bytes + self._frame.n_bytes

    @property
    def lower_n_bytes(self) -> int:
        """The same of the layers that are elsewhere."""
        return self.slow.lower.n_bytes if self.slow.lower else 0

    def close(self) -> None:
        for event in self._events:
            event.close()
        for part in (self._frame, self._state, self.fast, self.slow):
            part.close()

    def _check_known(self, slot: int, positions: int) -> None:
        known = self._prompts.get(slot, (0,))[0]
        if positions > known:
            raise EngineError(f"slot {slot} holds {known} positions, not {positions}")

    def _launch(self, running: dict[int, _Sequence]) -> _Flight:
        most = PARITIES if self.can_run_ahead else 1
        if len(self._flights) == most:
            raise EngineError(f"frames in flight: {most}, and no more are possible: collect one")
        first, batch = self._batch(running)
        last, endless = 0, False
        for sequence in running.values():
            last = max(last, sequence.position)
            endless = endless or sequence.started < sequence.min_frames
        graph = self._frame.get(first, batch, last + 1, endless=endless)
        # Another one than that of the frame in flight, if there is one.
        parity = 1 - self._flights[-1].parity if self._flights else 0
        for index in range(batch):
            slot = first + index
            speaker = running.get(slot)
            if speaker is None:
                self._frame.place(graph, index, slot, None)
                continue
            self._frame.place(
                graph, index, slot, speaker.position, is_first=not speaker.started, parity=parity,
                endless=speaker.started < speaker.min_frames,
            )  # fmt: skip
            self._frame.choose(graph, index, speaker.rules, speaker.noise.frame())
        if not self.can_run_ahead:
            at = [running[slot].position if slot in running else None for slot in range(first, first + batch)]
            columns = np.concatenate([running[slot].column for slot in sorted(running)], axis=1)
            self._frame.feed(graph, self.slow.lift(first, at, columns))
        graph.start()
        done = self._events[parity]
        done.record()
        return _Flight(running, parity, done)

    def _batch(self, running: dict[int, _Sequence]) -> tuple[int, int]:
        """The first slot of a graph, and how many."""
        last = max(running)
        return (last, 1) if last == min(running) else (0, self._batch_size(last + 1))

    def _batch_size(self, slots: int) -> int:
        """Of few sizes, so that there are few graphs."""
        return min(1 << (slots - 1).bit_length(), self.slots)
