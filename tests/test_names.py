"""Where a model's name leads: the lab's own folder, a folder anywhere, a folder of $SALAD_MODELS, or the hub."""

import pytest

from salad import SaladError
from salad.models.names import resolve


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "models" / "whisper-tiny.en").mkdir(parents=True)
    (tmp_path / "models" / "smollm2-135m-instruct").mkdir()
    monkeypatch.setenv("SALAD_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def test_a_hub_name_stands_for_the_folder_of_its_last_part_in_lower_case(models):
    assert resolve("openai/whisper-tiny.en", None) == str(models / "whisper-tiny.en")
    assert resolve("HuggingFaceTB/SmolLM2-135M-Instruct", None) == str(models / "smollm2-135m-instruct")
    assert resolve("Qwen/Qwen2.5-3B", None) == "Qwen/Qwen2.5-3B"  # not there: the hub's


def test_the_lab_s_own_folder_goes_first(models, tmp_path):
    own = tmp_path / "lab" / "openai" / "whisper-tiny.en"
    own.mkdir(parents=True)
    assert resolve("openai/whisper-tiny.en", tmp_path / "lab") == str(own)


def test_a_models_folder_that_is_none_is_one_line(models, monkeypatch):
    monkeypatch.setenv("SALAD_MODELS", str(models / "nowhere"))
    with pytest.raises(SaladError, match="nowhere is not a folder"):
        resolve("openai/whisper-tiny.en", None)
    monkeypatch.setenv("SALAD_MODELS", "")
    assert resolve("openai/whisper-tiny.en", None) == "openai/whisper-tiny.en"


def test_a_folder_that_does_not_exist_is_no_hub_name(models, tmp_path):
    with pytest.raises(SaladError, match="no model folder 'models/teacher'"):
        resolve("models/teacher", tmp_path)
