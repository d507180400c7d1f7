"""From the files to an engine that can speak at once."""

import importlib.util
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from fishs2_daemon.engines.base import EngineOptions
from fishs2_daemon.engines.s2.clips import ClipCodes
from fishs2_daemon.engines.s2.codec import Decoder
from fishs2_daemon.engines.s2.encoding import ClipEncoder
from fishs2_daemon.engines.s2.generator import Generator
from fishs2_daemon.engines.s2.ggml import Backend, default_threads
from fishs2_daemon.engines.s2.gguf import GgufFile
from fishs2_daemon.engines.s2.memory import slots_for, weights_of
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.model_file import read_config
from fishs2_daemon.engines.s2.needs import lower_needs, needs
from fishs2_daemon.engines.s2.placement import decoder_skips, lower_skips, upper_skips
from fishs2_daemon.engines.s2.prefixes import Prefixes
from fishs2_daemon.engines.s2.prompt import PromptFormat
from fishs2_daemon.engines.s2.rope import RopeKind
from fishs2_daemon.engines.s2.runner import Runner
from fishs2_daemon.engines.s2.tokenizer import Tokenizer
from fishs2_daemon.engines.s2.vocoder import Vocoder
from fishs2_daemon.errors import EngineError

_log = logging.getLogger(__name__)

#: A thread that comes back from native code waits this long for the interpreter, at most. Python's own 5 ms are as long
#: as a frame takes on a GPU.
_SWITCH_S = 0.0002

#: Sound, and the codes of clips, are computed beside the frames, which all wait for: of a processor's threads they get
#: half as many.
_BESIDE = 2

#: Of the time that loading takes, the weights' share; the rest builds graphs.
_WEIGHTS = 0.9


@dataclass(slots=True)
class Loaded:
    """An engine's parts. `close` ends its threads and gives the memory back."""

    model: Model
    lower: Model | None
    tokenizer: Tokenizer
    prompts: PromptFormat
    generator: Generator
    #: Asked once: the graphs are the frames' thread's.
    frame_kernels: int
    decoder: Decoder
    clips: ClipCodes
    prefixes: Prefixes
    runner: Runner
    vocoder: Vocoder
    backends: tuple[Backend, ...]
    on_gpu: bool

    def close(self) -> None:
        self.runner.close()
        self.vocoder.close()
        self.prefixes.clear()
        self.decoder.close()
        self.generator.close()
        self.model.close()
        if self.lower:
            self.lower.close()
        for backend in self.backends:
            backend.close()


