"""`/v1/audio/voices`, `/v1/voices` and `/v1/files`: the same collection of voices under three names."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import unquote

from sanic import HTTPResponse, Request

from adapters.openai import uploads
from adapters.openai.context import DoorContext, context_of
from adapters.openai.errors import HttpError, json_response
from adapters.openai.uploads import Form
from adapters.openai.voice_entries import created_entry, engine_entry, stored_entry
from fishs2_daemon.errors import InvalidRequest, UnknownVoice
from fishs2_daemon.voices.content import NewVoice

#: Parts that hold clips, in the order in which they are taken.
_CLIPS = ("files", "audio_sample", "file")

#: The form's names for what a voice is made of.
_PARAMS = {"title": "name", "transcript": "prompt_text", "languages": "language"}


async def list_voices(request: Request) -> HTTPResponse:
    """The stored voices, then the engine's own; twice, since some clients read `data` and some `voices`."""
    entries = await _entries(context_of(request))
    return json_response({"object": "list", "data": entries, "voices": entries})


async def retrieve_voice(request: Request, voice_id: str) -> HTTPResponse:
    context, asked = context_of(request), unquote(voice_id)
    try:
        return json_response(stored_entry(await asyncio.to_thread(context.service.catalogue.store.get, asked)))
    except UnknownVoice:
        for entry in await _entries(context):
            if entry["id"].casefold() == asked.casefold():
                return json_response(entry)
        raise UnknownVoice(f"there is no voice {asked[:100]!r}", param="voice_id") from None


async def create_voice(request: Request) -> HTTPResponse:
    """Stores a voice, in the place of one with that id. Once its form has come, it is stored whoever waits for it."""
    context = context_of(request)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(context.uploads)
        form = await stack.enter_async_context(uploads.receive(request))
        held = stack.pop_all()
    return json_response(await context.finish(_create(context, form, held)))


async def delete_voice(request: Request, voice_id: str) -> HTTPResponse:
    context, asked = context_of(request), unquote(voice_id)
    await asyncio.to_thread(context.service.catalogue.store.delete, asked)
    await context.service.refresh()
    return json_response({"id": asked, "deleted": True, "object": "audio.voice.deleted"})


async def _entries(context: DoorContext) -> list[dict[str, Any]]:
    service = context.service
    stored = await asyncio.to_thread(service.catalogue.store.list)
    taken = {voice.id.casefold() for voice in stored}
    own = service.engine.voices if service.engine else ()
    return [
        *(stored_entry(voice) for voice in stored),
        *(engine_entry(voice) for voice in own if voice.id.casefold() not in taken),
    ]


async def _create(context: DoorContext, form: Form, held: AsyncExitStack) -> dict[str, Any]:
    async with held:
        if (form.text("type") or "audio_sample") != "audio_sample":
            message = "type: audio_sample; a voice is made of a recording here, not of a description"
            raise HttpError(422, "invalid_value", message, param="type")
        language = form.text("language")
        new = NewVoice(
            voice_id=form.text("voice_id"),
            title=form.text("name"),
            description=form.text("description"),
            model=form.text("model"),
            languages=(language,) if language else (),
            transcript=form.text("reference_text", "ref_text", "prompt_text"),
        )
        store = context.service.catalogue.store
        try:
            async with context.checks:
                stored = await asyncio.to_thread(store.create, new, form.clips(*_CLIPS))
        except InvalidRequest as error:
            error.param = _PARAMS.get(error.param or "", error.param)
            raise
        await context.service.refresh()
        return created_entry(stored)
