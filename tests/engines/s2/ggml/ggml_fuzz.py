"""Random programs of graph operations, run by `test_ggml_never_aborts` in a process of their own.

Usage: python ggml_fuzz.py EXAMPLES SEED. Each step is printed before it is taken; the last one is the culprit.
"""

import sys
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fishs2_daemon.engines.s2.ggml import Backend, DType, GraphBuilder, Store, Tensor
from fishs2_daemon.errors import EngineError

#: Few sizes, so that shapes often fit each other.
SIZES = st.sampled_from([1, 2, 3, 4, 6, 8, 32, 33, 64, 256])
SMALL = st.integers(-2, 9)
TYPES = [DType.F32, DType.F32, DType.F32, DType.F16, DType.BF16, DType.I32, DType.I64, DType.Q8_0, DType.Q4_K]
INPUT_TYPES = [DType.F32, DType.F32, DType.F16, DType.I32, DType.I64]

T, S, F, D = "tensor", "small", "float", "dtype"
OPERATIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(["sqr", "sqrt", "sin", "cos", "exp", "log", "neg", "step", "tanh", "silu", "gelu_erf"], (T,)),
    **dict.fromkeys(["cumsum", "sum_rows", "mean", "argmax", "cont", "transpose", "swiglu"], (T,)),
    **dict.fromkeys(["add", "sub", "mul", "div", "copy", "swiglu", "soft_max", "ssm_conv"], (T, T)),
    **dict.fromkeys(["rms_norm", "norm"], (T, F)),
    "scale": (T, F, F), "clamp": (T, F, F), "top_k": (T, S), "largest": (T, S), "view": (T, "shape", "bytes", "offset"),
    "narrow": (T, S, S, S), "reshape": (T, "like"), "permute": (T, S, S, S, S), "cast": (T, D), "concat": (T, T, S),
    "repeat": (T, "like"), "pad": (T, "widths", "widths"), "roll": (T, S, S), "get_rows": (T, "index"),
    "set_rows": (T, T, "index"), "mul_mat": (T, T), "rope": (T, "index", F), "flash_attn": (T, T, T, T, F),
    "im2col": (T, T), "col2im_1d": (T,), "depthwise_conv": (T, T),
}  # fmt: skip
KEYWORDS = {
    "im2col": lambda d: {**_steps(d), "dtype": d(st.sampled_from(TYPES))},
    "depthwise_conv": lambda d: _steps(d),
    "col2im_1d": lambda d: {"stride": d(SMALL), "channels": d(SMALL), "crop": d(SMALL)},
}


def _steps(d: Any) -> dict[str, int]:
    return {name: d(st.integers(-1, 3)) for name in ("stride", "padding", "dilation")}


f32, f16, i32, i64 = DType.F32, DType.F16, DType.I32, DType.I64
NEARLY: dict[str, Any] = {
    "mul_mat": lambda a, b, c, d: ([(f32, (a, b, c)), (f32, (a, d, 2 * c, 2))], {}),
    "add": lambda a, b, c, d: ([(f32, (a, b, c)), (f32, (a, b))], {}),
    "concat": lambda a, b, c, d: ([(f32, (a, b, c)), (f32, (a, d, c))], {"axis": 1}),
    "swiglu": lambda a, b, c, d: ([(f32, (a, b, c)), (f32, (a, b, c))], {}),
    "soft_max": lambda a, b, c, d: ([(f32, (a, b, c, 2)), (f16, (a, b, 1, 2))], {}),
    "rope": lambda a, b, c, d: ([(f32, (2 * a, b, c)), (i32, (c,))], {"base": 1e4}),
    "flash_attn": lambda a, b, c, d: (
        [(f32, (a, b, 4, 2)), (f16, (a, c, 2, 2)), (f16, (a, c, 2, 2)), (f16, (c, b, 1, 2))], {"scale": 0.3}),
    "get_rows": lambda a, b, c, d: ([(f32, (a, 8, c)), (i32, (d, c))], {}),
    "set_rows": lambda a, b, c, d: ([(f32, (64, a)), (i64, (a,))], {}),
    "im2col": lambda a, b, c, d: ([(f16, (a, b, 1)), (f32, (a + c, b, 2))], {"dtype": f16 if d < 8 else f32}),
    "col2im_1d": lambda a, b, c, d: ([(f32, (a * b, c))], {"stride": d, "channels": b}),
    "depthwise_conv": lambda a, b, c, d: ([(f32, (a, 1, 1, b)), (f32, (a + c, 1, b, 2))], {"padding": d % 3}),
    "ssm_conv": lambda a, b, c, d: ([(f32, (8 + a, b, 2)), (f32, (9, b))], {}),
    "top_k": lambda a, b, c, d: ([(f32, (a * b, c, d))], {"k": b}),
    "largest": lambda a, b, c, d: ([(f32, (a * b, c, d))], {"k": b}),
    "argmax": lambda a, b, c, d: ([(f32, (a * b, c))], {}),
    "roll": lambda a, b, c, d: ([(f32, (a, b, c, 2))], {}),
    "scale": lambda a, b, c, d: ([(f32, (a, b, c, 2))], {"factor": 2.0}),
}  # fmt: skip


