"""A thin typed binding on ggml 0.15.3: what the engine needs of it, checked in Python.

A failed native assertion ends the process, so nothing reaches ggml before its shapes, types and bounds are known to be
what the operation takes; a mistake is an `EngineError` (of shapes: `ShapeError`) that names operation and tensors.
"""

from fishs2_daemon.engines.s2.ggml.arena import Arena
from fishs2_daemon.engines.s2.ggml.backend import Backend, Event, Memory, default_threads
from fishs2_daemon.engines.s2.ggml.dtypes import DType
from fishs2_daemon.engines.s2.ggml.emit import UnsupportedOperation
from fishs2_daemon.engines.s2.ggml.graph import Graph, GraphBuilder
from fishs2_daemon.engines.s2.ggml.quantize import dequantize, quantize
from fishs2_daemon.engines.s2.ggml.store import Store
from fishs2_daemon.engines.s2.ggml.tensor import ShapeError, Tensor

__all__ = [
    "Arena",
    "Backend",
    "DType",
    "Event",
    "Graph",
    "GraphBuilder",
    "Memory",
    "ShapeError",
    "Store",
    "Tensor",
    "UnsupportedOperation",
    "default_threads",
    "dequantize",
    "quantize",
]
