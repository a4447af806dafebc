"""A spoken text laid out once: its tokens as the prompt's format has them, its units, and the sequences of its patterns."""

from collections.abc import Iterable
from typing import NamedTuple

from salad.data.augmentation import Alteration
from salad.data.corpora import SpokenText
from salad.data.interleaving import InterleavedSequence, Span, SpokenUnit, interleave, units
from salad.errors import SaladError
from salad.models.prompts import PromptFormat, PromptLayout


class Layout(NamedTuple):
    """A spoken text as a prompt. `prompt_layout`: its tokens; `units`: the tokens that may be speech, each with its time in the
    recording; `words`: the number of words that the voice says in these units."""

    spoken: SpokenText
    prompt_layout: PromptLayout
    units: list[SpokenUnit]
    frame_rate: float
    words: int

    def spans(self, pattern: list[bool]) -> list[Span]:
        """Spans of a pattern over the units; frames beyond the recording's last are left out, an answer stays text."""
        spans = interleave(self.units, pattern, self.frame_rate)
        if self.units and self.units[-1].token_end < len(self.prompt_layout.ids):
            spans.append(Span(False, self.units[-1].token_end, len(self.prompt_layout.ids), 0, 0))
        last = int(self.spoken.duration_s * self.frame_rate + 1e-6)
        return [s._replace(frame_end=min(s.frame_end, last)) if s.speech else s for s in spans]

    def sequence(self, spans: list[Span]) -> InterleavedSequence:
        """The interleaved sequence of `spans`, as the prompt's format has it."""
        return self.prompt_layout.sequence(spans)


def lay_out(prompt: PromptFormat, spoken: SpokenText, frame_rate: float, prompt_layout: PromptLayout | None = None) -> Layout:
    """Lay out a spoken text for a model with this prompt format and an encoder of `frame_rate` frames a second.

    `prompt_layout`: its tokens, where they are known already (the same text at another speed)."""
    prompt_layout = prompt_layout or prompt.write(spoken.text, spoken.answer)
    words, end_s, offsets = spoken.words, spoken.duration_s, prompt_layout.offsets
    if prompt_layout.answer:  # everything after the answer begins is text, whatever the recording contains
        end_s = next((word[3] for word in words if word[1] >= prompt_layout.stop), end_s)
        words, offsets = tuple(word for word in words if word[2] <= prompt_layout.stop), offsets[: prompt_layout.answer]
    return Layout(spoken, prompt_layout, units(spoken.text[: prompt_layout.stop], offsets, words, end_s), frame_rate, len(words))


class Member(NamedTuple):
    """A sample of a batch: its sequence; for speech its spans, its recording, and what alters it."""

    sequence: InterleavedSequence
    sample_id: str
    source: str
    spans: list[Span] = []
    recording: SpokenText | None = None
    alteration: Alteration | None = None


def check_cut(layouts: Iterable[Layout], tokenizer_name: str, source: str) -> None:
    """SaladError where fewer than half of the words of these recordings can be cut from their neighbours: training would
    hardly see any speech."""
    layouts = [layout for layout in layouts if layout.words > 1]
    words, cut = sum(layout.words for layout in layouts), sum(len(layout.units) for layout in layouts)
    if 2 * cut < words:
        raise SaladError(
            f"{source}: only {cut:,} of {words:,} words can be cut from the next under the tokenizer of {tokenizer_name!r}, "
            "whose tokens do not end where words do: almost everything would stay text. Use a different LLM, or check the "
            "word times of these recordings"
        )
