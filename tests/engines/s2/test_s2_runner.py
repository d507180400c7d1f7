"""Continuous batching with its real threads: what a seat hears is what it would hear alone, whoever comes and goes."""

import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fishs2_daemon.engines.s2 import vocoder as vocoder_module
from fishs2_daemon.engines.s2.answer import MOST_AHEAD, Answer
from fishs2_daemon.engines.s2.codec import Decoder
from fishs2_daemon.engines.s2.generator import Generator
from fishs2_daemon.engines.s2.ggml import Backend
from fishs2_daemon.engines.s2.guards import Guard
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.prefixes import Prefixes
from fishs2_daemon.engines.s2.prompt import Columns, PromptFormat
from fishs2_daemon.engines.s2.runner import Runner
from fishs2_daemon.engines.s2.sampling import Sampling
from fishs2_daemon.engines.s2.scheduler import Seat, Stage
from fishs2_daemon.engines.s2.tiny import TINY, make_model
from fishs2_daemon.engines.s2.tokenizer import Tokenizer
from fishs2_daemon.engines.s2.vocoder import Vocoder
from fishs2_daemon.errors import EngineError

GOLDEN = Path(__file__).parents[2] / "golden"
META = json.loads((GOLDEN / "golden_meta.json").read_text())
AR = np.load(GOLDEN / "golden_ar.npz")
PROMPTS: list[Columns] = [AR["A_prompt"], AR["B_prompt"], AR["long_prompt_0"], AR["long_prompt_2"]]

GREEDY = Sampling(top_k=1, max_frames=24)
SLOTS = 4

#: A codec that is done with a frame in no time, in place of the golden one.
QUICK = replace(
    TINY, layers=1, fast_layers=1, latent=24, decoder_width=16, encoder_width=4, encoder_rates=(2, 3),
    decoder_rates=(3, 2), encoder_layers=(0, 0), codec_layers=2, codec_heads=3, codec_head_dim=6, codec_ffn=20,
)  # fmt: skip
FRAME = 24
RATE = 516  # so that a frame sounds as long as it does

#: Longer than anything here takes on a machine that is busy with other things.
PATIENCE_S = 40

prompts = PromptFormat(
    Tokenizer.open(
        GOLDEN / "tokenizer.json",
        vocab_size=META["vocab_size"],
        semantic_begin=META["semantic_begin"],
        semantic_end=META["semantic_end"],
    ),
    codebooks=10,
    codebook_size=META["codebook_size"],
)


@dataclass
class Machine:
    """A model on the device, and what is made of it once. The threads of each test are its own."""

    generator: Generator
    decoder: Decoder
    #: Of its own, for what is expected.
    whole_decoder: Decoder
    prefixes: Prefixes = field(default_factory=lambda: Prefixes(8 << 20))

    @contextmanager
    def running(self, *, run_ahead: bool = False) -> Iterator["Stage4"]:
        vocoder = Vocoder(self.decoder, RATE, FRAME)
        runner = Runner(self.generator, vocoder, self.prefixes, frame_s=FRAME / RATE, run_ahead=run_ahead)
        try:
            yield Stage4(self, runner, vocoder)
        finally:
            runner.close()
            vocoder.close()
            for track in vocoder._tracks.values():
                if track.stream:
                    track.stream.close()
            self.prefixes.clear()
            assert self.free_streams == SLOTS

    @property
    def free_streams(self) -> int:
        return len(self.decoder._streams._pool._free)

    def alone(self, prompt: Columns, sampling: Sampling = GREEDY) -> npt.NDArray[np.int32]:
        """Codes `[K, n]` of a prompt that is read whole into an empty slot. Not while a runner is there."""
        self.generator.abandon()
        self.generator.prefill(0, prompt)
        self.generator.start(0, sampling)
        frames = []
        while (codes := self.generator.step([0])[0]) is not None:
            frames.append(codes)
        return np.stack(frames, axis=1) if frames else np.zeros((10, 0), np.int32)

    def whole(self, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        with self.whole_decoder.open_stream() as stream:
            return stream.decode(codes)


@dataclass
class Heard:
    answer: Answer
    blocks: list[bytes] = field(default_factory=list)

    @property
    def samples(self) -> npt.NDArray[np.float32]:
        """Where `exact_samples` is in use."""
        return np.frombuffer(b"".join(self.blocks), np.float32)

    @property
    def frames(self) -> list[list[int]]:
        frames: list[list[int]] = self.answer.codes.T.tolist()
        return frames


@dataclass
class Stage4:
    """Four slots, and listeners."""

    machine: Machine
    runner: Runner
    vocoder: Vocoder

    def ask(
        self, seat: Seat, prompt: Columns, sampling: Sampling | None = GREEDY, *, fed: int = 0, prefix: int = 0
    ) -> Answer:
        answer = Answer(prompt, fed=fed, prefix=prefix, sampling=sampling)
        self.runner.speak(seat, answer)
        return answer

    async def hear(self, seat: Seat, answer: Answer) -> Heard:
        heard = Heard(answer)
        async with asyncio.timeout(PATIENCE_S):
            async for block in answer:
                heard.blocks.append(block.samples)
                self.runner.wake(seat)
        return heard

    async def say(self, seat: Seat, prompt: Columns, sampling: Sampling | None = GREEDY, **held: int) -> Heard:
        return await self.hear(seat, self.ask(seat, prompt, sampling, **held))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.002)

    async def quiet(self) -> None:
        """Until both threads wait for something to do."""
        for commands in (self.runner._commands, self.vocoder._commands):
            done = threading.Event()
            commands.put(done.set)
            await self.until(done.is_set)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codec") / "codec.gguf"
    make_model(path, QUICK, seed=5)
    return path


