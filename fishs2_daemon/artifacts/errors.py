"""What can be wrong with a model file or a runtime, below `ArtifactError`."""

from fishs2_daemon.errors import Fishs2Error


class ArtifactError(Fishs2Error):
    """A model file or a runtime cannot be read, written or removed."""

    code = "artifact"


class DownloadFailed(ArtifactError):
    """It was not fetched. What came of it is kept, unless the text says otherwise."""

    code = "download"


class CorruptArtifact(ArtifactError):
    """A file is not what it should be."""

    code = "corrupt"


class LicenseNotAccepted(ArtifactError):
    """The model's licence was not accepted here."""

    code = "license"
