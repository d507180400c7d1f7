"""Where a file is fetched from, and what its source says of it."""

import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx2

from fishs2_daemon import __version__
from fishs2_daemon.artifacts.artifact import Artifact
from fishs2_daemon.artifacts.refusal import refusal, unreachable

#: The hub answers a question about a file in a fraction of this.
ASK_S = 10.0

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Remote:
    """`total` is 0 and `sha256` empty where the source says nothing. `headers` may hold a token."""

    url: str
    sha256: str
    total: int = 0
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def source(self) -> str:
        """The address without its query, which may be a signature: good for today, and nobody else's business."""
        return urlsplit(self.url)._replace(query="").geturl()


def resolve(artifact: Artifact) -> Remote:
    """Ask the hub for the file's length and hash. A plain address is believed as it is, until its answer begins.

    The file is then fetched as of the commit that was asked about. Raises `DownloadFailed`.
    """
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    headers = {"user-agent": f"fishs2-daemon/{__version__}"}
    if artifact.url:
        return Remote(artifact.url, artifact.sha256, headers=headers)
    if token := get_token():
        headers["authorization"] = f"Bearer {token}"
    endpoint = os.environ.get("HF_ENDPOINT") or None
    url = hf_hub_url(artifact.repository, artifact.file, endpoint=endpoint)
    try:
        metadata = get_hf_file_metadata(url, token=False, headers=headers, timeout=ASK_S, endpoint=endpoint)
    except HfHubHTTPError as error:
        raise refusal(artifact, url, error.response.status_code, error.response.headers) from None
    except (
        *(httpx2.HTTPError, httpx2.InvalidURL, OfflineModeIsEnabled, FileMetadataError, HFValidationError),
        *(ImportError, ValueError),  # a proxy's address that cannot be used
    ) as error:
        raise unreachable(artifact, url, error) from None
    if metadata.commit_hash:
        url = hf_hub_url(artifact.repository, artifact.file, revision=metadata.commit_hash, endpoint=endpoint)
    # A file that is not in large-file storage has the hash of a git blob for an ETag, which is not the file's own.
    sha256 = metadata.etag if metadata.etag and _SHA256.fullmatch(metadata.etag) else ""
    return Remote(url, artifact.sha256 or sha256, metadata.size or 0, headers)
