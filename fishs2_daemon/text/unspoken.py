"""Characters that are never read aloud: emoji, invisible marks, control characters.

As bodies of character classes (what stands between the square brackets), so that patterns can be put together.
"""

import re

#: Pictographs, dingbats, flags, skin tones, and the older symbols that are shown as emoji (Unicode's emoji-data).
EMOJI = (
    "\u231a\u231b\u2328\u23cf\u23e9-\u23fa\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2767\u2794-\u27bf\u2934\u2935"
    "\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001f0ff\U0001f18e\U0001f191-\U0001f1ff"
    "\U0001f200-\U0001faff"
)

#: The frame around a keycap's digit.
KEYCAP = "\u20e3"

#: What chooses between text and emoji, and the tags that spell a flag's region.
VARIATION = "\ufe00-\ufe0f\U000e0000-\U000e01ef"

#: Zero-width spaces, the soft hyphen, marks of direction and of annotation.
INVISIBLE = "\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffc"

#: Zero-width joiner and non-joiner: spelling between letters (Persian, Devanagari), nothing elsewhere.
JOINERS = "\u200c\u200d"

#: Control characters (a NUL would end the text for a C library), halves of surrogate pairs, non-characters.
CONTROL = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff"

#: Nothing of this is left in a phrase; a byte order mark parts words, as it does where files were joined.
UNSPOKEN = re.compile(f"[{CONTROL}\ufeff]")
