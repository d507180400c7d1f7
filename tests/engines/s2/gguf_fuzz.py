"""Opens thousands of damaged model files: each opens or raises `ModelFileError`, with little time and memory.

python gguf_fuzz.py MODEL.gguf FOLDER [SEED]
"""

import random
import resource
import struct
import sys
import time
from pathlib import Path

from fishs2_daemon.engines.s2.errors import ModelFileError
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.gguf import GgufFile
from fishs2_daemon.engines.s2.gguf_writer import header, lay_out
from fishs2_daemon.engines.s2.model_file import read_config

SMALL_FILES, MODEL_FILES = 2600, 400

#: What the process may take beyond what it has after its imports.
MEMORY = 64 << 20

NUMBERS = [0, 1, 2, 3, 8, 9, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**61, 2**63, 2**64 - 32, 2**64 - 1]


def damaged(raw: bytes, head: int, chance: random.Random) -> bytes:
    """One to three wounds, all in the first `head` bytes, or the file's end cut off."""
    body = bytearray(raw)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(min(head, len(body)) or 1)
        match chance.randrange(6):
            case 0:
                del body[chance.choice([at, chance.randrange(len(body) + 1)]) :]
            case 1:
                body[at : at + 1] = bytes([(body[at] if body else 0) ^ 1 << chance.randrange(8)])
            case 2:
                body[at : at + 8] = struct.pack("<Q", chance.choice(NUMBERS))
            case 3:
                body[at : at + 4] = struct.pack("<I", chance.choice(NUMBERS) & 0xFFFFFFFF)
            case 4:
                del body[at : at + chance.randint(1, 16)]
            case 5:
                other = chance.randrange(head)
                body[at:at] = raw[other : other + chance.randint(1, 64)]
        if not body:
            break
    return bytes(body)


def small_file() -> bytes:
    """Every kind of value and of tensor, in less than 1 KiB of header."""
    kinds = (GgmlType.F32, GgmlType.F16, GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.I32)
    tensors = lay_out((kind.name, (256, 1, 2), kind) for kind in kinds)
    values = {"general.alignment": 32, "text": "fish", "flag": True, "real": 0.5, "less": -1, "list": (1, 2, 3)}
    return header(values, tensors) + bytes(sum(info.nbytes for info in tensors))


def main() -> None:
    model, folder = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
    chance = random.Random(int(sys.argv[3]) if sys.argv[3:] else 20261121)
    with GgufFile.open(sys.argv[1]) as file:
        model_head = min(info.offset for info in file.tensors.values())
    small = small_file()
    path = folder / "damaged.gguf"
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    opened, slowest_s = 0, 0.0
    for index in range(SMALL_FILES + MODEL_FILES):
        raw, head = (small, 700) if index < SMALL_FILES else (model, model_head)
        path.write_bytes(damaged(raw, head, chance))
        start = time.process_time()
        try:
            with GgufFile.open(path) as file:
                for name in file.tensors:
                    file.data(name).max()
                if index >= SMALL_FILES:
                    read_config(file)
                opened += 1
        except ModelFileError as error:
            if "\n" in str(error) or not str(error).startswith("damaged.gguf: "):
                raise SystemExit(f"not a clear error: {error}") from error
        slowest_s = max(slowest_s, time.process_time() - start)
    if slowest_s > 2:
        raise SystemExit(f"a file took {slowest_s:.1f} s")
    print(
        f"{SMALL_FILES + MODEL_FILES} damaged files, {opened} of them open; the slowest took {slowest_s * 1000:.0f} ms"
    )


if __name__ == "__main__":
    main()