class Program:
    def __init__(self, backend: Backend, draw: Any) -> None:
        self.draw = draw
        self.store = Store(backend)
        self.pool: list[Tensor] = []
        self.indices: list[Tensor] = []
        self.backend = backend
        self.graph = GraphBuilder(backend, "fuzz")
        self.inputs = 0
        self.cells = self.store.new(draw(st.sampled_from([DType.F32, DType.F16, DType.Q8_0])), 64, 64)

    def shape(self) -> tuple[int, ...]:
        sizes = self.draw(st.lists(SIZES, min_size=1, max_size=4))
        return tuple(int(n) for n in (sizes if np.prod(sizes) <= 2**16 else sizes[:2]))

    def begin(self) -> None:
        for _ in range(self.draw(st.integers(1, 3))):
            self.attempt(self.store.new, self.draw(st.sampled_from(TYPES)), *self.shape())
        self.store.allocate()
        for i in range(self.draw(st.integers(1, 5))):
            dtype = self.draw(st.sampled_from(INPUT_TYPES))
            self.attempt(self.graph.input, f"x{i}", dtype, *self.shape())

    def attempt(self, function: Any, *arguments: Any, **keywords: Any) -> None:
        shown = [str(a) for a in arguments] + [f"{k}={v}" for k, v in keywords.items()]
        print(f"{function.__name__}({', '.join(shown)})", end="", flush=True)
        try:
            made = function(*arguments, **keywords)
        except EngineError:
            print(" refused; ", end="")
            return
        print("; ", end="")
        self.pool.append(made)
        # Indices that operations compute are the caller's word; only those of inputs are checked.
        seen = function.__name__ in ("reshape", "narrow", "permute") and arguments[0] in self.indices
        if made.dtype in (DType.I32, DType.I64) and (seen or function.__name__ == "input"):
            self.indices.append(made)

    def argument(self, kind: str) -> Any:
        draw = self.draw
        if kind == T:
            # Late ones first: chains find more than single steps.
            return self.pool[-1 - draw(st.integers(0, len(self.pool) - 1))]
        if kind == "index":
            return draw(st.sampled_from(self.indices))
        if kind == S:
            return draw(SMALL)
        if kind == F:
            return draw(st.sampled_from([0.0, 1e-5, 1.0, -1.0, 1e4]))
        if kind == D:
            return draw(st.sampled_from(TYPES))
        if kind == "offset":
            return draw(st.integers(-2, 40)) * 4
        if kind == "widths":
            return tuple(draw(st.lists(st.integers(-1, 3), max_size=4)))
        if kind == "bytes":
            return tuple(draw(st.lists(st.sampled_from([0, 2, 4, 16, 32, 34, 64, 128, 256]), max_size=3)))
        if kind == "like":
            # Sizes that fit more often than any: those of some tensor, in some order.
            return draw(st.permutations(draw(st.sampled_from(self.pool)).shape))
        return self.shape()

    def step(self) -> None:
        if self.draw(st.booleans()):
            self.nearly()
            return
        name = self.draw(st.sampled_from(sorted(OPERATIONS)))
        kinds = OPERATIONS[name]
        if "index" in kinds and not self.indices:
            return
        arguments: list[Any] = []
        for kind in kinds:
            value = self.argument(kind)
            arguments.extend(value if kind == "like" else [value])
        # Rows with NaN sort in no order, which is undefined in C++ as well.
        if name in ("top_k", "largest"):
            arguments[0] = self.fresh(DType.F32, *self.shape())
        self.attempt(getattr(self.graph, name), *arguments, **KEYWORDS.get(name, lambda d: {})(self.draw))

    def fresh(self, dtype: DType, *shape: int) -> Tensor:
        """An input of its own."""
        self.inputs += 1
        made = self.graph.input(f"f{self.inputs}", dtype, *shape)
        if dtype in (DType.I32, DType.I64):
            self.indices.append(made)
        return made

    def nearly(self) -> None:
        """An operation on inputs that fit each other, but for one dimension or type now and then."""
        draw = self.draw
        name = draw(st.sampled_from(sorted(NEARLY)))
        a, b, c, d = (draw(st.sampled_from([1, 2, 3, 4, 8, 32, 64])) for _ in range(4))
        wanted, more = NEARLY[name](a, b, c, d)
        tensors = []
        for dtype, shape in wanted:
            shape = list(shape)
            chance = draw(st.integers(0, 11))
            if chance < len(shape):
                shape[chance] = max(1, shape[chance] + draw(st.sampled_from([-1, 1, 7])))
            if chance == 11:
                dtype = draw(st.sampled_from(INPUT_TYPES))
            if np.prod(shape) > 2**18:
                return
            tensor = self.fresh(dtype, *shape)
            if chance == 10:
                try:
                    tensor = self.graph.permute(tensor, *draw(st.permutations(range(4))))
                except EngineError:
                    return
            tensors.append(tensor)
        if name == "set_rows":
            # The third is the target; as an input it would be refused.
            tensors.insert(0, self.graph.reshape(self.cells, 64, 64))
        self.attempt(getattr(self.graph, name), *tensors, **more)

    def run(self) -> None:
        for i, tensor in enumerate(self.pool):
            try:
                self.graph.output(str(i), tensor)
            except EngineError:
                continue
        print("run", flush=True)
        try:
            graph = self.graph.build()
        except EngineError:
            return
        with graph:
            for turn in range(2):
                for values in graph.inputs.values():
                    values[...] = np.arange(values.size).reshape(values.shape) % (2 + 3 * turn)
                try:
                    graph.compute()
                except EngineError:  # an index that names no row
                    return
                for i in range(len(self.pool)):
                    if str(i) in graph._outputs:
                        graph.read(str(i))


def main(examples: int, number: int) -> None:
    backend = Backend.open("cpu", threads=2)

    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def programs(data: st.DataObject) -> None:
        program = Program(backend, data.draw)
        with program.store:
            program.begin()
            if program.pool:
                for _ in range(data.draw(st.integers(1, 25))):
                    program.step()
                program.run()

    programs()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
