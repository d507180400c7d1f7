"""The transformers against a recording: logits, hidden states, and the frames of greedy speech."""

from dataclasses import dataclass

import numpy as np

from fishs2_daemon.engines.s2.generator import Generator
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.parity_recorded import Array, Recorded, columns_of, conversations, prompt_names
from fishs2_daemon.engines.s2.parity_report import Lines
from fishs2_daemon.engines.s2.sampling import Sampling


def compare_transformers(lines: Lines, model: Model, recorded: Recorded, *, exact: bool) -> None:
    """`exact` keeps keys and values in F32, else they are F16."""
    names, batches = prompt_names(recorded), conversations(recorded)
    lengths = [sum(columns_of(recorded, f"{name}_{part}") for part in ("prompt", "frames")) for name in names]
    for name, numbers in batches.items():
        lengths += [columns_of(recorded, f"{name}_{part}_{n}") for n in numbers for part in ("prompt", "output")]
    compared = _Transformers(lines, model, recorded, context=max(lengths, default=0) + 1, exact=exact)
    try:
        for name in names:
            with lines.attempt(f"{name} prompt"):
                compared.prompt(name)
        for name, numbers in batches.items():
            with lines.attempt(f"{name} conversation"):
                compared.conversation(name, numbers)
    finally:
        compared.close()


@dataclass(slots=True)
class _Speech:
    """Recorded columns `[1 + K, n]` after a prompt, and the margins `[K, n]` of their choices if they are known."""

    prompt: Array
    frames: Array
    margins: Array | None


