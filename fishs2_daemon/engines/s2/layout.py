"""Which tensors a model is made of. Shapes are in ggml's order, the contiguous dimension first."""

from collections.abc import Iterator

from fishs2_daemon.engines.s2.config import CodecConfig, CodecTransformerConfig, ModelConfig, TransformerConfig

#: Kernel of the codec's causal convolutions (strided ones have two strides), and of the encoder's last.
CONV_KERNEL, ENCODER_OUT_KERNEL = 7, 3

#: One residual unit for each dilation follows every change of the codec's rate.
DILATIONS = (1, 3, 9)

#: A ConvNeXt block's inner width, in widths.
CONVNEXT_EXPANSION = 4

Shape = tuple[int, ...]
Tensors = Iterator[tuple[str, Shape]]


def expected_tensors(config: ModelConfig) -> Tensors:
    """Every tensor that the engine uses, with its shape; a file may hold others."""
    slow, fast, codec = config.slow, config.fast, config.codec
    yield "embeddings.weight", (slow.width, slow.vocab)
    yield "codebook_embeddings.weight", (slow.width, slow.codebooks * slow.codebook_size)
    for index in range(slow.layers):
        yield from _layer(f"layers.{index}", slow)
    yield "norm.weight", (slow.width,)
    if not slow.tied_head:
        yield "output.weight", (slow.width, slow.vocab)
    if fast.project_in:
        yield "fast_project_in.weight", (slow.width, fast.width)
        if fast.project_in_bias:
            yield "fast_project_in.bias", (fast.width,)
    yield "fast_embeddings.weight", (fast.width, fast.codebook_size)
    for index in range(fast.layers):
        yield from _layer(f"fast_layers.{index}", fast)
    yield "fast_norm.weight", (fast.width,)
    if not fast.tied_head:
        yield "fast_output.weight", (fast.width, fast.codebook_size)
    yield from _encoder(codec)
    yield from _quantizer(codec)
    yield from _decoder(codec)


def _layer(name: str, stack: TransformerConfig) -> Tensors:
    yield f"{name}.attention_norm.weight", (stack.width,)
    yield f"{name}.attention.wqkv.weight", (stack.width, stack.qkv_rows)
    if stack.qkv_bias:
        yield f"{name}.attention.wqkv.bias", (stack.qkv_rows,)
    if stack.qk_norm:
        yield f"{name}.attention.q_norm.weight", (stack.head_dim,)
        yield f"{name}.attention.k_norm.weight", (stack.head_dim,)
    yield f"{name}.attention.wo.weight", (stack.q_width, stack.width)
    if stack.o_bias:
        yield f"{name}.attention.wo.bias", (stack.width,)
    yield f"{name}.ffn_norm.weight", (stack.width,)
    yield f"{name}.feed_forward.w1.weight", (stack.width, stack.ffn)
    yield f"{name}.feed_forward.w2.weight", (stack.ffn, stack.width)
    yield f"{name}.feed_forward.w3.weight", (stack.width, stack.ffn)


def _codec_transformer(name: str, stack: CodecTransformerConfig) -> Tensors:
    for index in range(stack.layers):
        yield from _layer(f"{name}.layers.{index}", stack)
        yield f"{name}.layers.{index}.attention_layer_scale.gamma", (stack.width,)
        yield f"{name}.layers.{index}.ffn_layer_scale.gamma", (stack.width,)
    yield f"{name}.norm.weight", (stack.width,)


def _conv(name: str, kernel: int, inputs: int, outputs: int) -> Tensors:
    yield f"{name}.weight", (kernel, inputs, outputs)
    yield f"{name}.bias", (outputs,)


