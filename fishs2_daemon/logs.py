"""Where log records go: stderr, which may be the journal, and a rotating file where one is asked for."""

import logging
import logging.handlers
import os
import sys

from fishs2_daemon.errors import ConfigError
from fishs2_daemon.settings import Settings

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

#: sd-daemon(3): the journal takes the severity from a `<N>` in front of the line, and the time is its own.
_JOURNAL_FORMAT = "%(name)s: %(message)s"
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        # A line break would start a record of its own, without a severity.
        return prefix + super().format(record).replace("\n", f"\n{prefix}")


def configure(settings: Settings) -> None:
    """Set up the root logger. Raises `ConfigError` where the log file cannot be opened."""
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(_JournalFormatter(_JOURNAL_FORMAT) if _is_journal() else logging.Formatter(_FORMAT))
    handlers: list[logging.Handler] = [console]
    if settings.logs_dir:
        path = settings.logs_dir / settings.app_log_file
        try:
            settings.logs_dir.mkdir(parents=True, exist_ok=True)
            file = logging.handlers.RotatingFileHandler(
                path, maxBytes=settings.log_max_bytes, backupCount=settings.log_backup_count, encoding="utf-8"
            )
        except OSError as error:
            raise ConfigError(f"FISHS2_LOGS_DIR: {str(path)!r} cannot be written ({error.strerror})") from None
        file.setFormatter(logging.Formatter(_FORMAT))
        handlers.append(file)
    logging.basicConfig(handlers=handlers, force=True)
    set_level(settings)


def _is_journal() -> bool:
    """systemd.exec(5): JOURNAL_STREAM is inherited by whatever a service starts, so stderr itself must be the one."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def set_level(settings: Settings) -> None:
    logging.getLogger().setLevel(settings.log_level)
