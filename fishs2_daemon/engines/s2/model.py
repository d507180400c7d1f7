"""The model on its device: sizes from the file, weights in the device's memory, the rest stays in the file."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.config import ModelConfig
from fishs2_daemon.engines.s2.errors import ModelFileError
from fishs2_daemon.engines.s2.ggml import Backend, DType, Store, Tensor, dequantize
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.gguf import GgufFile
from fishs2_daemon.engines.s2.layout import expected_tensors
from fishs2_daemon.engines.s2.model_file import read_config
from fishs2_daemon.engines.s2.placement import gatherable, only_multiplied
from fishs2_daemon.engines.s2.sizes import padded

Progress = Callable[[float], None]

#: Bytes that are moved at a time: progress moves on, and what is converted on its way stays small.
_PIECE = 16 << 20

#: Biases, norms and codebooks: enough to tell one model from another.
_SMALL_NBYTES = 1 << 20

_EMBEDDINGS, _OUTPUT, _CODEBOOKS = "embeddings.weight", "output.weight", "codebook_embeddings.weight"
_FAST_EMBEDDINGS, _FAST_OUTPUT = "fast_embeddings.weight", "fast_output.weight"


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows `start` to `stop` of the file's tensor `source`, to row `at` of `target`, which may be of another type."""

    target: Tensor
    source: str
    start: int
    stop: int
    at: int = 0


