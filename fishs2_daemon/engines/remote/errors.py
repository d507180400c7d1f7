"""What can be wrong with an upstream. All of it reaches the caller as an `EngineError`.

EngineError
  UpstreamError         the text begins with the server's address
    UpstreamFailed      it is gone, broken, or makes no sense: another one may do
    UpstreamBusy        it asks for patience
    UpstreamRefused     it does not take the request, and another one would not either
      UpstreamLacks     it has no such route, model or voice
"""

from fishs2_daemon.errors import EngineError


class UpstreamError(EngineError):
    pass


class UpstreamFailed(UpstreamError):
    """`is_gone`: nobody is there."""

    def __init__(self, message: str, *, is_gone: bool = False) -> None:
        super().__init__(message)
        self.is_gone = is_gone


class UpstreamBusy(UpstreamError):
    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UpstreamRefused(UpstreamError):
    pass


class UpstreamLacks(UpstreamRefused):
    pass


class BrokenBody(ValueError):
    """An answer that cannot be read as audio; whose it is is not known here."""
