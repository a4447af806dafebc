"""The tab Statistics: what the votes say."""

import tempfile
from pathlib import Path

import gradio as gr

import store
from workbench.arena import pages, preferences, uploads
from workbench.arena.safety import plainly
from workbench.arena.service import ArenaService


def statistics_tab(service: ArenaService, tab: gr.Tab) -> None:
    """The tab with the statistics of the votes."""
    with gr.Row():
        blind_only = gr.Checkbox(value=True, label="Blind votes only")
        margin = gr.Slider(0.02, 0.25, value=preferences.MARGIN, step=0.01, label="Parity is 0.5 ± this")
        minimum = gr.Slider(5, 300, value=preferences.MINIMUM, step=5, label="Votes before a verdict is shown")
    shown = gr.HTML(elem_id="results")
    with gr.Row():
        again = gr.Button("Count again", size="sm", scale=0, min_width=160)
        export = gr.Button("Export the votes as CSV", size="sm", elem_id="export", scale=0, min_width=220)
    file = gr.File(label="Votes", visible=False, elem_id="exported")
    show = plainly(lambda *given: pages.results_html(service, *given))
    inputs = [blind_only, margin, minimum]
    how = {"show_progress": "minimal", "api_visibility": "private"}
    gr.on([tab.select, again.click, blind_only.change, margin.release, minimum.release], show, inputs, shown, **how)

    @plainly
    def exported(blind_only):
        with store.connect(service.lab) as con:
            table = preferences.votes(con, blind_only)
        folder = Path(tempfile.mkdtemp(dir=uploads.folder()))
        table.to_csv(folder / "votes.csv", index=False)
        return gr.update(value=str(folder / "votes.csv"), visible=True)

    export.click(exported, blind_only, file, **how)