def load(options: EngineOptions, report: Callable[[float], None]) -> Loaded:
    """`report` is told the fraction that is done. Raises `EngineError`."""
    sys.setswitchinterval(_SWITCH_S)
    if importlib.util.find_spec("ggml") is None:
        raise EngineError("the S2 engine needs ggml: pip install ggml-python==0.0.45 (it is built from source)")
    with GgufFile.open(options.model_path) as file:
        config = read_config(file)
    slow, codec = config.slow, config.codec
    tokenizer = Tokenizer.open(
        Path(options.tokenizer_path),
        vocab_size=slow.vocab,
        semantic_begin=slow.semantic_begin,
        semantic_end=slow.semantic_end,
    )
    # Streams of work, none of which waits for another: frames, sound, and the codes of clips.
    device = _device(options)
    frames, sound, reading = (_backend(device, options, share) for share in (1, _BESIDE, _BESIDE))
    on_gpu = frames.device != "cpu"
    spare = (_processor(options),) if on_gpu else ()
    n_lower = _lower_layers(options, slow.layers, on_gpu=on_gpu)
    below = _processor(options) if n_lower else None
    skips, others = upper_skips(n_lower), lower_skips(n_lower)
    context = min(options.context, slow.context)
    voices = options.voice_cache_mb << 20
    with GgufFile.open(options.model_path) as file:
        weights = weights_of(file, config, skips, on_gpu=on_gpu)
        lower_weights = weights_of(file, config, others, on_gpu=False)
    sums = [(needs(config, weights, context=context, voices=voices, fused=on_gpu, lower=n_lower), frames)]
    if below:
        sums.append((lower_needs(config, lower_weights, context=context, voices=voices, lower=n_lower), below))
    slots = min(slots_for(options.slots, *each) for each in sums)
    free_bytes = frames.memory().free_bytes

    path, im_end = options.model_path, tokenizer.im_end
    share = _WEIGHTS * lower_weights / (lower_weights + weights)
    lower = Model.load(path, below, _part(report, 0, share), im_end=im_end, skip=others) if below else None
    model = Model.load(
        path,
        frames,
        _part(report, share, _WEIGHTS),
        im_end=im_end,
        skip=lambda name: decoder_skips(name) or skips(name),
    )
    generator = Generator(model, slots=slots, context=context, rope=_rope(options), lower=lower)
    generator.warm()
    decoder = Decoder(model, backend=sound, streams=slots)
    decoder.warm(slots)
    report(1.0)
    frame_s = codec.frame_samples / codec.sample_rate
    vocoder = Vocoder(decoder, codec.sample_rate, codec.frame_samples)
    prefixes = Prefixes(voices)
    taken = model.n_bytes + generator.n_bytes + decoder.n_bytes
    _log.info("S2 on %s, %d slots of %d positions, %d MB", frames.summary, slots, context, taken >> 20)
    if on_gpu:
        besides = free_bytes - frames.memory().free_bytes - taken
        _log.info("CUDA took %d MB besides, for kernels, workspaces and recorded graphs", besides >> 20)
    if lower and below:
        layers = f"the first {n_lower} of {slow.layers} layers on {below.summary}"
        _log.info("%s, %d MB", layers, (lower.n_bytes + generator.lower_n_bytes) >> 20)
    if (below or frames).is_slow_build:
        _log.warning(
            "this ggml computes prompts and batches at half the speed: CMAKE_ARGS=-DGGML_LLAMAFILE=ON pip install "
            "--force-reinstall --no-cache-dir --no-deps ggml-python==0.0.45"
        )
    return Loaded(
        model=model,
        lower=lower,
        tokenizer=tokenizer,
        prompts=PromptFormat(tokenizer, codebooks=slow.codebooks, codebook_size=slow.codebook_size),
        generator=generator,
        frame_kernels=generator.frame_kernels,
        decoder=decoder,
        clips=ClipCodes(
            ClipEncoder(Path(options.model_path), (reading, *spare)).encode,
            sample_rate=codec.sample_rate,
            frame_samples=codec.frame_samples,
            codec=model.digest("c."),
        ),
        prefixes=prefixes,
        runner=Runner(generator, vocoder, prefixes, frame_s=frame_s, run_ahead=on_gpu and generator.can_run_ahead),
        vocoder=vocoder,
        backends=(frames, sound, reading, *spare, *((below,) if below else ())),
        on_gpu=on_gpu,
    )


def _device(options: EngineOptions) -> str:
    name = options.backend
    if name not in ("auto", "cuda", "cpu"):
        # What the wrapper's managers ask for on a machine of that kind; a voice that is slow is better than none.
        _log.warning("FISHS2_BACKEND=%s: the S2 engine has no such backend yet, and takes what auto would", name)
        name = "auto"
    return name if name == "cpu" else f"{name}:{options.gpu_device}"


def _backend(device: str, options: EngineOptions, share: int) -> Backend:
    """On a processor, of one in `share` of the threads."""
    return Backend.open(device, threads=max(1, (options.n_threads or default_threads()) // share))


def _part(report: Callable[[float], None], start: float, end: float) -> Callable[[float], None]:
    """Reports a fraction of what `report` is told from `start` to `end`."""
    return lambda done: report(start + (end - start) * done)


def _processor(options: EngineOptions) -> Backend:
    return Backend.open("cpu", threads=options.n_threads or None)


def _lower_layers(options: EngineOptions, layers: int, *, on_gpu: bool) -> int:
    """How many of the slow transformer's layers, the first ones, the processor computes for a GPU."""
    upper = options.n_gpu_layers
    if upper < -1:
        raise EngineError(f"FISHS2_N_GPU_LAYERS={upper}; allowed: -1 (all), and 0 to {layers}")
    if upper == -1 or upper >= layers:
        return 0
    if not on_gpu:
        _log.info("FISHS2_N_GPU_LAYERS=%d has no effect: there is no GPU in use", upper)
        return 0
    return layers - upper


def _rope(options: EngineOptions) -> RopeKind:
    if options.rope not in get_args(RopeKind):
        raise EngineError(f"FISHS2_ROPE={options.rope}; allowed: {', '.join(get_args(RopeKind))}")
    return cast(RopeKind, options.rope)