@pytest.fixture(scope="module")
def machine(backend: Backend, codec: Path) -> Iterator[Machine]:
    with (
        Backend.open("cpu", threads=1) as sound,
        Backend.open("cpu", threads=1) as other,
        Model.load(GOLDEN / "tiny-f32.gguf", backend, im_end=META["im_end"]) as model,
        Model.load(codec, sound) as codec_model,
        Decoder(codec_model, streams=SLOTS) as decoder,
        Decoder(codec_model, backend=other) as whole_decoder,
        closing(Generator(model, slots=SLOTS, context=1024, rope="f32", kv_type="f32")) as generator,
    ):
        yield Machine(generator, decoder, whole_decoder)


@pytest.fixture(scope="module")
def ending_machine(backend: Backend, ending: Path, machine: Machine) -> Iterator[Machine]:
    """One whose texts end by themselves."""
    with (
        Model.load(ending, backend, im_end=META["im_end"]) as model,
        closing(Generator(model, slots=SLOTS, context=1024, rope="f32", kv_type="f32")) as generator,
    ):
        yield Machine(generator, machine.decoder, machine.whole_decoder)


@pytest.fixture(params=[False, True], ids=["one by one", "run ahead"])
def stage(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Stage4]:
    with machine.running(run_ahead=request.param) as stage:
        yield stage


