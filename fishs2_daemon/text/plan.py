"""How a text is to be read."""

from dataclasses import dataclass, field
from enum import Enum

from fishs2_daemon.text.replacements import Replacements


class TextFormat(Enum):
    PLAIN = "plain"
    SSML = "ssml"


@dataclass(frozen=True, slots=True)
class TextPlan:
    """`clean`: read Markdown, HTML, emoji and the like as a person would. `style` is put before every phrase as it
    stands ("[whisper] "). The pauses are those behind a sentence and behind a paragraph."""

    text_format: TextFormat = TextFormat.PLAIN
    clean: bool = True
    replacements: Replacements = field(default_factory=Replacements)
    style: str = ""
    sentence_pause_s: float = 0.0
    paragraph_pause_s: float = 0.0


DEFAULT_PLAN = TextPlan()
