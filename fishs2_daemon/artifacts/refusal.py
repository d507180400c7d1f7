"""What went wrong on the network, in one line, with the way out."""

import socket
import ssl
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from fishs2_daemon.artifacts.artifact import Artifact
from fishs2_daemon.artifacts.errors import DownloadFailed

_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY = 401, 403, 404, 429


def refusal(artifact: Artifact, url: str, status: int, headers: Mapping[str, str], kept: str = "") -> DownloadFailed:
    """For an answer with an error's status."""
    host = _host(url)
    if status == _NOT_FOUND:
        if artifact.url:
            return _failed(artifact, f"there is nothing at {_shown(url)} (404)", kept)
        if headers.get("x-error-code") == "RepoNotFound":
            text = f"there is no repository {artifact.repository} on {host} (404); look at FISHS2_HF_REPO_ID"
            return _failed(artifact, text, kept)
        text = f"the repository {artifact.repository} on {host} has no such file (404); look at FISHS2_HF_REPO_ID"
        return _failed(artifact, text, kept)
    if status in (_UNAUTHORIZED, _FORBIDDEN):
        if artifact.url:
            return _failed(artifact, f"{host} does not give {_shown(url)} to everybody ({status})", kept)
        gated = "is gated" if headers.get("x-error-code") == "GatedRepo" else "is closed, or does not exist"
        text = (
            f"the repository {artifact.repository} on {host} {gated} ({status}): ask for access on its page there, "
            "then set HF_TOKEN to a token of that account"
        )
        return _failed(artifact, text, kept)
    if status == _TOO_MANY or status >= 500:
        return _failed(artifact, f"{host} is busy or broken ({status}); try again later", kept)
    return _failed(artifact, f"{host} refuses {_shown(url)} ({status})", kept)


def unreachable(artifact: Artifact, url: str, error: Exception, kept: str = "") -> DownloadFailed:
    """For an exception of the HTTP client or of the hub's library."""
    return _failed(artifact, _because(url, error), kept)


def _because(url: str, error: Exception) -> str:
    from huggingface_hub.errors import FileMetadataError, OfflineModeIsEnabled

    host = _host(url)
    causes = list(_chain(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return "HF_HUB_OFFLINE forbids it; unset it"
    if isinstance(error, FileMetadataError):
        return f"{host} does not answer like a hub; look at HF_ENDPOINT"
    if isinstance(error, httpx2.ProxyError) or not isinstance(error, httpx2.HTTPError | httpx2.InvalidURL):
        return f"the proxy cannot be used ({_words(error)}); look at HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY"
    if any(isinstance(cause, ssl.SSLError) or "CERTIFICATE" in str(cause) for cause in causes):
        return (
            f"{host} is not trusted: TLS fails ({_words(error)}); where a proxy looks into TLS, name its certificate "
            "with SSL_CERT_FILE; and is the clock right?"
        )
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout) and (proxy := _proxy(url)):
        return f"the proxy {proxy} is not reached ({_words(error)}); look at HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"the name {host} is not known here; look at the network connection and its DNS"
    if isinstance(error, httpx2.ConnectTimeout):
        return f"{host} does not answer; look at the network connection, or set HTTPS_PROXY where one is needed"
    if isinstance(error, httpx2.TimeoutException):
        return f"{host} fell silent; try again later"
    if isinstance(error, httpx2.ConnectError):
        return f"{host} is not reached ({_words(error)}); look at the network connection"
    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return f"{host or 'the address'} cannot be asked ({_words(error)}); look at HF_ENDPOINT and the FISHS2_*_URL"
    return f"the connection to {host} broke ({_words(error)})"


def _failed(artifact: Artifact, text: str, kept: str) -> DownloadFailed:
    return DownloadFailed(f"{artifact.file} was not fetched: {text}{kept}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _proxy(url: str) -> str:
    """The proxy that the environment names for `url`, without its password."""
    parts = urlsplit(url)
    proxies = getproxies()
    if proxy_bypass(parts.hostname or ""):
        return ""
    return _host(proxies.get(parts.scheme) or proxies.get("all") or "")


def _shown(url: str) -> str:
    """Without what may be a secret: the query of a signed address."""
    return urlsplit(url)._replace(query="", fragment="").geturl()
