"""`/model`: the stored voices, as the hosted service shows its own."""

import asyncio
import secrets
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from urllib.parse import unquote

from sanic import HTTPResponse, Request

from adapters.fishaudio.voice_entries import AUTHOR_ID, voice_entry
from adapters.openai import uploads
from adapters.openai.context import DoorContext, context_of
from adapters.openai.errors import HttpError, json_response
from adapters.openai.uploads import Form
from fishs2_daemon.errors import VoiceExists
from fishs2_daemon.voices.clips import UploadedClip
from fishs2_daemon.voices.content import NewVoice, VoiceChanges
from fishs2_daemon.voices.meta import StoredVoice
from fishs2_daemon.voices.names import ID_CHARS, normalised

#: All that a store can hold fits on one page.
_LARGEST_PAGE = 1000

#: Digits behind an id that is taken.
_SUFFIX_BYTES = 3


async def list_voices(request: Request) -> HTTPResponse:
    """`title` is a part of the title, every `tag` and one `language` must be the voice's. There is one author. Sorted
    by id, or with `sort_by=created_at` the newest first."""
    size, number = _number(request, "page_size", 10, _LARGEST_PAGE), _number(request, "page_number", 1, None)
    store = context_of(request).service.catalogue.store
    voices = [voice for voice in await asyncio.to_thread(store.list) if _is_wanted(voice, request)]
    if request.args.get("sort_by") == "created_at":
        voices.sort(key=lambda voice: -voice.created)
    page = voices[size * (number - 1) : size * number]
    return json_response({"total": len(voices), "items": [voice_entry(voice) for voice in page]})


async def retrieve_voice(request: Request, voice_id: str) -> HTTPResponse:
    store = context_of(request).service.catalogue.store
    return json_response(voice_entry(await asyncio.to_thread(store.get, unquote(voice_id))))


async def create_voice(request: Request) -> HTTPResponse:
    """Files `voices`, and for each of them what is said in it, in `texts`. Once its form has come, the voice is stored
    whoever waits for it; its id is made of its title. A cover image is dropped."""
    context = context_of(request)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(context.uploads)
        form = await stack.enter_async_context(uploads.receive(request))
        held = stack.pop_all()
    return json_response(voice_entry(await context.finish(_create(context, form, held))), 201)


async def update_voice(request: Request, voice_id: str) -> HTTPResponse:
    """Title, description, visibility and tags, those that are given."""
    context, changes = context_of(request), VoiceChanges()
    if "content-type" in request.headers:
        async with context.uploads, uploads.receive(request) as form:
            changes = _changes(form)
    await asyncio.to_thread(context.service.catalogue.store.update, unquote(voice_id), **changes)
    await context.service.refresh()
    return json_response({})


async def delete_voice(request: Request, voice_id: str) -> HTTPResponse:
    context = context_of(request)
    await asyncio.to_thread(context.service.catalogue.store.delete, unquote(voice_id))
    await context.service.refresh()
    return json_response({})


def _number(request: Request, name: str, default: int, most: int | None) -> int:
    given = request.args.get(name, str(default))
    number = int(given) if given.isascii() and given.isdigit() and len(given) < 10 else 0
    if number < 1 or (most is not None and number > most):
        bound = f"from 1 to {most}" if most else "from 1 on"
        raise HttpError(422, "invalid_value", f"{name}: a number {bound}", param=name)
    return number


def _is_wanted(voice: StoredVoice, request: Request) -> bool:
    title, author = request.args.get("title", "").casefold(), request.args.get("author_id", AUTHOR_ID)
    languages = _folded(request.args.getlist("language", []))
    return (
        author == AUTHOR_ID
        and title in (voice.title or voice.id).casefold()
        and _folded(request.args.getlist("tag", [])) <= _folded(voice.tags)
        and (not languages or bool(languages & _folded(voice.languages)))
    )


def _folded(texts: Iterable[str]) -> set[str]:
    return {text.casefold() for text in texts}


def _changes(form: Form) -> VoiceChanges:
    changes = VoiceChanges()
    if title := form.text("title"):
        changes["title"] = title
    if "description" in form.fields:
        changes["description"] = form.text("description")
    if visibility := form.text("visibility"):
        changes["visibility"] = visibility
    if "tags" in form.fields:
        changes["tags"] = _tags(form)
    return changes


def _tags(form: Form) -> tuple[str, ...]:
    return tuple(form.fields.get("tags", ()))


async def _create(context: DoorContext, form: Form, held: AsyncExitStack) -> StoredVoice:
    async with held:
        title = form.text("title")
        if title is None:
            raise HttpError(422, "missing_required_parameter", "title: this field is required", param="title")
        for name, allowed in (("type", "tts"), ("train_mode", "fast")):
            if form.text(name) not in (allowed, None):
                raise HttpError(422, "invalid_value", f"{name}: {allowed}", param=name)
        clips = _clips(form)
        new = NewVoice(
            voice_id=normalised(title)[:ID_CHARS],
            title=title,
            description=form.text("description"),
            tags=_tags(form),
            visibility=form.text("visibility"),
        )
        async with context.checks:
            stored = await asyncio.to_thread(_store, context, new, clips)
        await context.service.refresh()
        return stored


def _clips(form: Form) -> list[UploadedClip]:
    files = [file for file in form.files if file.name == "voices"]
    texts = [text.strip() for text in form.fields.get("texts", ())]
    if not all(texts) or len(texts) != len(files):
        message = (
            f"texts: what is said in each of the recordings, of which there are {len(files)}; cloning needs the words, "
            "and nothing here writes them down"
        )
        raise HttpError(422, "missing_texts", message, param="texts")
    # The first one in alphabetical order is the one that is cloned.
    return [
        UploadedClip(f"sample_{number:02}", file.path, text)
        for number, (file, text) in enumerate(zip(files, texts, strict=True), 1)
    ]


def _store(context: DoorContext, new: NewVoice, clips: list[UploadedClip]) -> StoredVoice:
    """Under an id of its own: here a title may be there twice."""
    store = context.service.catalogue.store
    try:
        return store.create(new, clips, replace=False)
    except VoiceExists:
        suffix = f"-{secrets.token_hex(_SUFFIX_BYTES)}"
        name = (new.voice_id or "voice")[: ID_CHARS - len(suffix)] + suffix
        return store.create(replace(new, voice_id=name), clips, replace=False)
