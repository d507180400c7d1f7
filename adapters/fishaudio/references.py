"""`/v1/references/*` and `/v1/health`, as fish-speech's own server has them."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from sanic import HTTPResponse, Request

from adapters.fishaudio.bodies import model_of
from adapters.fishaudio.names import ALLOWED, stored_id
from adapters.fishaudio.packing import packed
from adapters.fishaudio.schemas import VoiceName, VoiceRenaming
from adapters.openai import uploads
from adapters.openai.context import DoorContext, context_of, max_text_body_bytes
from adapters.openai.errors import HttpError, json_response
from adapters.openai.uploads import Form
from fishs2_daemon.errors import UnknownVoice
from fishs2_daemon.voices.clips import UploadedClip
from fishs2_daemon.voices.content import NewVoice
from fishs2_daemon.voices.meta import StoredVoice


async def health(request: Request) -> HTTPResponse:
    return json_response({"status": "ok"})


async def add_reference(request: Request) -> HTTPResponse:
    """Fields `id` and `text`, file `audio`. Raises `VoiceExists` (409) for an id that is taken."""
    context = context_of(request)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(context.uploads)
        form = await stack.enter_async_context(uploads.receive(request))
        held = stack.pop_all()
    stored = await context.finish(_add(context, form, held))
    return _answer(request, f"Reference {stored.title!r} was added.", reference_id=stored.title)


async def list_references(request: Request) -> HTTPResponse:
    stored = await asyncio.to_thread(context_of(request).service.catalogue.store.list)
    ids = [voice.id for voice in stored]
    return _answer(request, f"{len(ids)} references.", reference_ids=ids)


async def delete_reference(request: Request) -> HTTPResponse:
    context = context_of(request)
    async with model_of(request, VoiceName, max_text_body_bytes(context.settings)) as body:
        asked = body.reference_id
    await asyncio.to_thread(_either, context.service.catalogue.store.delete, asked)
    await context.service.refresh()
    return _answer(request, f"Reference {asked!r} was deleted.", reference_id=asked)


async def rename_reference(request: Request) -> HTTPResponse:
    context = context_of(request)
    async with model_of(request, VoiceRenaming, max_text_body_bytes(context.settings)) as body:
        old, new = body.old_reference_id, body.new_reference_id
    stored, store = _id_of(new, "new_reference_id"), context.service.catalogue.store
    await asyncio.to_thread(_either, lambda found: store.rename(found, stored), old)
    await context.service.refresh()
    return _answer(request, f"Reference {old!r} was renamed.", old_reference_id=old, new_reference_id=new)


async def _add(context: DoorContext, form: Form, held: AsyncExitStack) -> StoredVoice:
    async with held:
        name, transcript = form.text("id") or "", form.text("text")
        stored = _id_of(name, "id")
        if transcript is None:
            raise HttpError(422, "missing_required_parameter", "text: what is said in the recording", param="text")
        files = [file for file in form.files if file.name == "audio"]
        if len(files) != 1:
            raise HttpError(422, "missing_files", "audio: one recording", param="audio")
        new = NewVoice(voice_id=stored, title=name)
        clips = [UploadedClip(files[0].filename, files[0].path, transcript)]
        async with context.checks:
            made = await asyncio.to_thread(context.service.catalogue.store.create, new, clips, replace=False)
        await context.service.refresh()
        return made


def _id_of(name: str, param: str) -> str:
    if (stored := stored_id(name)) is None:
        raise HttpError(422, "invalid_value", f"{param}: {ALLOWED}", param=param)
    return stored


def _either(change: Callable[[str], object], asked: str) -> None:
    """Raises `UnknownVoice`."""
    try:
        change(asked)
    except UnknownVoice as error:
        if (stored := stored_id(asked)) in (asked, None):
            raise
        try:
            change(stored)
        except UnknownVoice:
            raise error from None


def _answer(request: Request, message: str, **more: Any) -> HTTPResponse:
    """In MessagePack, or in JSON where the client asks for it."""
    body = {"success": True, "message": message, **more}
    if request.args.get("format") == "json" or "json" in request.headers.getone("accept", ""):
        return json_response(body)
    return HTTPResponse(packed(body), content_type="application/msgpack")
