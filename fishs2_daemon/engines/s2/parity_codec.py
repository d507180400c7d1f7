"""The codec against a recording: samples and activations of its decoder, codes and activations of its encoder."""

import re

import numpy as np

from fishs2_daemon.engines.s2.codec import Decoder, Encoder
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.parity_recorded import Array, Recorded
from fishs2_daemon.engines.s2.parity_report import Lines

_CHUNKS = (1, 3, 7)

_ENCODED_KEY = re.compile(r"(enc_.+)_(?:pcm16|codes|margin|latent|pre_module)")
_DECODED_KEY = re.compile(r"(dec(?:_.+)?)_codes")


def compare_codec(lines: Lines, model: Model, recorded: Recorded) -> None:
    decoded = [found[1] for key in recorded.keys if (found := _DECODED_KEY.fullmatch(key))]
    if decoded:
        with lines.attempt("decoder"), Decoder(model, rope="f32") as decoder:
            for name in decoded:
                others = [other for other in decoded if other.startswith(f"{name}_")]
                _decode(lines, decoder, recorded, name, others)
    else:
        lines.skipped("decoder", "no dec_codes")
    encoded = dict.fromkeys(found[1] for key in recorded.keys if (found := _ENCODED_KEY.fullmatch(key)))
    if encoded:
        with lines.attempt("encoder"), Encoder(model, rope="f32") as encoder:
            for name in encoded:
                _encode(lines, encoder, recorded, name, model.config.codec.frame_samples)
    else:
        lines.skipped("encoder", "no enc_..._pcm16")


def _decode(lines: Lines, decoder: Decoder, recorded: Recorded, name: str, others: list[str]) -> None:
    codes, wave = recorded.get(f"{name}_codes"), recorded.get(f"{name}_wave")
    if codes is None:
        return
    if wave is None:
        lines.skipped(f"{name} wave", f"no {name}_wave")
    else:
        n = codes.shape[-1]
        for chunk in (n, *(chunk for chunk in _CHUNKS if chunk < n)):
            what = f"{name} wave whole" if chunk == n else f"{name} wave by {chunk}"
            with lines.attempt(what), decoder.open_stream() as stream:
                pieces = [stream.decode(codes[:, at : at + chunk]) for at in range(0, n, chunk)]
                lines.close(what, np.concatenate(pieces), wave, "wave")
    keys = [key for key in recorded.keys if key.startswith(f"{name}_") and not key.endswith(("_codes", "_wave"))]
    keys = [key for key in keys if not any(key.startswith(f"{other}_") for other in others)]
    if not keys:
        return
    with lines.attempt(f"{name} activations"):
        seen = decoder.trace(codes)
        for key in keys:
            found, wanted = seen.get(key.removeprefix(f"{name}_")), recorded.get(key)
            if found is None or wanted is None:
                lines.skipped(key, "no activation of this model")
                continue
            lines.close(key, found[:, : wanted.shape[-1]], wanted)  # of some only the first columns are recorded


def _encode(lines: Lines, encoder: Encoder, recorded: Recorded, name: str, frame: int) -> None:
    pcm = recorded.get(f"{name}_pcm16")
    if pcm is None:
        lines.skipped(name, f"no {name}_pcm16")
        return
    samples = (pcm / 32768).astype(np.float32)
    wanted = recorded.get(f"{name}_codes")
    if wanted is None:
        lines.skipped(f"{name} codes", f"no {name}_codes")
    else:
        with lines.attempt(f"{name} codes"):
            _codes(lines, f"{name} codes", encoder.encode(samples), wanted, recorded.get(f"{name}_margin"))
    activations = {what: recorded.get(f"{name}_{what}") for what in ("latent", "pre_module")}
    if any(each is not None for each in activations.values()):
        with lines.attempt(f"{name} activations"):
            seen = encoder.trace(np.pad(samples, (0, -len(samples) % frame)))
            for what, activation in activations.items():
                if activation is not None:
                    lines.close(f"{name} {what}", seen[what][:, : activation.shape[-1]], activation)


def _codes(lines: Lines, what: str, found: Array, wanted: Array, margins: Array | None) -> None:
    """A frame's first code that differs must be a near tie. Those after it quantise another remainder: no evidence."""
    if found.shape != wanted.shape or (margins is not None and margins.shape != wanted.shape):
        lines.same(what, found, wanted)
        return
    differ, limit = found != wanted, lines.tolerance.cosine_margin
    frames = np.flatnonzero(differ.any(axis=0))
    first = differ.argmax(axis=0)[frames]
    wrong = len(frames) if margins is None else int((~(margins[first, frames] <= limit)).sum())
    text = f"{wanted.shape[1] - len(frames)} of {wanted.shape[1]} frames equal"
    if len(frames):
        text += f", {len(frames) - wrong} of the others after a near tie (margin at most {limit:.0e})"
    lines.verdict(what, text, not wrong)
