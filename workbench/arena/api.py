"""The endpoints for gradio_client: contenders, ask, heard, vote, results."""

import random

import gradio as gr

import store
from workbench.arena import preferences
from workbench.arena.parts import DEVICE
from workbench.arena.safety import plainly
from workbench.arena.service import ArenaService, blind_comparison


def add_endpoints(service: ArenaService) -> None:
    """The endpoints for gradio_client: contenders, ask, heard, vote, results."""

    @plainly
    def contenders() -> list[str]:
        """Who can answer: contender@run:step/modality. `ask` also takes the short form, such as stage1/speech."""
        return [key for _, key in service.sides()]

    @plainly
    def ask(question: str = "", audio: dict | None = None, item: str = "", left: str = "", right: str = "",
            voice: str = "", cascade: bool = False, blind: bool = False, temperature: float = 0.0,
            seed: int = 0) -> dict:  # fmt: skip
        """Ask by text, by an uploaded recording (gradio_client.handle_file) or by an item's id; whole answers.

        `comparison` in the reply is what `vote` wants. A blind one hides who answered; without a question, item and
        sides are drawn by the seed."""
        default = service.default_sides()
        path = (audio or {}).get("path")
        if blind and not (question or path or item):
            comparison = blind_comparison(service, [left or default[0], right or default[1]], int(seed))
            return comparison.facts(veiled=True)
        asked = service.listener.ask(question, path, item or None, voice or None, seed=int(seed))
        sides = [left or default[0], right or default[1]]
        if blind:
            random.Random(int(seed)).shuffle(sides)
        comparison = service.compare(
            asked, *sides, cascade=cascade and not blind, blind=blind, seed=int(seed), temperature=float(temperature)
        )
        for answer in comparison.answers.values():
            answer.run()
        return comparison.facts(veiled=blind)

    @plainly
    def heard(comparison: str) -> bool:
        """Say that a blind comparison's question was listened to; only then can it be voted on."""
        service.get(comparison).heard = True
        return True

    @plainly
    def vote(comparison: str, choice: str, voter: str = "", request: gr.Request = None) -> dict:
        """left, right, tie or both_bad; the reply tells who answered."""
        return service.vote(comparison, choice, getattr(request, "username", None) or voter).facts()

    @plainly
    def results(blind_only: bool = True) -> list[str]:
        """The statistics tab as text."""
        with store.connect(service.lab) as con:
            return preferences.lines(preferences.votes(con, blind_only))

    gr.api(contenders, api_name="contenders")
    gr.api(ask, api_name="ask", **DEVICE)
    gr.api(heard, api_name="heard")
    gr.api(vote, api_name="vote")
    gr.api(results, api_name="results")
