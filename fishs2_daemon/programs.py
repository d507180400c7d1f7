"""Other programs' answers, from those that may be missing, broken or hang."""

import shutil
import subprocess
from contextlib import suppress

#: A killed process is gone in a moment, but for one that waits for a dead device.
_REAP_S = 1.0


def answer_of(program: str, *arguments: str, timeout_s: float) -> str | None:
    """What it prints, found on the PATH; None where it is not there, fails, says nothing, or takes longer than that."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        process = subprocess.Popen(
            [path, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return None
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_REAP_S)
        return None
    finally:
        if process.stdout:
            process.stdout.close()
    return output.decode(errors="replace").strip() or None if process.returncode == 0 else None
