"""Texts to speak: no two are alike, so that no server answers from a cache, and all are about as long."""

from itertools import count
from math import ceil

#: What a sentence of these takes to read, at 15 letters a second.
SENTENCE_S = 5.5

#: Samples of one frame of the S2 model.
FRAME_SAMPLES = 2048

#: Sixteen words for each place; a sentence of the longest ones is still one phrase, the first of a text included.
WORDS = tuple(
    tuple(line.split())
    for line in """
quiet clever gentle hungry lonely modest nimble polite proud sleepy steady tender timid weary witty young
actor baker clerk dancer doctor driver farmer gardener guard hunter judge miller nurse painter sailor tailor
admires borrows carries cleans collects counts draws finds forgets guards hides kicks loses paints repairs sells
ancient black broken copper crooked empty golden heavy little narrow orange purple rusty silver wooden yellow
anchor barrel basket blanket bottle bucket candle carpet engine ladder lantern mirror needle pillow shovel window
airport bakery bridge canal castle cinema forest harbour island library market museum river station tower valley
spring summer autumn winter January February March April June July August September October November December May
""".strip().splitlines()
)

_COUNT = 16 ** len(WORDS)

#: Odd, so that multiplying by it changes the order of the numbers and loses none: neighbours differ in every word.
_STRIDE = 0x9E3779B1


def sentence(number: int) -> str:
    """The same one for the same number; another one for each from 0 to 16**7 - 1."""
    rest = number * _STRIDE % _COUNT
    words = []
    for choices in WORDS:
        rest, index = divmod(rest, len(choices))
        words.append(choices[index])
    who, actor, does, kind, thing, place, time = words
    return f"The {who} {actor} {does} the {kind} {thing} near the {place} every day in {time}."


class Texts:
    """Texts from the number `start` on. Each is of so many sentences as `seconds` of speech have."""

    def __init__(self, seconds: float, start: int) -> None:
        self.sentences = max(1, round(seconds / SENTENCE_S))
        self._seconds = seconds
        self._numbers = count(start)

    def frames(self, sample_rate: int) -> int:
        """Of the S2 model, that each sentence shall have."""
        return max(1, ceil(self._seconds * sample_rate / FRAME_SAMPLES / self.sentences))

    def take(self) -> str:
        """One that was not there yet."""
        return " ".join(sentence(next(self._numbers)) for _ in range(self.sentences))
