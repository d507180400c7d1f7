"""How long a server is waited for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadlines:
    """In seconds. Two attempts at a first audio fit into the service's own 30 s, and a gap is noticed before
    the service gives up."""

    connect_s: float = 3.0
    first_audio_s: float = 14.0
    gap_s: float = 15.0
    #: For a server that is busy, before the text is given up.
    patience_s: float = 10.0
    #: Servers answer this from memory.
    health_s: float = 3.0
    health_every_s: float = 5.0
    #: A voice that somebody stores there is listed here after this.
    voices_every_s: float = 15.0
    #: The first speech of a server may load its model.
    meeting_s: float = 60.0
    #: For the others, once one server is there.
    settling_s: float = 3.0


DEADLINES = Deadlines()
