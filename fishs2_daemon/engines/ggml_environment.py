"""What ggml is told before it is loaded, whoever brings it."""

import os

_VARIABLES = {
    # With the default (spin), threads of a busy machine wait for each other: a frame of 46 ms took up to 1.8 s.
    "OMP_WAIT_POLICY": "passive",
    # A failed assertion would start a debugger on the process before it ends.
    "GGML_NO_BACKTRACE": "1",
    # FISHS2_GPU_DEVICE counts as NVIDIA's own programs do; CUDA alone would begin with the fastest card.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}


def set_environment(**more: str) -> None:
    """Those variables and `more` of them, unless the owner has set them."""
    for name, value in (_VARIABLES | more).items():
        os.environ.setdefault(name, value)
