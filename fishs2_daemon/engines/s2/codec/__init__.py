"""The codec: `Decoder` makes sound of codes, frame by frame; `Encoder` makes codes of sound.

    convolution  convnext  window_attention  quantizer     the parts
    weights                                                those that the codec converts
    passes                                                 one graph over some frames of some streams
    streams                                                the graphs, and the streams that they move on
    state                                                  what a stream carries from pass to pass

Numbers in these files are sections of the notes on the model that this engine was written from.
"""

from fishs2_daemon.engines.s2.codec.decoder import Decoder, DecoderStream
from fishs2_daemon.engines.s2.codec.encoder import Encoder

__all__ = ["Decoder", "DecoderStream", "Encoder"]
