"""The app: its tabs, its votes, and how it starts."""

import secrets
from pathlib import Path
from typing import Any

import gradio as gr

import store
from workbench.arena import gate, uploads
from workbench.arena.api import add_endpoints
from workbench.arena.blind import BlindTab, blind_tab
from workbench.arena.compare import CompareTab
from workbench.arena.pages import about, cards, question_html
from workbench.arena.safety import plainly, refuse_foreign_files
from workbench.arena.service import CHOICES, ArenaService
from workbench.arena.statistics import statistics_tab

HERE = Path(__file__).parent


class Arena(gr.Blocks):
    """Blocks that are safe to show: what they refuse and how they start does not depend on the caller."""

    async def preprocess_data(
        self, block_fn: gr.blocks.BlockFunction | int, inputs: list, state: Any, explicit_call: bool = False
    ) -> list:
        refuse_foreign_files(inputs)
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)

    def launch(self, hosts: tuple[str, ...] = (), **how) -> tuple:
        """Serve the app. `hosts`: further names by which visitors may call this machine, such as a proxy's; the rest as
        gr.Blocks.launch has it."""
        from starlette.middleware import Middleware

        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue")
        given = {
            "server_name": "127.0.0.1", "share": False, "max_file_size": gate.LARGEST_UPLOAD, "show_error": True, "quiet": True,
            "allowed_paths": [], "blocked_paths": [str(self.lab)], "footer_links": ["api"], "theme": theme,
            "css": (HERE / "arena.css").read_text(), "head": f"<script>{(HERE / 'arena.js').read_text()}</script>",
        } | how  # fmt: skip
        names = gate.own_names(given["server_name"], hosts)
        given["app_kwargs"] = {"middleware": [Middleware(gate.Gate, hosts=names, folder=uploads.folder())]}
        return super().launch(**given)


def build(
    lab: Path | str = None,
    device: str = "cpu",
    tts: str | None = None,
    recogniser: str | None = None,
    shots: int | None = None,
    keep: int = 4,
) -> gr.Blocks:
    """`workbench.arena.build`, which says what each option is."""
    lab = store.lab_path(lab)
    uploads.folder()  # before Gradio asks for it
    service = ArenaService(lab, device, tts, recogniser, shots, keep)
    with Arena(title="SALAD A/B", analytics_enabled=False, delete_cache=(300, 3600)) as app:
        app.lab, app.service = lab, service
        remembered = gr.BrowserState("", storage_key="salad-arena-voter", secret="salad-arena")
        gr.Markdown("# Text answer and speech answer, side by side\n" + about(service))
        with gr.Tabs():
            with gr.Tab("Compare", id="compare"):
                compare = CompareTab(service)
            with gr.Tab("Blind", id="blind"):
                blind = blind_tab(service)
            with gr.Tab("Statistics", id="statistics") as tab:
                statistics_tab(service, tab)
        with gr.Row():
            voter = gr.Textbox(
                label="Your name, under which votes are counted", max_length=80, elem_id="voter", scale=0, min_width=320
            )
        app.voter = voter
        wire_votes(service, compare, blind, voter)

        def welcome(kept: str, request: gr.Request):
            return getattr(request, "username", None) or kept or f"guest-{secrets.token_hex(3)}"

        app.load(welcome, remembered, voter, show_progress="hidden", api_visibility="private")
        voter.change(lambda name: name, voter, remembered, show_progress="hidden", api_visibility="private")
        add_endpoints(service)
    app.queue(max_size=64, default_concurrency_limit=8)
    return app


def wire_votes(service: ArenaService, compare: CompareTab, blind: BlindTab, voter: gr.Textbox) -> None:
    """The vote buttons of both tabs."""

    def handler(choice):
        @plainly
        def voted(comparison_id, voter, request: gr.Request):
            comparison = service.vote(comparison_id, choice, getattr(request, "username", None) or voter)
            facts = comparison.facts()
            off = [gr.update(interactive=False)] * len(CHOICES)
            voted_for = f"Voted: **{CHOICES[choice].lower()}**."
            if not comparison.blind:
                return [*off, voted_for]
            return [*off, voted_for + " Next question?", question_html(facts), *cards(facts)[:2]]

        return voted

    for tab in (compare, blind):
        outputs = [*tab.buttons.values(), tab.message]
        if tab is blind:
            outputs += [tab.question, *tab.outs]
        for choice, button in tab.buttons.items():
            button.click(handler(choice), [tab.current, voter], outputs, show_progress="hidden", api_visibility="private")
