"""The tab Blind: two answers without names; the vote unveils them."""

import html
import secrets
from dataclasses import dataclass

import gradio as gr

from workbench.arena.pages import card
from workbench.arena.parts import DEVICE, playable, vote_buttons
from workbench.arena.safety import plainly
from workbench.arena.service import CHOICES, SIDES, ArenaService, blind_comparison


@dataclass
class BlindTab:
    """The components of the tab that who counts votes needs."""

    current: gr.State
    buttons: dict[str, gr.Button]
    message: gr.Markdown
    outs: list[gr.HTML]
    question: gr.HTML


def blind_tab(service: ArenaService) -> BlindTab:
    """Lay the tab out and wire it."""
    gr.Markdown(
        "Listen to the question, read both answers, vote. Who gave which answer, and how it was asked, is shown after "
        "the vote. Keys: 1 left, 2 right, 3 tie, 4 both bad."
    )
    with gr.Accordion("Who takes part", open=False):
        pool = gr.CheckboxGroup(service.sides(), value=list(service.default_sides()), show_label=False, elem_id="pool")
    with gr.Row():
        start = gr.Button("Next question", variant="primary", elem_id="blind-next", scale=0, min_width=200)
    current = gr.State("")
    with gr.Row(equal_height=False):
        sound = gr.Audio(label="The question", interactive=False, buttons=[], visible=False, elem_id="blind-sound")
        question = gr.HTML(elem_id="blind-told")
    with gr.Row(equal_height=True):
        outs = [gr.HTML(card(None, title), elem_id=f"blind-{title.lower()}-answer") for title in ("Left", "Right")]
    with gr.Row():
        buttons = vote_buttons("blind", False)
    message = gr.Markdown(elem_id="blind-message")
    outputs = [current, sound, question, *outs, *buttons.values(), message]

    @plainly
    def drawn(pool):
        comparison = blind_comparison(service, pool, secrets.randbelow(2**31))
        facts = comparison.facts(veiled=True)
        shown = [card(facts[side], side.capitalize(), veiled=True) for side in SIDES]
        off = [gr.update(interactive=False)] * len(CHOICES)
        asked = f'<dl class="question"><dt>asked</dt><dd>{html.escape(facts["text"])}</dd></dl>'
        sounded = gr.update(value=playable(comparison.question), visible=True)
        return [comparison.id, sounded, asked, *shown, *off, "Listen to the question to its end, then vote."]

    start.click(
        drawn, pool, outputs, show_progress="minimal", show_progress_on=[question], api_visibility="private", **DEVICE
    )

    def listened(comparison_id):
        comparison = service.comparisons.get(comparison_id)
        if comparison is None or comparison.choice is not None:
            return [gr.skip()] * (len(CHOICES) + 1)
        comparison.heard = True
        return [*[gr.update(interactive=True)] * len(CHOICES), "Which answer is better?"]

    sound.stop(listened, current, [*buttons.values(), message], show_progress="hidden", api_visibility="private")
    return BlindTab(current, buttons, message, outs, question)
