"""What several tabs are made of."""

import gradio as gr
import numpy as np

from salad.speech import SAMPLE_RATE
from workbench.arena.questions import Question
from workbench.arena.service import CHOICES

DEVICE = {"concurrency_id": "device", "concurrency_limit": 1}  # one question at a time; the queue shows its position


def vote_buttons(prefix: str, interactive: bool) -> dict[str, gr.Button]:
    """The buttons of a vote: left, right, tie, both bad."""
    return {
        choice: gr.Button(f"{label}  [{key}]", elem_id=f"{prefix}-{choice}", interactive=interactive)
        for key, (choice, label) in enumerate(CHOICES.items(), 1)
    }


def playable(question: Question) -> tuple[int, np.ndarray]:
    """For gr.Audio: 16 bit, because it would change the loudness of floats."""
    return SAMPLE_RATE, (np.clip(question.samples, -1, 1) * 32767).astype(np.int16)