@pytest.fixture
def exact_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks carry floats: sixteen bits would hide small differences."""
    monkeypatch.setattr(vocoder_module, "_pcm16", lambda samples: samples.tobytes())


def has_frames(answer: Answer, least: int) -> bool:
    return len(answer.frames) >= least


# What is heard


async def test_a_full_batch_of_late_comers_hears_what_each_hears_alone(machine: Machine) -> None:
    wanted = [machine.alone(prompt).T.tolist() for prompt in PROMPTS]
    assert wanted[0] == AR["A_frames"][1:].T.tolist()
    for run_ahead in (False, True):
        with machine.running(run_ahead=run_ahead) as stage:
            order = [3, 0, 1, 2]
            seats = {index: stage.runner.join() for index in order}
            answers: dict[int, Answer] = {}
            for index in order:
                answers[index] = stage.ask(seats[index], PROMPTS[index])
                await stage.until(partial(has_frames, answers[index], 2))
            heard = await asyncio.gather(*(stage.hear(seats[index], answers[index]) for index in order))
            assert {seat.slot for seat in seats.values()} == set(range(SLOTS))
            for index, each in zip(order, heard, strict=True):
                assert each.frames == wanted[index]
                assert len(b"".join(each.blocks)) == 24 * FRAME * 2
                assert each.answer.was_cut


@pytest.mark.parametrize("plan", ["1", "2", "4", "8", "random", "all at once"])
async def test_streamed_sound_is_the_whole_s(
    stage: Stage4, exact_samples: None, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    chance = random.Random(plan)

    def size(*_: object) -> int:
        return int(plan) if plan.isdecimal() else chance.choice((1, 2, 4, 8))

    monkeypatch.setattr(vocoder_module, "first_block", size)
    monkeypatch.setattr(vocoder_module, "next_block", size)
    lengths = (23, 9, 16, 1)
    seats = [stage.runner.join() for _ in lengths]
    gate = threading.Event()
    together = []
    decode = stage.machine.decoder.decode

    def counted(streams: Sequence[Any], codes: Any) -> Any:
        assert gate.wait(PATIENCE_S)
        together.append(len(streams))
        return decode(streams, codes)

    monkeypatch.setattr(stage.machine.decoder, "decode", counted)
    answers = [
        stage.ask(seat, prompt, replace(GREEDY, max_frames=n))
        for seat, prompt, n in zip(seats, PROMPTS, lengths, strict=True)
    ]
    if plan == "all at once":
        await stage.until(lambda: [len(answer.frames) for answer in answers] == list(lengths))
    gate.set()
    heard = await asyncio.gather(*map(stage.hear, seats, answers))
    assert plan != "all at once" or 4 in together
    for each, n in zip(heard, lengths, strict=True):
        assert each.samples.shape == (n * FRAME,)
        assert np.abs(each.samples - stage.machine.whole(each.answer.codes)).max() <= 1e-6


async def test_sound_goes_on_over_the_answers_of_a_seat(stage: Stage4, exact_samples: None) -> None:
    seat, other = stage.runner.join(), stage.runner.join()
    aside = asyncio.create_task(stage.say(other, PROMPTS[1]))
    first = await stage.say(seat, PROMPTS[0], replace(GREEDY, max_frames=7))
    second = await stage.say(seat, PROMPTS[2], replace(GREEDY, max_frames=5))
    await aside
    both = np.concatenate([first.answer.codes, second.answer.codes], axis=1)
    whole = stage.machine.whole(both)
    assert np.abs(np.concatenate([first.samples, second.samples]) - whole).max() <= 1e-6
    # Which is not the second one by itself.
    assert np.abs(second.samples - stage.machine.whole(second.answer.codes)).max() > 1e-3


async def test_what_is_sent_is_sixteen_bits(stage: Stage4) -> None:
    heard = await stage.say(stage.runner.join(), PROMPTS[0])
    sent = np.frombuffer(b"".join(heard.blocks), "<i2")
    assert np.abs(sent / 32767 - stage.machine.whole(heard.answer.codes)).max() <= 0.5 / 32767 + 1e-6


async def test_the_first_block_of_a_late_comer_waits_for_no_long_one(
    stage: Stage4, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes before the blocks of those who have something to hear."""
    decoded: list[list[int]] = []
    wait = threading.Event()
    decode = stage.machine.decoder.decode

    def slow(streams: Any, codes: Any) -> Any:
        assert wait.wait(PATIENCE_S)
        decoded.append([given.shape[1] for given in codes])
        return decode(streams, codes)

    monkeypatch.setattr(stage.machine.decoder, "decode", slow)
    monkeypatch.setattr(vocoder_module, "next_block", lambda *_: 8)
    early, late = stage.runner.join(), stage.runner.join()
    first = stage.ask(early, PROMPTS[0], replace(GREEDY, max_frames=17))
    await stage.until(lambda: len(first.frames) == 17)
    second = stage.ask(late, PROMPTS[1], replace(GREEDY, max_frames=1))
    await stage.until(lambda: len(second.frames) == 1)
    wait.set()
    await asyncio.gather(stage.hear(early, first), stage.hear(late, second))
    # The early one's first block was on its way already. It has sixteen frames more, of which one goes along.
    assert decoded[1] == [1, 1]