class Model:
    """Everything that the file holds and the engine uses. Tensors have their names in the file, and three more:

    `slow_head`             rows of the output head: the semantic tokens', the end token's, then zeros up to
                            `padded(semantic tokens + 1)`
    `semantic_embeddings`   rows of the text embedding: at least the semantic tokens'; the head itself if it is tied
    `fast_head`             rows of the fast head, then zeros up to `padded(codebook size)`

    The file's own heads and the text embedding are not there; `gather` reads rows of any matrix on the host.
    Vectors are F32 whatever the file has; matrices keep their type, save tables that a GPU cannot gather from.
    """

    def __init__(self, file: GgufFile, config: ModelConfig, backend: Backend, im_end: int | None) -> None:
        """Use `Model.load`."""
        self.config = config
        self.backend = backend
        self.im_end = im_end
        self._file = file
        self._shapes = dict(expected_tensors(config))
        self._weights = Store(backend, weights=True)
        self._stores = [self._weights]
        self._tensors: dict[str, Tensor] = {}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        backend: Backend,
        progress: Progress | None = None,
        *,
        im_end: int | None = None,
        skip: Callable[[str], bool] = lambda name: False,
    ) -> "Model":
        """Copy the weights from the file to the device; `progress` is told the fraction that is done, 0 to 1.

        `im_end` is the end token, which only the tokenizer knows; without it the transformers are left out, for those
        who want the codec alone. Tensors for whose name `skip` is true are left out, too: for those who keep them in
        another form (`values`, `upload`), or on another device. Raises `ModelFileError`, or `EngineError` when the
        device is too small.
        """
        file = GgufFile.open(path)
        try:
            model = cls(file, read_config(file), backend, im_end)
            if im_end is not None and not 0 <= im_end < model.config.slow.vocab:
                raise ModelFileError(f"{Path(path).name}: no row for the end token {im_end}")
            try:
                model._copy(list(model._declare(skip)), progress or (lambda fraction: None))
            except BaseException:
                model.close()
                raise
        except BaseException:
            file.close()
            raise
        return model

    def tensor(self, name: str) -> Tensor:
        """Raises `KeyError` for what is not on the device."""
        return self._tensors[name]

    def has(self, name: str) -> bool:
        return name in self._tensors

    @property
    def slow_layers(self) -> range:
        """Those of the slow transformer's layers that are on the device: all, unless some were left out."""
        layers = self.config.slow.layers
        held = [layer for layer in range(layers) if self.has(f"layers.{layer}.attention_norm.weight")]
        return range(held[0], held[-1] + 1) if held else range(layers, layers)

    def values(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor of the file as it is, in PyTorch's order (the tensor's shape reversed)."""
        return self._rows(name, 0, prod(self._shapes[name][1:])).reshape(self._shapes[name][::-1])

    def digest(self, prefix: str) -> str:
        """Of the tensors whose names begin so: names, types, shapes, and the values of all that are small."""
        digest = hashlib.sha256()
        for name in sorted(self._shapes):
            if name.startswith(prefix):
                info = self._file.tensors[name]
                digest.update(f"{name} {info.type.name} {info.shape}".encode())
                if info.nbytes <= _SMALL_NBYTES:
                    digest.update(self._file.data(name).tobytes())
        return digest.hexdigest()

    def upload(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Tensor]:
        """Constants for graphs: f32, f16, i32 or i64, each array's shape reversed. They live as long as the model."""
        store = Store(self.backend, weights=True)
        self._stores.append(store)
        made = {name: store.new(_DTYPES[array.dtype], *reversed(array.shape)) for name, array in arrays.items()}
        store.allocate()
        for name, array in arrays.items():
            store.write(made[name], array)
        return made

    def gather(self, name: str, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Rows of a matrix of the file, on the host: `[n]` of them to `[n, width]`."""
        table = self._file.data(name).reshape(prod(self._shapes[name][1:]), -1)
        return dequantize(table[rows], DType[self._file.tensors[name].type.name])

    @property
    def n_bytes(self) -> int:
        """Memory that weights and constants take on the device."""
        return sum(store.n_bytes for store in self._stores)

    def close(self) -> None:
        """Give the memory back; no graph over these tensors may run any more. May be called twice."""
        for store in self._stores:
            store.close()
        self._file.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _declare(self, skip: Callable[[str], bool]) -> Iterator[_Part]:
        """Make every tensor's header; what it yields is to be copied once there is memory."""
        special = {_EMBEDDINGS, _OUTPUT, _FAST_OUTPUT}
        for name, shape in self._shapes.items():
            transformer = not name.startswith("c.")
            if name in special or (transformer and self.im_end is None) or skip(name):
                continue
            table = name in (_CODEBOOKS, _FAST_EMBEDDINGS)
            target = self._new(name, name, shape, table=table, only_multiplied=only_multiplied(name))
            yield _Part(target, name, 0, target.n_rows)
        if self.im_end is None:
            return
        slow, fast = self.config.slow, self.config.fast
        semantic, first, last = slow.codebook_size, slow.semantic_begin, slow.semantic_end + 1
        head: Tensor | None = None
        if not skip("slow_head"):
            source = _EMBEDDINGS if slow.tied_head else _OUTPUT
            head = self._new("slow_head", source, (slow.width, padded(semantic + 1)))
            yield _Part(head, source, first, last)
            yield _Part(head, source, self.im_end, self.im_end + 1, at=semantic)
        if not skip("semantic_embeddings"):
            if head and slow.tied_head and self._gatherable(head.dtype):
                self._tensors["semantic_embeddings"] = head
            else:
                rows = self._new("semantic_embeddings", _EMBEDDINGS, (slow.width, semantic + 1), table=True)
                yield _Part(rows, _EMBEDDINGS, first, last)
        if not skip("fast_head"):
            source, padded_size = _FAST_EMBEDDINGS if fast.tied_head else _FAST_OUTPUT, padded(fast.codebook_size)
            # What is repacked is written whole.
            is_whole = padded_size == fast.codebook_size
            fast_head = self._new("fast_head", source, (fast.width, padded_size), only_multiplied=is_whole)
            yield _Part(fast_head, source, 0, fast.codebook_size)

    def _new(
        self, name: str, source: str, shape: tuple[int, ...], *, table: bool = False, only_multiplied: bool = False
    ) -> Tensor:
        dtype = DType[self._file.tensors[source].type.name]
        if sum(n > 1 for n in shape) <= 1 and not table:
            dtype = DType.F32
        elif table and not self._gatherable(dtype):
            dtype = DType.F16
        self._tensors[name] = self._weights.new(dtype, *shape, only_multiplied=only_multiplied)
        return self._tensors[name]

    def _gatherable(self, dtype: DType) -> bool:
        return gatherable(GgmlType[dtype.name], on_gpu=self.backend.device != "cpu")

    def _copy(self, parts: Sequence[_Part], progress: Progress) -> None:
        self._weights.allocate()
        total = sum(part.target.dtype.row_bytes(part.target.shape[0]) * (part.stop - part.start) for part in parts)
        done = 0
        for part in parts:
            target, kind = part.target, DType[self._file.tensors[part.source].type.name]
            row_bytes = target.dtype.row_bytes(target.shape[0])
            step = target.n_rows if target.storage.repacked else max(1, _PIECE // row_bytes)
            for start in range(part.start, part.stop, step):
                stop = min(start + step, part.stop)
                if kind is target.dtype:
                    rows: npt.NDArray[np.generic] = self._raw(part.source, start, stop)
                else:
                    rows = self._rows(part.source, start, stop).astype(target.dtype.numpy)
                self._weights.write_bytes(target, rows, (part.at + start - part.start) * row_bytes)
                done += (stop - start) * row_bytes
                progress(done / total)

    def _raw(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The bytes of some rows, not copied: `[rows, row bytes]`"""
        return self._file.data(name).reshape(prod(self._shapes[name][1:]), -1)[start:stop]

    def _rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        return dequantize(self._raw(name, start, stop), DType[self._file.tensors[name].type.name])


_DTYPES = {
    np.dtype(np.float32): DType.F32,
    np.dtype(np.float16): DType.F16,
    np.dtype(np.int32): DType.I32,
    np.dtype(np.int64): DType.I64,
}
