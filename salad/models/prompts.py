"""Prompt formats: how a text is laid out for a model, and where its loss stands. The same one in training, scoring,
evaluation and the A/B app; a checkpoint keeps its name and system prompt in speech_lm.json.

`plain`: the prefix token (the tokenizer's BOS, else its end-of-text token), then the text; every token carries loss.
`chat`: the tokenizer's own chat template. The text is the user's turn, which may be speech; its answer is text and alone
carries loss, together with the token that the template ends a turn with. A text that has no answer is divided: its first
half, up to a sentence's end, is the user's turn, and the rest stands as the answer, whose end carries no loss, for there a
turn does not end.

A template is a program, and may take arguments (`sequences.template`, as {"enable_thinking": false}). What it puts before an
answer in a whole conversation (an empty "<think>" block, say) stands there in training and when it is asked. A template that
asks for an answer otherwise than it writes one down, as one that leaves a "<think>" open, is refused, for what it asks for is
not what the answer is. A template that puts in the date gets the same one every day.
"""

import json
import re
import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from salad.data.interleaving import InterleavedSequence, Span, interleaved_sequence, token_offsets
from salad.errors import SaladError

FORMATS = ("plain", "chat")
TODAY = datetime(2024, 7, 26)  # for templates that put in the date; Llama 3.1's own default
NOT_THINKING = ({"enable_thinking": False}, {"thinking": False}, {"add_thinking": False}, {"reasoning_effort": "none"})
GIVEN = ("conversation", "messages", "tools", "documents", "chat_template", "tokenize", "add_generation_prompt",
         "continue_final_message", "return_tensors", "return_dict")  # fmt: skip
MARK = "\N{OBJECT REPLACEMENT CHARACTER}"  # where a recording, or a text still unknown, stands in a rendered template


PLAIN_WORDS = "What does the small bird eat?"
CHANGED = "the tokenizer's chat template changes the user's text, so its words cannot be found in it"
APART = (
    "the tokenizer's chat template asks for an answer otherwise than it writes one down (it may want the model to think first), "
    "so an answer cannot be told from what stands around it"
)


class PromptLayout(NamedTuple):
    """A text laid out: `before`, the tokens of the text up to number `answer`, `between`, the others.

    ids: the text's own tokens; offsets: their characters [start, end) in the text, where those of an answer of its own
    count on from the text's end (the token that ends its turn has none: start and end are where the answer ends);
    answer: the first that carries loss and the first that is never speech (0, with `between` empty: all carry loss and
    any may be speech); stop: the character at which the answer begins (the text's length where any may be speech).
    """

    before: list[int]
    ids: list[int]
    offsets: list[tuple[int, int]]
    between: list[int]
    answer: int
    stop: int

    def sequence(self, spans: list[Span] | None = None) -> InterleavedSequence:
        """The interleaved sequence of `spans`, beside its text; without spans all is text."""
        spans = [Span(False, 0, len(self.ids), 0, 0)] if spans is None else spans
        return interleaved_sequence(self.before, self.ids, spans, self.between, self.answer)