class _Transformers:
    def __init__(self, lines: Lines, model: Model, recorded: Recorded, *, context: int, exact: bool) -> None:
        self._lines, self._model, self._recorded = lines, model, recorded
        self._context, self._exact = context, exact
        config = model.config.slow
        self._im_end = model.im_end or 0
        self._head = [*range(config.semantic_begin, config.semantic_end + 1), self._im_end]
        self._generator = self._new("f32")
        self._rounded: Generator | None = None

    def prompt(self, name: str) -> None:
        prompt = self._recorded.get(f"{name}_prompt")
        if prompt is None:
            self._lines.skipped(f"{name} prompt", f"no {name}_prompt")
            return
        with self._lines.attempt(f"{name} prefill"):
            self._prefill(name, prompt)
        with self._lines.attempt(f"{name} bf16 rope"):
            self._bf16_rope(name, prompt)
        frames = self._recorded.get(f"{name}_frames")
        if frames is None:
            self._lines.skipped(f"{name} frames", f"no {name}_frames")
            return
        with self._lines.attempt(f"{name} given frames"):
            self._forced(name, prompt, frames)
        with self._lines.attempt(f"{name} greedy frames"):
            speech = _Speech(prompt, frames, self._recorded.get(f"{name}_margins"))
            self._greedy(f"{name} greedy frames", speech, 0)

    def conversation(self, name: str, numbers: list[int]) -> None:
        """Batch by batch; what a prompt shares with the one before it is not computed again."""
        before: Array | None = None
        for number in numbers:
            prompt, output = (self._recorded.get(f"{name}_{part}_{number}") for part in ("prompt", "output"))
            if prompt is None or output is None:
                missing = "prompt" if prompt is None else "output"
                self._lines.skipped(f"{name} batch {number}", f"no {name}_{missing}_{number}")
                continue
            length, what = prompt.shape[1], f"{name} batch {number} frames"
            if not np.array_equal(output[:, :length], prompt):
                self._lines.verdict(what, "the output does not begin with the prompt", False)
                continue
            kept = before.shape[1] if before is not None else 0
            if before is not None and not (kept < length and np.array_equal(prompt[:, :kept], before)):
                kept = 0
            with self._lines.attempt(what):
                untouched = self._greedy(what, _Speech(prompt, output[:, length:], None), kept)
                before = prompt if untouched else None
                continue
            before = None

    def close(self) -> None:
        for generator in (self._generator, self._rounded):
            if generator is not None:
                generator.close()

    def _prefill(self, name: str, prompt: Array) -> None:
        trace = self._generator.slow_logits(prompt)
        for what, found in (("logits", trace.logits), ("hidden", trace.hidden)):
            if (wanted := self._get(f"{name} prefill {what}", f"{name}_prefill_{what}_all")) is not None:
                self._lines.close(f"{name} prefill {what}", found, self._cut(wanted, what))

    def _bf16_rope(self, name: str, prompt: Array) -> None:
        wanted = self._get(f"{name} bf16 rope logits", f"{name}_prefill_logits_last_bf16rope")
        if wanted is not None:
            self._rounded = self._rounded or self._new("bf16")
            found = self._rounded.slow_logits(prompt).logits[-1]
            self._lines.close(f"{name} bf16 rope logits", found, self._cut(wanted, "logits"))

    def _forced(self, name: str, prompt: Array, frames: Array) -> None:
        """Teacher-forced: the recorded frames are given, so that no choice of ours changes what comes after it."""
        slow, length = self._generator.slow, prompt.shape[1]
        trace = self._generator.slow_logits(np.concatenate([prompt, frames], axis=1))
        states: dict[str, Array] = {
            "logits": trace.logits[length - 1 :],
            "hidden": trace.hidden[length - 1 :],
            # Column by column, over keys and values from before, as in speech: other kernels may do it.
            "stepped": np.concatenate(
                [slow.trace(0, frames[:, n : n + 1], length + n).logits for n in range(frames.shape[1])]
                or [trace.logits[:0]]
            ),
        }
        for what in ("logits", "hidden"):
            if (wanted := self._get(f"{name} slow {what}", f"{name}_slow_{what}")) is not None:
                cut = self._cut(wanted, what)
                self._lines.close(f"{name} slow {what}", states[what][: len(cut)], cut)
                if what == "logits":
                    self._lines.close(f"{name} slow logits by column", states["stepped"][: len(cut) - 1], cut[1:])
        fast: Array | None = None
        if (wanted := self._get(f"{name} fast logits", f"{name}_fast_logits")) is not None:
            given = self._recorded.get(f"{name}_slow_hidden") if self._model.config.fast.normed_input else None
            codes = frames[1:, : len(wanted)].T
            inputs = (trace.fast_input[length - 1 :] if given is None else given)[: len(codes)]
            fast = self._fast_logits(inputs, codes)
            self._lines.close(f"{name} fast logits", fast, wanted[:, 1:])  # position 0 has no logits of interest
        margins = self._get(f"{name} choices", f"{name}_margins")
        if margins is not None and fast is not None:
            self._choices(f"{name} choices", frames, margins, [states["logits"], *fast.swapaxes(0, 1)])

    def _choices(self, what: str, frames: Array, margins: Array, logits: list[Array]) -> None:
        """Whether every recorded code is the likeliest one, given those before it, or a near tie. `logits` are of each
        codebook, `[n, size]`; the first's end with the end token's."""
        n = min(len(logits[1]) if len(logits) > 1 else frames.shape[1], margins.shape[1])
        n = min(n, int(np.argmax([*(frames[0] == self._im_end), True])))  # an end token's frame has no codes
        ties = wrong = 0
        for codebook, each in enumerate(logits):
            for frame in range(n):
                if each[frame].argmax() != frames[1 + codebook, frame]:
                    near = margins[codebook, frame] <= self._lines.tolerance.margin(each[frame])
                    ties, wrong = ties + bool(near), wrong + (not near)
        count = n * len(logits)
        text = f"{count - ties - wrong} of {count} equal" + (f", {ties} of the others near ties" if ties else "")
        self._lines.verdict(what, text, not wrong)

    def _greedy(self, what: str, speech: _Speech, kept: int) -> bool:
        """Whether the slot still holds the prompt, of which the first `kept` columns are there already."""
        config = self._model.config.slow
        self._generator.prefill(0, speech.prompt[:, kept:], kept)
        self._generator.start(0, Sampling(top_k=1, max_frames=speech.frames.shape[1]))
        columns = [np.zeros((config.codebooks + 1, 0), np.int64)]
        while (codes := self._generator.step([0])[0]) is not None:
            columns.append(np.concatenate([codes[:1] + config.semantic_begin, codes])[:, None])
        found = np.concatenate(columns, axis=1)
        ends = np.flatnonzero(speech.frames[0] == self._im_end)
        wanted = speech.frames[:, : ends[0]] if ends.size else speech.frames
        if found.shape == wanted.shape and np.array_equal(found, wanted):
            self._lines.verdict(what, f"{wanted.shape[1]} of {wanted.shape[1]} equal", True)
            return True
        frame, codebook = _first_difference(found, wanted)
        logits, own_margin = self._choice(speech, frame, codebook)
        known = speech.margins is not None and frame < speech.margins.shape[1]
        margin = float(speech.margins[codebook, frame]) if known and speech.margins is not None else own_margin
        limit = self._lines.tolerance.margin(logits)
        text = f"the first {frame} of {wanted.shape[1]} equal, then codebook {codebook} has a margin of {margin:.1e}"
        self._lines.verdict(what, f"{text} (no choice up to {limit:.1e})", margin <= limit)
        return False

    def _choice(self, speech: _Speech, frame: int, codebook: int) -> tuple[Array, float]:
        """The logits that a recorded choice is made from, and how far it lies below the best of them."""
        config = self._model.config.slow
        trace = self._generator.slow_logits(np.concatenate([speech.prompt, speech.frames[:, :frame]], axis=1))
        if frame >= speech.frames.shape[1]:
            raise ValueError(f"{frame + 1} frames were made, {frame} are recorded")
        column = speech.frames[:, frame]
        if codebook == 0:
            logits, chosen = trace.logits[-1], int(column[0]) - config.semantic_begin
            chosen = config.codebook_size if column[0] == self._im_end else chosen
        else:
            logits = self._fast_logits(trace.fast_input[-1:], column[None, 1:])[0, codebook - 1]
            chosen = int(column[1 + codebook])
        if not 0 <= chosen < len(logits):
            raise ValueError(f"{column.tolist()} is no frame")
        return logits, float(logits.max() - logits[chosen])

    def _fast_logits(self, states: Array, codes: Array) -> Array:
        size = self._model.config.slow.codebook_size
        if codes.size and not 0 <= codes.min() <= codes.max() < size:
            raise ValueError(f"codes from {codes.min()} to {codes.max()} are recorded, and the model has {size}")
        return self._generator.fast_logits(states, codes)

    def _new(self, rope: str) -> Generator:
        return Generator(
            self._model,
            context=self._context,
            rope="bf16" if rope == "bf16" else "f32",
            kv_type="f32" if self._exact else "f16",
        )

    def _get(self, what: str, key: str) -> Array | None:
        array = self._recorded.get(key)
        if array is None:
            self._lines.skipped(what, f"no {key}")
        return array

    def _cut(self, wanted: Array, what: str) -> Array:
        """Of logits the engine has those alone that can be chosen."""
        if what != "logits":
            return wanted
        vocab = self._model.config.slow.vocab
        if wanted.shape[-1] != vocab:
            raise ValueError(f"{wanted.shape[-1]} logits are recorded, and the model has {vocab} tokens")
        return wanted[..., self._head]


def _first_difference(found: Array, wanted: Array) -> tuple[int, int]:
    """The frame and the codebook; row 0 is the token, which is codebook 0's code. Other than that, where one ends."""
    n = min(found.shape[1], wanted.shape[1])
    differ = np.argwhere((found[:, :n] != wanted[:, :n]).T)
    return (int(differ[0][0]), max(0, int(differ[0][1]) - 1)) if len(differ) else (n, 0)
