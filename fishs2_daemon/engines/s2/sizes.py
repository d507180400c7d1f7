"""The sizes that graphs, caches and heads come in, whatever the model's are."""

#: Tokens of a prefill's graphs on a GPU: a prompt is cut into the largest, its rest padded to the smallest that holds
#: it.
PREFILL_TOKENS = (32, 64, 128, 256, 512)

#: CUDA's attention kernels read cells in steps of this many.
CELLS = 256

#: Frames that one pass of the codec takes, of all streams together: more gain nothing on a processor, whose caches they
#: exceed.
FRAME_COUNTS = (8, 4, 2, 1)

#: CUDA runs a graph the first time, captures it the second, and replays it from then on.
RUNS_TO_CAPTURE = 3

#: Sorting rows beyond this takes CUDA many kernels; longer logits are sorted in chunks, which they must fill.
LONGEST_SORT = 1024
SORT_CHUNK = 256


def cells_of(context: int) -> int:
    """Cells of a slot of so many positions, and of one that nobody sees."""
    return -(-(context + 1) // CELLS) * CELLS


def padded(n: int) -> int:
    """The rows of a head for `n` logits, so that the sampler can sort them."""
    return n if n <= LONGEST_SORT else -(-n // SORT_CHUNK) * SORT_CHUNK