async def test_frames_that_wait_for_others_are_heard_in_time(stage: Stage4) -> None:
    """As while somebody's prompt is read: the fourth, that would make a block, does not come for a while."""
    seat, frame = stage.runner.join(), np.zeros(10, np.int32)
    answer = Answer(PROMPTS[0], fed=0, prefix=0, sampling=GREEDY)
    stage.vocoder._rtf = 0.2
    stage.vocoder.put(seat, answer, frame)
    async with asyncio.timeout(PATIENCE_S):
        sizes = [len((await anext(answer)).samples)]
        for _ in range(3):
            stage.vocoder.put(seat, answer, frame)
        while sum(sizes) < 4 * FRAME * 2:
            sizes.append(len((await anext(answer)).samples))
    stage.vocoder.leave(seat)


# Cancelling, and listeners that do not read


@pytest.mark.parametrize("frames", [0, 1, 5])
async def test_cancel_frees_the_slot_within_a_frame(
    stage: Stage4, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    submitted: list[list[int]] = []
    submit = stage.machine.generator.submit

    def counted(slots: Sequence[int]) -> None:
        submitted.append(list(slots))
        submit(slots)

    monkeypatch.setattr(stage.machine.generator, "submit", counted)
    seat = stage.runner.join()
    answer = stage.ask(seat, PROMPTS[0], replace(GREEDY, max_frames=None))
    await stage.until(lambda: len(answer.frames) >= frames)
    stage.runner.leave(seat)
    before = len(submitted)
    await stage.until(lambda: seat.stage is Stage.GONE)
    await stage.quiet()
    assert len(submitted) <= before + 1
    assert stage.machine.generator.in_flight == 0
    assert stage.machine.free_streams == SLOTS
    again = stage.runner.join()
    assert (await stage.say(again, PROMPTS[1])).frames == AR["B_frames"][1:].T.tolist()
    assert again.slot == 0


async def test_cancel_in_the_middle_of_a_prompt(stage: Stage4, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of it is not read, and a seat that waits takes the slot."""
    reading, go = threading.Event(), threading.Event()
    columns_read = []
    prefill = stage.machine.generator.prefill

    def slow(slot: int, columns: Columns, start: int = 0) -> None:
        columns_read.append(columns.shape[1])
        reading.set()
        assert go.wait(PATIENCE_S)
        prefill(slot, columns, start)

    monkeypatch.setattr(stage.machine.generator, "prefill", slow)
    long = np.concatenate([PROMPTS[3]] * 3, axis=1)  # two pieces
    seats = [stage.runner.join() for _ in range(SLOTS)]
    stage.ask(seats[0], long)
    waiting = stage.runner.join()
    answer = stage.ask(waiting, PROMPTS[0])
    await stage.until(reading.is_set)
    stage.runner.leave(seats[0])
    go.set()
    assert (await stage.hear(waiting, answer)).frames == AR["A_frames"][1:].T.tolist()
    assert columns_read == [512, PROMPTS[0].shape[1]]


async def test_a_listener_that_does_not_read_holds_its_own_seat(stage: Stage4) -> None:
    slow, quick = stage.runner.join(), stage.runner.join()
    endless = replace(GREEDY, max_frames=MOST_AHEAD + 60, min_frames=MOST_AHEAD + 60)
    answer = stage.ask(slow, PROMPTS[0], endless)
    others = [await stage.say(quick, PROMPTS[1]) for _ in range(3)]
    await stage.until(lambda: slow.is_held)
    await stage.quiet()
    made = len(answer.frames)
    assert MOST_AHEAD < made <= MOST_AHEAD + 2
    others.append(await stage.say(quick, PROMPTS[1]))
    assert len(answer.frames) == made
    assert all(each.frames == AR["B_frames"][1:].T.tolist() for each in others)
    heard = await stage.hear(slow, answer)
    assert len(heard.frames) == MOST_AHEAD + 60
    assert heard.frames[:24] == AR["A_frames"][1:].T.tolist()


async def test_a_failure_reaches_a_listener_whose_seat_is_held(stage: Stage4, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more is sent that could wake the thread that makes frames."""
    seat = stage.runner.join()
    go = threading.Event()

    def failing(*_: object) -> None:
        assert go.wait(PATIENCE_S)
        raise OSError("no sound")

    monkeypatch.setattr(stage.machine.decoder, "decode", failing)
    answer = stage.ask(seat, PROMPTS[0], replace(GREEDY, max_frames=None))
    await stage.until(lambda: seat.is_held)
    go.set()
    with pytest.raises(EngineError, match="decoding failed: OSError"):
        await stage.hear(seat, answer)


# Prefixes


async def test_a_warm_voice_reads_what_follows_the_prefix(stage: Stage4, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int, int]] = []
    prefill = stage.machine.generator.prefill

    def counted(slot: int, columns: Columns, start: int = 0) -> None:
        read.append((slot, start, columns.shape[1]))
        prefill(slot, columns, start)

    monkeypatch.setattr(stage.machine.generator, "prefill", counted)
    cold, warm = stage.runner.join(), stage.runner.join()
    prompt = PROMPTS[1]
    first = await stage.say(cold, prompt, prefix=130)
    second = await stage.say(warm, prompt, prefix=130)
    assert read == [(0, 0, 175), (1, 130, 45)]
    assert first.frames == second.frames == AR["B_frames"][1:].T.tolist()
    assert len(stage.machine.prefixes) == 1
    # Another text of the voice, and the voice alone.
    read.clear()
    other = np.concatenate([prompt[:, :130], PROMPTS[0][:, 40:]], axis=1)
    await stage.say(warm, other, prefix=130)
    silent = await stage.say(cold, prompt[:, :130], None, prefix=130)
    assert read == [(1, 130, 47), (0, 129, 1)]
    assert (silent.frames, silent.answer.fed) == ([], 130)
    # A beginning that is read as fast as it is copied is not kept.
    await stage.say(cold, PROMPTS[0], prefix=63)
    assert len(stage.machine.prefixes) == 1


async def test_a_voice_that_was_made_ready_is_warm(stage: Stage4, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, seat = stage.runner.join(), stage.runner.join()
    await stage.say(ready, PROMPTS[1][:, :130], None, prefix=130)
    prefill, read = stage.machine.generator.prefill, []

    def counted(slot: int, columns: Columns, start: int = 0) -> None:
        read.append(columns.shape[1])
        prefill(slot, columns, start)

    monkeypatch.setattr(stage.machine.generator, "prefill", counted)
    assert (await stage.say(seat, PROMPTS[1], prefix=130)).frames == AR["B_frames"][1:].T.tolist()
    assert read == [45]


async def test_no_memory_for_a_prefix_is_no_error(stage: Stage4, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise EngineError("there is not enough memory")

    monkeypatch.setattr(stage.machine.generator, "save", full)
    for _ in range(2):
        heard = await stage.say(stage.runner.join(), PROMPTS[1], prefix=130)
        assert heard.frames == AR["B_frames"][1:].T.tolist()
    assert len(stage.machine.prefixes) == 0


# Conversations


class _StuckAt(Guard):
    """Stuck at its fourth frame."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__(sample_rate)
        self._left = 4

    def see(self, codes: Any, samples: Any) -> None:
        self._left -= 1
        self.is_stuck = self._left <= 0


@pytest.mark.parametrize("run_ahead", [False, True])
@pytest.mark.parametrize("how", ["stop", "length", "kept", "kept late"])
async def test_a_turn_feeds_what_its_slot_does_not_hold(
    machine: Machine, ending_machine: Machine, monkeypatch: pytest.MonkeyPatch, how: str, run_ahead: bool
) -> None:
    """And says what it would say if all of it were read anew. In `kept late` the guard sees too late that a text is
    stuck: it has ended for the one who makes frames."""
    machine = ending_machine if how == "stop" else machine
    sampling = replace(GREEDY, max_frames=40 if how == "stop" else 6)
    if how.startswith("kept"):
        monkeypatch.setattr(vocoder_module, "Guard", _StuckAt)
    if how == "kept late":
        monkeypatch.setattr(vocoder_module, "first_block", lambda *_: 8)
    elif how == "kept":
        sampling = replace(GREEDY, max_frames=300)
    read: list[tuple[int, int]] = []
    prefill = machine.generator.prefill

    def counted(slot: int, columns: Columns, start: int = 0) -> None:
        read.append((start, columns.shape[1]))
        prefill(slot, columns, start)

    told: list[tuple[Columns, npt.NDArray[np.int32]]] = []
    stops = 0
    with machine.running(run_ahead=run_ahead) as stage:
        monkeypatch.setattr(machine.generator, "prefill", counted)
        seat, noise = stage.runner.join(), stage.runner.join()
        aside = asyncio.create_task(stage.say(noise, PROMPTS[3], replace(GREEDY, max_frames=60)))
        conversation, fed = prompts.begin(), 0
        for text in (META["text_A"], "And another one.", "A third."):
            turn = conversation.ask(text)
            read.clear()
            heard = await stage.say(seat, turn.columns, sampling, fed=fed)
            pieces = [each for each in read if each != (0, PROMPTS[3].shape[1])]
            if fed:
                assert min(start for start, _ in pieces) == fed
            answer, n = heard.answer, heard.answer.codes.shape[1]
            told.append((turn.columns, answer.codes))
            assert len(b"".join(heard.blocks)) == n * FRAME * 2
            if how.startswith("kept"):
                assert (n, answer.was_cut) == (4, True)
            elif how == "length":
                assert (n, answer.was_cut) == (6, True)
            stops += not answer.was_cut
            # What ended by its length was not fed its last frame.
            held_back = 1 if how == "length" or (answer.was_cut and how == "stop") else 0
            assert answer.fed == turn.columns.shape[1] + n - held_back
            conversation, fed = turn.answered(answer.codes), answer.fed
        await aside
        monkeypatch.setattr(machine.generator, "prefill", prefill)
    assert how != "stop" or stops
    for columns, codes in told:
        alone = machine.alone(columns, sampling)
        assert np.array_equal(codes, alone[:, : codes.shape[1]])
        assert codes.shape[1] == (4 if how.startswith("kept") else alone.shape[1])


async def test_the_golden_conversation(stage: Stage4) -> None:
    """Of three batches. Each was stopped at six frames."""
    seat, fed = stage.runner.join(), 0
    for batch in range(3):
        prompt, output = AR[f"long_prompt_{batch}"], AR[f"long_output_{batch}"]
        recorded = output[1:, prompt.shape[1] : -1]
        sampling = replace(GREEDY, max_frames=recorded.shape[1])
        heard = await stage.say(seat, prompt, sampling, fed=fed)
        assert np.array_equal(heard.answer.codes, recorded)
        fed = heard.answer.fed
        assert fed == output.shape[1] - 2


async def test_no_end_before_the_least_frames(machine: Machine, ending_machine: Machine) -> None:
    """And one right behind them; whoever else is in the batch."""
    ended = ending_machine.alone(PROMPTS[0], replace(GREEDY, max_frames=90)).shape[1]
    assert 0 < ended < 40
    other = ending_machine.alone(PROMPTS[1], replace(GREEDY, max_frames=40)).T.tolist()
    longer = ending_machine.alone(PROMPTS[0], replace(GREEDY, max_frames=90, min_frames=ended + 5))
    assert longer.shape[1] >= ended + 5
    for run_ahead in (False, True):
        with ending_machine.running(run_ahead=run_ahead) as stage:
            seats = [stage.runner.join() for _ in range(3)]
            heard = await asyncio.gather(
                stage.say(seats[0], PROMPTS[0], replace(GREEDY, max_frames=90, min_frames=ended + 5)),
                stage.say(seats[1], PROMPTS[1], replace(GREEDY, max_frames=40)),
                stage.say(seats[2], PROMPTS[0], replace(GREEDY, max_frames=90, min_frames=ended)),
            )
        assert [each.answer.codes.shape[1] for each in heard][::2] == [longer.shape[1], ended]
        assert heard[0].frames[:ended] == heard[2].frames
        assert np.array_equal(heard[0].answer.codes, longer)
        assert heard[1].frames == other
        assert not heard[2].answer.was_cut


# Failures


async def test_a_round_that_fails_ends_those_who_speak(stage: Stage4, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = stage.machine.generator.submit
    rounds = 0

    def failing(slots: Sequence[int]) -> None:
        nonlocal rounds
        rounds += 1
        if rounds > 5:
            raise OSError("a device is gone")
        submit(slots)

    seats = [stage.runner.join() for _ in range(SLOTS)]
    waiting = stage.runner.join()
    answer = stage.ask(waiting, PROMPTS[1])
    with monkeypatch.context() as broken:
        broken.setattr(stage.machine.generator, "submit", failing)
        ended = await asyncio.gather(*map(stage.say, seats, PROMPTS), return_exceptions=True)
    assert [str(error) for error in ended] == SLOTS * ["the engine failed: OSError"]
    assert all(isinstance(error, EngineError) for error in ended)
    for seat in seats:
        stage.runner.leave(seat)
    assert (await stage.hear(waiting, answer)).frames == AR["B_frames"][1:].T.tolist()
    heard = await stage.say(stage.runner.join(), PROMPTS[0])
    assert heard.frames == AR["A_frames"][1:].T.tolist()


async def test_a_prompt_that_is_wrong_ends_alone(stage: Stage4) -> None:
    good, bad = stage.runner.join(), stage.runner.join()
    wrong = PROMPTS[0].copy()
    wrong[3, 5] = META["codebook_size"]
    aside = asyncio.create_task(stage.say(good, PROMPTS[1]))
    with pytest.raises(EngineError, match="does not have"):
        await stage.say(bad, wrong)
    with pytest.raises(EngineError, match="exceed the context"):
        await stage.say(bad, np.tile(PROMPTS[0], 12))
    assert (await aside).frames == AR["B_frames"][1:].T.tolist()
    assert (await stage.say(bad, PROMPTS[0])).frames == AR["A_frames"][1:].T.tolist()


async def test_a_decoder_that_fails_ends_those_who_were_heard(
    stage: Stage4, exact_samples: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = stage.machine.decoder.decode, 0

    def failing(streams: Any, codes: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise MemoryError
        return decode(streams, codes)

    seat = stage.runner.join()
    with monkeypatch.context() as broken:
        broken.setattr(stage.machine.decoder, "decode", failing)
        with pytest.raises(EngineError, match="decoding failed: MemoryError"):
            await stage.say(seat, PROMPTS[0], replace(GREEDY, max_frames=None))
    # The same seat, and from the start: what the broken stream held is not the beginning of anything.
    heard = await stage.say(seat, PROMPTS[0])
    assert heard.frames == AR["A_frames"][1:].T.tolist()
    assert np.abs(heard.samples - stage.machine.whole(heard.answer.codes)).max() <= 1e-6


async def test_no_memory_for_a_stream_ends_that_answer(stage: Stage4, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise EngineError("there is not enough memory")

    seat = stage.runner.join()
    with monkeypatch.context() as broken:
        broken.setattr(stage.machine.decoder, "open_stream", full)
        with pytest.raises(EngineError, match="not enough memory"):
            await stage.say(seat, PROMPTS[0])
    assert len((await stage.say(seat, PROMPTS[0])).frames) == 24


async def test_close_ends_every_answer(machine: Machine) -> None:
    """Those that speak, that are read, that wait for a slot or for a block; and those that come too late."""
    vocoder = Vocoder(machine.decoder, RATE, FRAME)
    runner = Runner(machine.generator, vocoder, machine.prefixes, frame_s=FRAME / RATE, run_ahead=True)
    stage = Stage4(machine, runner, vocoder)
    seats = [runner.join() for _ in range(SLOTS + 2)]
    answers = [stage.ask(seat, PROMPTS[0], replace(GREEDY, max_frames=None)) for seat in seats]
    await stage.until(lambda: len(answers[0].frames) > 3)
    await asyncio.to_thread(runner.close)
    await asyncio.to_thread(vocoder.close)
    runner.close()
    vocoder.close()
    assert not any(thread.name.startswith("s2-") for thread in threading.enumerate())
    late = stage.ask(seats[0], PROMPTS[0])
    for seat, answer in zip([*seats, seats[0]], [*answers, late], strict=True):
        with pytest.raises(EngineError, match="was closed"):
            await stage.hear(seat, answer)
    for track in vocoder._tracks.values():
        if track.stream:
            track.stream.close()


async def test_an_answer_of_a_seat_that_left_ends(stage: Stage4) -> None:
    seat = stage.runner.join()
    stage.runner.leave(seat)
    with pytest.raises(EngineError, match="left"):
        await stage.say(seat, PROMPTS[0])


async def test_a_thread_that_does_not_end_is_told_of(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may take its model's memory away."""
    go, busy = threading.Event(), threading.Event()
    prefill = machine.generator.prefill

    def stuck(*given: Any) -> None:
        busy.set()
        assert go.wait(PATIENCE_S)
        prefill(*given)

    monkeypatch.setattr("fishs2_daemon.engines.s2.runner._ENDING_S", 0.05)
    with machine.running() as stage:
        with monkeypatch.context() as slow:
            slow.setattr(machine.generator, "prefill", stuck)
            stage.ask(stage.runner.join(), PROMPTS[0])
            await stage.until(busy.is_set)
            with pytest.raises(EngineError, match="did not end"):
                stage.runner.close()
            go.set()
        monkeypatch.setattr("fishs2_daemon.engines.s2.runner._ENDING_S", 10.0)


# Everything at once


@pytest.mark.parametrize(("seed", "run_ahead"), [(1, False), (2, True)])
async def test_sixty_random_operations(machine: Machine, seed: int, run_ahead: bool) -> None:
    """Arrivals, texts of several turns, cancels at any moment, and listeners that stop reading for a while."""
    chance = random.Random(seed)
    ends: list[str] = []
    listeners: list[asyncio.Task[None]] = []
    with machine.running(run_ahead=run_ahead) as stage:
        machine.prefixes._most_bytes = 200 * machine.generator.position_bytes

        async def listen(number: int) -> None:
            seat = stage.runner.join(chance.randint(0, 1))
            try:
                conversation, fed = prompts.begin(), 0
                for _ in range(chance.randint(1, 3)):
                    turn = conversation.ask(" ".join(["word"] * chance.randint(1, 60)))
                    sampling = Sampling(seed=number, max_frames=chance.choice([0, 1, 5, 12, 40]))
                    sampling = replace(sampling, min_frames=chance.choice([0, 0, 3]))
                    answer = stage.ask(seat, turn.columns, sampling, fed=fed, prefix=chance.choice([0, 70, 80]))
                    async for _ in answer:
                        stage.runner.wake(seat)
                        if chance.random() < 0.1:
                            await asyncio.sleep(chance.random() * 0.05)
                    assert answer.codes.shape[1] <= (sampling.max_frames or 0)
                    conversation, fed = turn.answered(answer.codes), answer.fed
                ends.append("end")
            except asyncio.CancelledError:
                ends.append("cancelled")
            finally:
                stage.runner.leave(seat)

        for number in range(60):
            if chance.random() < 0.6 or not listeners:
                listeners.append(asyncio.create_task(listen(number)))
            else:
                chance.choice(listeners).cancel()
            await asyncio.sleep(chance.random() * 0.03)
            assert machine.prefixes.n_bytes <= machine.prefixes._most_bytes
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*listeners, return_exceptions=True)
        await stage.until(lambda: not stage.runner._scheduler.seats)
        await stage.quiet()
        # The others were cancelled before they began.
        assert len(ends) + sum(task.cancelled() for task in listeners) == len(listeners)
        assert {"end", "cancelled"} == set(ends)
        assert (stage.runner._answers, stage.runner._begun, stage.vocoder._tracks) == ({}, set(), {})
        assert machine.free_streams == SLOTS
        assert machine.prefixes.n_bytes <= machine.prefixes._most_bytes
        seats = [stage.runner.join() for _ in range(SLOTS)]
        heard = await asyncio.gather(*(stage.say(seat, prompt) for seat, prompt in zip(seats, PROMPTS, strict=True)))
        assert sorted(seat.slot for seat in seats if seat.slot is not None) == list(range(SLOTS))
        assert heard[0].frames == AR["A_frames"][1:].T.tolist()
        assert heard[1].frames == AR["B_frames"][1:].T.tolist()
