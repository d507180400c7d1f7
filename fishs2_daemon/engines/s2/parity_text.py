"""Token ids and prompts against a recording."""

from collections.abc import Mapping

import numpy as np

from fishs2_daemon.engines.s2.config import SlowConfig
from fishs2_daemon.engines.s2.parity_recorded import Array, Recorded, conversations, prompt_names
from fishs2_daemon.engines.s2.parity_report import Lines
from fishs2_daemon.engines.s2.prompt import Conversation, PromptFormat, Reference, batches
from fishs2_daemon.engines.s2.tokenizer import Tokenizer


def compare_tokens(lines: Lines, tokenizer: Tokenizer, strings: object) -> None:
    """`strings` is what tokenizer_golden.json holds: objects of a text and its ids. The recording tokenizer
    recognises control tokens, as ours does in templates."""
    if not isinstance(strings, list):
        raise ValueError("no list of strings")
    wrong = [case["text"] for case in strings if tokenizer.encode_template(case["text"]) != case["ids"]]
    first = f", not {wrong[0][:40]!a}" if wrong else ""
    lines.verdict("token ids", f"{len(strings) - len(wrong)} of {len(strings)} strings equal{first}", not wrong)


def compare_prompts(
    lines: Lines, tokenizer: Tokenizer, config: SlowConfig, recorded: Recorded, meta: Mapping[str, object]
) -> None:
    form = PromptFormat(tokenizer, codebooks=config.codebooks, codebook_size=config.codebook_size)
    for name in prompt_names(recorded):
        with lines.attempt(f"{name} prompt"):
            prompt, text = recorded.get(f"{name}_prompt"), meta.get(f"text_{name}")
            transcript = meta.get(f"ref_text_{name}")
            if prompt is None or not isinstance(text, str):
                lines.skipped(f"{name} prompt", f"no {name}_prompt" if prompt is None else f"no text_{name}")
                continue
            codes = prompt[1:, (prompt[0] >= config.semantic_begin) & (prompt[0] <= config.semantic_end)]
            if codes.size and not isinstance(transcript, str):
                lines.skipped(f"{name} prompt", f"it has a reference, and no ref_text_{name}")
                continue
            references = [Reference(codes, transcript)] if isinstance(transcript, str) else []
            lines.same(f"{name} prompt", form.begin(references).ask(text).columns, prompt)
    for name, numbers in conversations(recorded).items():
        with lines.attempt(f"{name} prompts"):
            text = meta.get(f"{name}_text")
            if isinstance(text, str):
                _conversation(lines, form, name, numbers, text, recorded)
            else:
                lines.skipped(f"{name} prompts", f"no {name}_text")


def _conversation(
    lines: Lines, form: PromptFormat, name: str, numbers: list[int], text: str, recorded: Recorded
) -> None:
    """Every prompt from the text and the answers before it. The system message, whose references no file tells, is
    taken from the first prompt; so is where the text was cut, whose limit is not recorded either."""
    prompts = [recorded.get(f"{name}_prompt_{number}") for number in numbers]
    outputs = [recorded.get(f"{name}_output_{number}") for number in numbers]
    known = [prompt for prompt in prompts if prompt is not None]
    if len(known) < len(numbers) or any(output is None for output in outputs[:-1]):
        lines.skipped(f"{name} prompts", "one or more of the batches before them are not recorded")
        return
    tag = text.find("<|speaker:")
    text = text[max(tag, 0) :]  # what precedes the first tag is lost in the official engine
    cuts = {tuple(batches(text, length)): length for length in range(len(text.encode()), 0, -1)}
    fitting = [cut for cut in cuts if len(cut) == len(numbers)] or [tuple(batches(text, 200))]
    rebuilt = [_rebuilt(form, cut, known, outputs) for cut in fitting]
    best = max(rebuilt, key=lambda each: sum(map(np.array_equal, each, known)))
    if len(best) < len(numbers):
        lines.verdict(f"{name} prompts", f"the text makes {len(best)} batches, {len(numbers)} are recorded", False)
        return
    for number, found, wanted in zip(numbers, best, known, strict=False):
        lines.same(f"{name} prompt {number}", found, wanted)


def _rebuilt(
    form: PromptFormat, texts: tuple[str, ...], prompts: list[Array], outputs: list[Array | None]
) -> list[Array]:
    first = prompts[0]
    conversation = Conversation(form, first[:, : max(0, first.shape[1] - form.user_columns(texts[0]).shape[1])])
    result: list[Array] = []
    for text, prompt, output in zip(texts, prompts, outputs, strict=False):
        turn = conversation.ask(text)
        result.append(turn.columns)
        if output is not None:  # its last column is a frame that was not kept
            conversation = turn.answered(output[1:, prompt.shape[1] : -1])
    return result
