"""The endpoints for gradio_client: contenders, ask, heard, vote, results."""

import time

import gradio as gr

import store
from workbench.arena import preferences
from workbench.arena.parts import DEVICE
from workbench.arena.safety import plainly
from workbench.arena.service import ArenaService


def add_endpoints(service: ArenaService) -> None:
    """Add the endpoints to the Blocks that are being built."""

    @plainly
    def contenders() -> list[str]:
        """Who can answer: contender@run:step/modality. `ask` also takes the short form, such as stage1/speech."""
        return [key for _, key in service.sides()]

    @plainly
    def ask(
        question: str = "",
        audio: dict | None = None,
        item: str = "",
        left: str = "",
        right: str = "",
        voice: str = "",
        cascade: bool = False,
        blind: bool = False,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> dict:
        """Ask by text, by an uploaded recording (gradio_client.handle_file) or by an item's id; whole answers.

        `comparison` in the reply is what `vote` wants. A blind one hides who answered: the app draws who is left and who
        right, and without a question the item; its answers are greedy."""
        if audio is not None and not isinstance(audio, dict):
            raise store.UserError("a recording is uploaded first: gradio_client.handle_file does that")
        recording = (audio or {}).get("path")
        default = service.default_sides()
        sides = [left or default[0], right or default[1]]
        given = bool(question or item or recording is not None)
        asked = service.ask(question, recording, item, voice, seed) if given or not blind else None
        if blind:
            return service.blind(sides, asked).facts(veiled=True)
        comparison = service.compare(asked, *sides, cascade=bool(cascade), seed=seed, temperature=temperature)
        for answer in comparison.answers.values():
            answer.run()
        return comparison.facts()

    @plainly
    def mark_played(comparison: str) -> bool:
        """Say that a blind comparison's question was listened to; only then can it be voted on. Answers when as much time
        has passed since its answers were there as the question lasts."""
        while (left := service.listened(comparison)) > 0:
            time.sleep(min(left, 1.0))
        return True

    @plainly
    def vote(comparison: str, choice: str, voter: str = "", request: gr.Request = None) -> dict:
        """left, right, tie or both_bad; the reply tells who answered."""
        return service.vote(comparison, choice, getattr(request, "username", None) or voter).facts()

    @plainly
    def results(blind_only: bool = True) -> list[str]:
        """The statistics tab as text."""
        with store.connect(service.lab) as con:
            return preferences.lines(preferences.votes(con, bool(blind_only)))

    gr.api(contenders, api_name="contenders")
    gr.api(ask, api_name="ask", **DEVICE)
    gr.api(mark_played, api_name="heard")
    gr.api(vote, api_name="vote")
    gr.api(results, api_name="results")
