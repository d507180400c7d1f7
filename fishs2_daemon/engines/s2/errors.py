"""Errors that only the s2 engine raises; its worker reports them as `EngineError`s."""

from fishs2_daemon.errors import EngineError


class ModelFileError(EngineError):
    """A model file is not what it should be. One line that names the file, and the key or tensor that is wrong."""
