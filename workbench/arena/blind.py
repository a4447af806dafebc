"""The tab Blind: two answers without names; the vote unveils them."""

from dataclasses import dataclass

import gradio as gr

from workbench.arena.pages import card, definitions
from workbench.arena.parts import DEVICE, playable, vote_buttons
from workbench.arena.safety import plainly
from workbench.arena.service import CHOICES, SIDES, ArenaService


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
        comparison = service.blind(pool)
        facts = comparison.facts(veiled=True)
        shown = [card(facts[side], side.capitalize(), veiled=True) for side in SIDES]
        off = [gr.update(interactive=False)] * len(CHOICES)
        asked = definitions([("asked", facts["text"])])
        sounded = gr.update(value=playable(comparison.question), visible=True)
        return [comparison.id, sounded, asked, *shown, *off, "Listen to the question to its end, then vote."]

    start.click(drawn, pool, outputs, show_progress="minimal", show_progress_on=[question], api_visibility="private", **DEVICE)

    @plainly
    def listened(comparison_id):
        if not comparison_id or service.get(comparison_id).choice is not None:
            return [gr.skip()] * (len(CHOICES) + 1)
        if service.listened(comparison_id) > 0:
            return [*[gr.skip()] * len(CHOICES), "Listen to the question to its end, then vote."]
        return [*[gr.update(interactive=True)] * len(CHOICES), "Which answer is better?"]

    sound.stop(listened, current, [*buttons.values(), message], show_progress="hidden", api_visibility="private")
    return BlindTab(current, buttons, message, outs, question)
