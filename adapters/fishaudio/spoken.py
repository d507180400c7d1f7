"""From a client's wishes to the request that the service is asked."""

from collections.abc import AsyncIterator, Sequence, Set
from contextlib import asynccontextmanager

from adapters.fishaudio.names import stored_id
from adapters.fishaudio.schemas import TtsBody
from adapters.openai.context import DoorContext
from fishs2_daemon.references import Recording
from fishs2_daemon.speech import Priority, SamplingOverrides, SpeechRequest


@asynccontextmanager
async def spoken(
    context: DoorContext,
    body: TtsBody,
    recordings: list[Recording],
    text: str | AsyncIterator[str],
    priority: Priority,
) -> AsyncIterator[SpeechRequest]:
    """The recordings, which `recordings` loses, stay for as long as the context lasts. They go before `reference_id`.

    Raises what `References.held` does.
    """
    names = [] if recordings else await _known(context, body.reference_id)
    async with context.references.held(recordings) as clips:
        recordings.clear()
        yield SpeechRequest(
            text,
            names[0] if len(names) == 1 else None,
            sampling=SamplingOverrides(**body.given()),
            priority=priority,
            references=clips,
            voices=dict(enumerate(names)) if len(names) > 1 else {},
            clean=None if body.normalize else False,
        )


async def _known(context: DoorContext, asked: Sequence[str]) -> list[str]:
    """The ids of voices that were given a name."""
    if not asked:
        return []
    await context.service.refresh()
    ids = {voice.id.casefold() for voice in context.service.voices()}
    return [_known_as(name, ids) for name in asked]


def _known_as(name: str, ids: Set[str]) -> str:
    stored = stored_id(name)
    return name if stored is None or stored not in ids or name.casefold() in ids else stored
