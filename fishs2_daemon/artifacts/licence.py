"""The model's licence: said before the first download, accepted once."""

from datetime import UTC, datetime
from pathlib import Path

from fishs2_daemon.artifacts.errors import ArtifactError, LicenseNotAccepted
from fishs2_daemon.artifacts.lock import writing
from fishs2_daemon.artifacts.record import read_json, write_json

#: Name and date of the text that is accepted; a newer one has to be accepted again.
LICENSE = "Fish Audio Research License Agreement, 7 March 2026"

NOTICE = """\
S2 Pro's model files are not part of this program. Fish Audio (39 AI, INC.) licenses them to you under its
Research License Agreement of 7 March 2026; its text lies beside the model, in the repository fishaudio/s2-pro:
  * research and non-commercial use is free;
  * any commercial use, business-internal use and hosted services included, needs a written agreement with Fish Audio;
  * a product or service that uses them says "Built with Fish Audio" and comes with the agreement and its notice;
  * what the model says is yours, but must not train other foundational generative models."""

_FILE = "license-accepted.json"


def is_accepted(folder: Path) -> bool:
    """Whether somebody accepted it for the models in `folder`."""
    return read_json(folder / _FILE).get("license") == LICENSE


def accept(folder: Path, how: str) -> None:
    """Remember it. Raises `ArtifactError` where the folder cannot be written."""
    with writing(folder / _FILE, lambda: None):  # a daemon and a terminal may be at it at once
        try:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(folder / _FILE, {"license": LICENSE, "accepted": when, "by": how})
        except OSError as error:
            raise ArtifactError(f"{folder / _FILE}: cannot be written ({error.strerror})") from None


def require(folder: Path, *, given: bool) -> None:
    """`given`: by FISHS2_ACCEPT_LICENSE. Raises `LicenseNotAccepted` with what to do."""
    if is_accepted(folder):
        return
    if not given:
        raise LicenseNotAccepted(
            f"the model's licence is not accepted ({LICENSE}: research and non-commercial use only). Where you agree, "
            "run `fishs2-daemon models get --accept-license` once, or set FISHS2_ACCEPT_LICENSE=true"
        )
    accept(folder, "FISHS2_ACCEPT_LICENSE")
