"""The whole model in plain numpy: what the engine is checked against, on any file that the project can read.

    weights          a file as arrays, in PyTorch's order
    transformer      RMS norm, rotary embedding, attention with carried keys and values     (2.1, 7.1)
    slow  fast       columns to logits; a hidden state to codes                             (2, 3)
    sampling         the filters, repetition-aware sampling, draws from given noise         (4.1, 4.2)
    generate         frames after a prompt                                                  (2.3, 3, 4.4)
    convolutions     the causal building blocks of the codec                                (7.1)
    codec_decode     codes to samples, whole or with carried state                          (7.3, 7.5)
    codec_encode     samples to codes, with their margins                                   (7.2)

The numbers are sections of the notes on the model, from which alone this is written: it shares the file reader with
the engine, and no arithmetic. Every size comes from the file. It computes in float64 unless `load` is told otherwise.
"""

from tests.engines.s2.reference.codec_decode import Decoder, DecoderState
from tests.engines.s2.reference.codec_encode import Encoder
from tests.engines.s2.reference.fast import FastAR
from tests.engines.s2.reference.generate import Generation, generate
from tests.engines.s2.reference.sampling import Drawn, Greedy, Sampling
from tests.engines.s2.reference.slow import SlowAR, SlowOutput
from tests.engines.s2.reference.transformer import Cache, Rope
from tests.engines.s2.reference.weights import Array, Model, load

__all__ = [
    "Array",
    "Cache",
    "Decoder",
    "DecoderState",
    "Drawn",
    "Encoder",
    "FastAR",
    "Generation",
    "Greedy",
    "Model",
    "Rope",
    "Sampling",
    "SlowAR",
    "SlowOutput",
    "generate",
    "load",
]