class PromptFormat:
    """The format `name` of a tokenizer. `prefix`: the token that begins a plain sequence; `ends`: ids that end an
    answer; `end_of_turn`: the one among them that a chat template puts behind an answer, or None. `template`: arguments of the
    chat template.

    Raises SaladError for a tokenizer that lacks what the format needs, for a template whose answers cannot be told apart,
    that refuses or leaves out the system prompt, and for a system prompt or arguments in `plain`."""

    def __init__(self, tokenizer, name: str = "plain", system: str | None = None, template: dict | None = None):
        self.tokenizer, self.name, self.system, self.template = tokenizer, name, system, dict(template or {})
        self.prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if name not in FORMATS:
            raise SaladError(f"no prompt format {name!r}; known: {', '.join(FORMATS)}")
        if name == "plain":
            if self.prefix is None:
                raise SaladError("the tokenizer has neither a BOS nor an end-of-text token; a plain prompt needs one")
            if system is not None:
                raise SaladError("a system prompt needs the prompt format chat (sequences.prompt=chat)")
            if self.template:
                raise SaladError("arguments of a chat template need the prompt format chat (sequences.prompt=chat)")
        elif not tokenizer.chat_template:
            raise SaladError("the tokenizer has no chat template; use an instruction-tuned LLM, or sequences.prompt=plain")
        taken = sorted(self.template.keys() & set(GIVEN))
        if taken:
            raise SaladError(f"sequences.template: {', '.join(taken)} is not the template's to be given")
        self.changes_text = name == "chat" and PLAIN_WORDS not in self._render(PLAIN_WORDS)  # any text, not only some
        # what stands between the prompt that asks and the answer itself
        self._lead = self._separated() if name == "chat" and not self.changes_text else ""
        self.end_of_turn = self._end_of_turn() if name == "chat" else None
        self.ends = {i for i in (tokenizer.eos_token_id, self.end_of_turn) if i is not None}

    # --- training and scoring ---

    def write(self, text: str, answer: str | None = None) -> PromptLayout:
        """Lay out a text, in `chat` with its `answer` (`plain` does not read it). There a text without an answer that
        cannot be divided has one without tokens, so no loss."""
        if self.name == "plain":
            ids, offsets = token_offsets(self.tokenizer, text)
            return PromptLayout([self.prefix], ids, offsets, [], 0, len(text))
        ends = []
        if answer is not None and answer.strip():
            stop = len(text) + len(answer) - len(answer.lstrip())
            text += answer.rstrip()
            ends = [] if self.end_of_turn is None else [self.end_of_turn]
        else:
            stop = turn(text)
        user = text[:stop].strip()
        if not user:
            return PromptLayout(self._encode(self._render("")), [], [], [], 0, len(text))
        lead = text.index(user)
        whole = self._render(user) + self._lead + text[stop:]
        start = self._render(MARK).index(MARK)
        end, answer_at = start + len(user), len(whole) - (len(text) - stop)
        if whole[start:end] != user:
            if self.changes_text:
                raise SaladError(CHANGED)
            warnings.warn(f"the chat template changes this text, which is left out: {user[:80]!r}", stacklevel=2)
            return PromptLayout(self._encode(self._render("")), [], [], [], 0, len(text))
        ids, offsets = token_offsets(self.tokenizer, whole)
        user_tokens = [n for n, (a, b) in enumerate(offsets) if b > start and a < end]
        answered = [n for n, (a, b) in enumerate(offsets) if b > answer_at]
        char_offsets = [(max(a - start, 0) + lead, min(b, end) - start + lead) for a, b in (offsets[n] for n in user_tokens)]
        char_offsets += [(max(a - answer_at, 0) + stop, b - answer_at + stop) for a, b in (offsets[n] for n in answered)]
        first, last = user_tokens[0], user_tokens[-1] + 1
        between = ids[last : answered[0] if answered else len(ids)]
        own = [ids[n] for n in (*user_tokens, *answered)] + ends
        return PromptLayout(
            ids[:first], own, char_offsets + [(len(text), len(text))] * len(ends), between, len(user_tokens), stop
        )

    # --- answering ---

    def units(self, prompt: list, continuations: Sequence[str] = ()) -> tuple[list, list[list[int]]]:
        """Token ids and recordings of a prompt in order, and the token ids of each continuation of it.

        prompt: texts (str) and recordings (anything else), in `chat` the user's turn. A continuation begins with its
        delimiter (" Paris."). In `plain`, tokens are lm-evaluation-harness' own: of the joined text, split where the
        prompt's text ends, blanks at its end given to the continuations. A blank before a recording belongs to the
        word that is speech, and is left out. In `chat` a continuation is the answer, without its delimiter.
        """
        recordings = [part for part in prompt if not isinstance(part, str)]
        text = "".join(part if isinstance(part, str) else MARK for part in prompt)
        if text.count(MARK) != len(recordings):
            raise SaladError(f"a prompt's text must not hold the character U+{ord(MARK):04X}")
        if self.name == "chat":
            blanks = self._lead[len(self._lead.rstrip(" ")) :]  # they begin the answer's first token
            text = self._render(text.strip()) + self._lead.rstrip(" ")
            continuations = [blanks + continuation.lstrip() for continuation in continuations]
        *pieces, tail = text.split(MARK)
        units: list = [self.prefix] if self.name == "plain" else []
        for piece, recording in zip(pieces, recordings, strict=True):
            units += [*self._encode(piece.rstrip(" ")), recording]
        if not continuations:
            return units + self._encode(tail), []
        blanks = tail[len(tail.rstrip()) :] if self.name == "plain" else ""
        tail = tail[: len(tail) - len(blanks)]
        ids = self._encode(tail)
        return units + ids, [self._encode(tail + blanks + continuation)[len(ids) :] for continuation in continuations]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _render(self, user: str, answer: str | None = None) -> str:
        """The template's text of a conversation, up to where the answer begins (or through an answer)."""
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        messages.append({"role": "user", "content": user})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        given = dict(self.template)
        template = self.tokenizer.chat_template
        if isinstance(template, str) and "strftime_now" in template:
            given["chat_template"] = re.sub(
                r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""", lambda match: repr(TODAY.strftime(match[2])), template
            )  # fmt: skip
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer is None, **given
            )  # fmt: skip
        except Exception as error:  # a template is a program of the tokenizer's author: it may raise anything
            raise SaladError(f"the tokenizer's chat template refuses this: {_line(error)}") from None

    def rendered(self) -> str:
        """What the format makes of a question, up to where its answer begins; MARK stands for the question."""
        return self._render(MARK) + self._lead if self.name == "chat" else ""

    def _separated(self) -> str:
        """What stands between the prompt that asks for an answer and the answer; SaladError where the two do not meet."""
        asks = self._render(MARK)
        if self.system is not None and self.system.strip() not in asks:
            raise SaladError("the tokenizer's chat template leaves the system prompt out: set sequences.system=null")
        lead = self._lead_of()
        if lead is not None:
            return lead
        for given in NOT_THINKING:
            other = PromptFormat.__new__(PromptFormat)
            other.tokenizer, other.system, other.template = self.tokenizer, self.system, self.template | given
            try:
                works = other._lead_of() is not None
            except SaladError:
                continue
            if works:
                arguments = json.dumps(given)
                raise SaladError(f"{APART}; with --set 'sequences.template={arguments}' it does")
        raise SaladError(f"{APART}; use another LLM, sequences.prompt=plain, or sequences.template for its arguments")

    def _lead_of(self) -> str | None:
        """The lead under these arguments, the same for all questions and answers; None where there is none."""
        leads = set()
        for user, answer in ((MARK, "Yes."), (MARK, "It is made of two parts,\nand no more"), (f"{MARK} Is it so?", "No!")):
            asks, whole = self._render(user), self._render(user, answer)
            if whole.count(answer) < 1 or asks.count(user) != 1 or not whole.startswith(asks):
                return None
            behind = whole[len(asks) :]
            if answer not in behind:
                return None
            leads.add(behind[: behind.index(answer)])
        return leads.pop() if len(leads) == 1 else None

    def _end_of_turn(self) -> int | None:
        """The special token that the template puts behind an answer, where it does."""
        after = self._encode(self._render("a", MARK).rpartition(MARK)[2].lstrip())
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        return after[0] if after and after[0] in special else None


def _line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def turn(text: str) -> int:
    """The character at which the answer begins: of the sentences' beginnings the nearest to the middle, else of the
    words'. The text's length where there is none. A function of the text alone, so that checkpoints compare."""
    first = len(text) - len(text.lstrip())
    for border in (r"(?<=[.!?])[\"')\]”’]*\s+(?=\S)", r"\s+(?=\S)"):
        starts = [match.end() for match in re.finditer(border, text) if match.start() > first]
        if starts:
            return min(starts, key=lambda start: abs(start - len(text) / 2))
    return len(text)
