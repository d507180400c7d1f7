"""How each text is to be read: what is set, what its request asks for, and what its voice is like."""

import asyncio
import logging
from pathlib import Path

from fishs2_daemon.errors import ConfigError
from fishs2_daemon.settings import Settings
from fishs2_daemon.text.plan import TextFormat, TextPlan
from fishs2_daemon.text.replacements import Replacements

_log = logging.getLogger(__name__)


class TextPlans:
    """Raises `ConfigError` for a table of replacements that is wrong; one that becomes wrong later is told in the log,
    and the last good one stays."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stamp: tuple[Path, int] | None = None
        self._replacements = Replacements()
        if path := settings.replacements_file:
            self._replacements = Replacements.load(path)
            self._stamp = _stamp(path)

    async def plan(self, *, ssml: bool, clean: bool | None, style: str | None) -> TextPlan:
        """`clean` of None is as set; `style` is said of every phrase."""
        settings = self._settings
        return TextPlan(
            text_format=TextFormat.SSML if ssml else TextFormat.PLAIN,
            clean=settings.clean_text if clean is None else clean,
            replacements=await self._table(),
            style=f"[{style}] " if style else "",
            sentence_pause_s=settings.sentence_pause_s,
            paragraph_pause_s=settings.paragraph_pause_s,
        )

    async def _table(self) -> Replacements:
        path = self._settings.replacements_file
        if path is None:
            return Replacements()
        if (stamp := _stamp(path)) != self._stamp:
            self._stamp = stamp
            try:
                self._replacements = await asyncio.to_thread(Replacements.load, path)
            except ConfigError as error:
                _log.error("FISHS2_REPLACEMENTS_FILE: %s", error)
        return self._replacements


def _stamp(path: Path) -> tuple[Path, int] | None:
    try:
        return path, path.stat().st_mtime_ns
    except OSError:
        return None
