"""Adding one of each kind from outside the package takes under 30 lines: the how-to pages' own code, used by its name."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from salad.config import EncoderConfig, RunConfig
from salad.models.encoders import load_encoder
from salad.speech import load_tts
from salad.speech.check import check_many, load_recogniser

PAGES = Path(__file__).parent.parent / "docs" / "how-to"


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Writes a module of a page to a folder of its own on sys.path, and imports it: its assertions hold then."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def write(page: str, name: str):
        blocks = re.findall(r"^```python\n(.*?)^```", (PAGES / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)
        code = next(block for block in blocks if block.startswith(f"# {name}.py"))
        written = [line for line in code.splitlines() if line.strip() and not line.startswith(("#", "assert"))]
        assert len(written) < 30, f"{page}: {len(written)} lines"
        (tmp_path / f"{name}.py").write_text(code)
        importlib.invalidate_caches()
        made.append(name)
        return importlib.import_module(name)

    yield write
    for name in made:
        sys.modules.pop(name, None)


def test_an_encoder(outside):
    outside("add-an-encoder", "my_encoders")
    encoder = load_encoder(EncoderConfig(name="my_encoders:Energy"))
    assert encoder.is_causal and encoder(torch.randn(32_000)).shape == (25, 8)


def test_an_encoder_that_looks_ahead(outside):
    outside("add-an-encoder", "my_towers")
    encoder = load_encoder(EncoderConfig(name="my_towers:MyWavLM"))
    assert not encoder.is_causal
    assert [len(frames) for frames in encoder.each([torch.randn(8_000), torch.randn(16_000)])] == [25, 50]


def test_a_recogniser(outside):
    outside("add-a-recogniser", "my_ears")
    tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    found = check_many([tone, tone], ["high", "low"], load_recogniser("my_ears:Ears"))
    assert [one.cer for one in found][0] == 0 < found[1].cer and found[0].asr == "ears"


def test_a_voice(outside):
    outside("add-a-voice", "my_voices")
    engine = load_tts("my_voices:Beeps")
    assert len(engine.speak("Two words.", "high", 0).words) == 2


def test_a_teacher(outside):
    made = outside("add-a-teacher", "my_recipes").qwen3_4b_stage1()
    assert isinstance(made, RunConfig) and made.sequences.template == {"enable_thinking": False}