def _transposed_conv(name: str, kernel: int, inputs: int, outputs: int) -> Tensors:
    yield f"{name}.weight", (kernel, outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _linear(name: str, inputs: int, outputs: int) -> Tensors:
    yield f"{name}.weight", (inputs, outputs)
    yield f"{name}.bias", (outputs,)


def _residual_unit(name: str, channels: int) -> Tensors:
    yield f"{name}.block.0.alpha", (1, channels, 1)
    yield from _conv(f"{name}.block.1.conv", CONV_KERNEL, channels, channels)
    yield f"{name}.block.2.alpha", (1, channels, 1)
    yield from _conv(f"{name}.block.3.conv", 1, channels, channels)


def _convnext(name: str, width: int) -> Tensors:
    yield from _conv(f"{name}.dwconv.conv", CONV_KERNEL, 1, width)
    yield from ((f"{name}.norm.{part}", (width,)) for part in ("weight", "bias"))
    yield from _linear(f"{name}.pwconv1", width, CONVNEXT_EXPANSION * width)
    yield from _linear(f"{name}.pwconv2", CONVNEXT_EXPANSION * width, width)
    yield f"{name}.gamma", (width,)


def _encoder(codec: CodecConfig) -> Tensors:
    channels = codec.encoder_channels
    yield from _conv("c.encoder.block.0.conv", CONV_KERNEL, 1, channels[0])
    for index, (rate, stack) in enumerate(zip(codec.encoder_rates, codec.encoder_transformers, strict=True)):
        block = f"c.encoder.block.{index + 1}.block"
        for unit in range(len(DILATIONS)):
            yield from _residual_unit(f"{block}.{unit}", channels[index])
        yield f"{block}.3.alpha", (1, channels[index], 1)
        yield from _conv(f"{block}.4.conv", 2 * rate, channels[index], channels[index + 1])
        if stack:
            yield from _codec_transformer(f"{block}.5", stack)
    last = len(codec.encoder_rates) + 1
    yield f"c.encoder.block.{last}.alpha", (1, channels[-1], 1)
    yield from _conv(f"c.encoder.block.{last + 1}.conv", ENCODER_OUT_KERNEL, channels[-1], codec.latent)


def _quantizer(codec: CodecConfig) -> Tensors:
    width = codec.latent
    for index, rate in enumerate(codec.downsample):
        yield from _conv(f"c.quantizer.downsample.{index}.0.conv", rate, width, width)
        yield from _convnext(f"c.quantizer.downsample.{index}.1", width)
    yield from _codec_transformer("c.quantizer.pre_module", codec.quantizer_transformer)
    for index, size in enumerate(codec.codebook_sizes):
        name = codebook_name(index)
        yield from _conv(f"{name}.in_proj", 1, width, codec.codebook_width)
        yield from _conv(f"{name}.out_proj", 1, codec.codebook_width, width)
        yield f"{name}.codebook.weight", (codec.codebook_width, size)
    yield from _codec_transformer("c.quantizer.post_module", codec.quantizer_transformer)
    for index, rate in enumerate(codec.upsample):
        yield from _transposed_conv(f"c.quantizer.upsample.{index}.0.conv", rate, width, width)
        yield from _convnext(f"c.quantizer.upsample.{index}.1", width)


def codebook_name(index: int) -> str:
    """Where codebook `index` lies in the file: 0 is the semantic one, the others are residual."""
    if index == 0:
        return "c.quantizer.semantic_quantizer.quantizers.0"
    return f"c.quantizer.quantizer.quantizers.{index - 1}"


def _decoder(codec: CodecConfig) -> Tensors:
    channels = codec.decoder_channels
    yield from _conv("c.decoder.model.0.conv", CONV_KERNEL, codec.latent, channels[0])
    for index, rate in enumerate(codec.decoder_rates):
        block = f"c.decoder.model.{index + 1}.block"
        yield f"{block}.0.alpha", (1, channels[index], 1)
        yield from _transposed_conv(f"{block}.1.conv", 2 * rate, channels[index], channels[index + 1])
        for unit in range(len(DILATIONS)):
            yield from _residual_unit(f"{block}.{unit + 2}", channels[index + 1])
    last = len(codec.decoder_rates) + 1
    yield f"c.decoder.model.{last}.alpha", (1, channels[-1], 1)
    yield from _conv(f"c.decoder.model.{last + 1}.conv", CONV_KERNEL, channels[-1], 1)
