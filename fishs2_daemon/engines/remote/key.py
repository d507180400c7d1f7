"""The API key that the upstreams want."""

import logging
from pathlib import Path

from fishs2_daemon.errors import EngineError

_log = logging.getLogger(__name__)

#: Longer than any key; a file that is larger is another file.
_KEY_FILE_BYTES = 4096


class ApiKey:
    """The first line of `path` that is neither blank nor a comment, as of the last `read`; empty without a path."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._value = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._value}"} if self._value else {}

    def read(self) -> None:
        """Blocks. Raises `EngineError` that names the setting and never shows what is in the file."""
        if self._path is None:
            return
        try:
            with Path(self._path).open("rb") as file:
                text = file.read(_KEY_FILE_BYTES).decode("ascii")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it holds more than ASCII"
            raise EngineError(f"FISHS2_REMOTE_API_KEY_FILE: {self._path} cannot be used: {reason}") from None
        lines = (line.strip() for line in text.splitlines())
        value = next((line for line in lines if line and not line.startswith("#")), "")
        if not value or not value.isprintable() or " " in value:
            raise EngineError(f"FISHS2_REMOTE_API_KEY_FILE: there is no key in {self._path}")
        self._value = value

    def read_again(self) -> bool:
        """Whether it is another one now. A file that is wrong in this moment changes nothing."""
        before = self._value
        try:
            self.read()
        except EngineError as error:
            _log.warning("%s; the key of before is kept", error)
        return self._value != before
