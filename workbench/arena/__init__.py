"""The A/B app: ask by voice or text, see the text answer and the speech answer side by side, vote.

    python -m workbench.arena [--lab DIR] [--port 7860] [--host 127.0.0.1 --password ...]

Two tabs to ask in (Compare shows everything, Blind hides who answers until the vote), one with what the votes say.
Scripts ask and vote through gradio_client; see docs/arena.md. Votes are events in the lab's store.

`models`, `questions` and `answers` know no Gradio; `service` is what sessions share; `app` puts the tabs together.
`preferences` is what the votes say, and loads none of the others.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio as gr

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported


def build(
    lab: Path | str = None,
    device: str = "cpu",
    tts: str | None = None,
    recogniser: str | None = None,
    shots: int | None = None,
    keep: int = 4,
) -> gr.Blocks:
    """The A/B app on a lab (a gr.Blocks), not yet launched: `build(lab).launch()` serves it on 127.0.0.1.

    device: where the models run, one at a time. tts, recogniser: other ones than the lab's. shots: answered items
    before each question, where the checkpoint's own number is not wanted. keep: models in memory. StoreError or
    SaladError where the lab has nothing that could answer."""
    from workbench.arena import app  # Gradio takes seconds, and who reads votes needs none of it

    return app.build(lab, device, tts, recogniser, shots, keep)
