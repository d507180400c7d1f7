"""Frames of several sequences at a time, each in a slot of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.fast import FastAR
from fishs2_daemon.engines.s2.frame import FrameGraph, FrameState
from fishs2_daemon.engines.s2.ggml import DType
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.noise import Noise
from fishs2_daemon.engines.s2.rope import RopeKind
from fishs2_daemon.engines.s2.sampling import Rules, Sampler, Sampling
from fishs2_daemon.engines.s2.slow import SlowAR, SlowTrace
from fishs2_daemon.errors import EngineError

#: Why a sequence has no more frames: the model said so, or there is no room for another.
Finish = Literal["stop", "length"]

#: Seeds are reduced to this many bits; numpy takes no negative ones.
_SEED_MASK = (1 << 64) - 1

_KV_TYPES = {"f16": DType.F16, "f32": DType.F32}


@dataclass(slots=True)
class _Sequence:
    """`position` is that of the next input: at first the prompt's last column, which is computed a second time, as its
    hidden state is where the first frame comes from."""

    position: int
    max_frames: int | None
    rules: Rules
    noise: Noise
    frames: int = 0
    finish: Finish | None = None


class Generator:
    """Slots are prefilled, started, then stepped; a slot may be prefilled anew at any time.

    Not for several threads at once. The same seed gives the same noise, whatever else is in the batch; kernels depend
    on the batch's size, so that a near tie may end differently.
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int = 1,
        context: int = 4096,
        rope: RopeKind = "bf16",
        kv_type: Literal["f16", "f32"] = "f16",
    ) -> None:
        """`context` is at most the model's. Raises `EngineError` when the device has not enough memory."""
        if model.im_end is None:
            raise EngineError("the model was loaded without its transformers")
        self.slots, self._model = slots, model
        config, kv = model.config.slow, _KV_TYPES[kv_type]
        self.context = min(context, config.context)
        self.slow = SlowAR(model, slots=slots, context=self.context, rope=rope, kv_type=kv)
        self.fast = FastAR(model, slots=slots, rope=rope, kv_type=kv)
        self._state = FrameState(model, slots)
        tokens, codes = (Sampler(model, n, slots=slots) for n in (config.codebook_size + 1, config.codebook_size))
        self._frame = FrameGraph(model, self.slow, self.fast, tokens, codes, self._state)
        self._prompts: dict[int, tuple[int, npt.NDArray[np.integer]]] = {}
        self._sequences: dict[int, _Sequence] = {}

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

    def start(self, slot: int, sampling: Sampling) -> None:
        """Begin to speak after the slot's prompt. The prompt stays: a slot may be started several times."""
        if slot not in self._prompts:
            raise EngineError(f"slot {slot} has no prompt")
        length, column = self._prompts[slot]
        self._state.begin(slot, self.slow.embed(column)[0])
        ranks = self._frame.ranks
        noise = Noise(sampling.seed & _SEED_MASK, codebooks=self._model.config.slow.codebooks, ranks=ranks)
        self._sequences[slot] = _Sequence(length - 1, sampling.max_frames, Rules.of(sampling, ranks), noise)

    def step(self, slots: Sequence[int]) -> list[npt.NDArray[np.int32] | None]:
        """The next frame's codes [K] of each of these slots, None where there is none: `finish` says why.

        One graph for all of them. Raises `EngineError` for a slot that was not started.
        """
        for slot in slots:
            if slot not in self._sequences:
                raise EngineError(f"slot {slot} was not started")
        self._end_by_length(slots)
        running = {slot: sequence for slot in slots if (sequence := self._sequences[slot]).finish is None}
        frames: dict[int, npt.NDArray[np.int32]] = {}
        if running:
            for slot, frame in self._compute(running).items():
                sequence = running[slot]
                if frame[0] == self._model.config.slow.codebook_size:
                    sequence.finish = "stop"
                    continue
                frames[slot] = frame[1:]
                sequence.position += 1
                sequence.frames += 1
        return [frames.get(slot) for slot in slots]

    def finish(self, slot: int) -> Finish | None:
        """Why a started slot has no more frames; None while it may have."""
        return self._sequences[slot].finish

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
    def n_bytes(self) -> int:
        """Memory of the keys and values of all slots."""
        return self.slow.cache.n_bytes

    def close(self) -> None:
        for part in (self._frame, self._state, self.fast, self.slow):
            part.close()

    def _end_by_length(self, slots: Sequence[int]) -> None:
        for slot in slots:
            sequence = self._sequences[slot]
            most = sequence.max_frames
            full = sequence.position >= self.context or (most is not None and sequence.frames >= most)
            if full and sequence.finish is None:
                sequence.finish = "length"

    def _compute(self, running: dict[int, _Sequence]) -> dict[int, npt.NDArray[np.int32]]:
        """A frame [1 + K] of each: its token, counted from the first semantic one, and its codes."""
        first, batch = self._batch(running)
        graph = self._frame.get(first, batch, max(sequence.position for sequence in running.values()) + 1)
        for index in range(batch):
            slot = first + index
            sequence = running.get(slot)
            if sequence is None:
                self._frame.place(graph, index, slot, None)
                continue
            self._frame.place(graph, index, slot, sequence.position, first_frame=not sequence.frames)
            self._frame.choose(graph, index, sequence.rules, sequence.noise.frame())
        graph.compute()
        frames = graph.read("frame")[0, 0]  # [batch, 1 + K]
        return {slot: frames[slot - first] for slot in running}

    def _batch(self, running: dict[int, _Sequence]) -> tuple[int, int]:
        """The first slot of a graph, and how many: one, or of few sizes, so that there are few graphs."""
        last = max(running)
        if last == min(running):
            return last, 1
        return 0, min(1 << last.bit_length(), self.slots)
