"""Kokoro through its real classes, with random weights and a tagger of spaCy's trained on the spot (no network)."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch

from salad import SaladError
from salad.speech import load_tts
from salad.speech.kokoro import PIECE, Kokoro
from salad.speech.words import pieces


def tagger(folder):
    """A package `en_core_web_sm` as spaCy finds one, whose tagger has seen four sentences."""
    import spacy
    from spacy.training import Example

    nlp = spacy.blank("en")
    nlp.add_pipe("tok2vec", config={"model": {"@architectures": "spacy.HashEmbedCNN.v2", "width": 16, "depth": 1,
                 "embed_size": 100, "window_size": 1, "maxout_pieces": 2, "subword_features": True,
                 "pretrained_vectors": None}})  # fmt: skip
    nlp.add_pipe("tagger")
    texts = [
        ("The cat sat on the mat .", "DT NN VBD IN DT NN ."),
        ("It is red , too !", "PRP VBZ JJ , RB ."),
        ("See ( cats ) in 日本 ; now .", "VB -LRB- NNS -RRB- IN NN : RB ."),
        ("Pay 777 or 777,777,777 for café antidisestablishment now .", "VB CD CC CD IN NN NN RB ."),
    ]
    examples = [Example.from_dict(nlp.make_doc(text), {"tags": tags.split()}) for text, tags in texts]
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(40):
        nlp.update(examples, sgd=optimizer)
    package = folder / "en_core_web_sm"
    package.mkdir()
    nlp.to_disk(package / "data")
    (package / "__init__.py").write_text(
        "import pathlib, spacy\n\n\ndef load(**how):\n"
        "    return spacy.util.load_model_from_path(pathlib.Path(__file__).parent / 'data', **how)\n"
    )
    info = folder / "en_core_web_sm-3.8.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: en_core_web_sm\nVersion: 3.8.0\n")


VOCABULARY = '$;:,.!?—…"()“” ̃ʣʥʦʨᵝꭧAIOQSTWYᵊabcdefhijklmnopqrstuvwxyzɑɐɒæβɔɕçɖðʤəɚɛɜɟɡɥɨɪʝɯɰŋɳɲɴøɸθœɹɾɻʁɽʂʃʈʧʊʋʌɣɤχʎʒʔˈˌːʰʲ↓→↗↘ᵻ'
CONFIG = {
    "istftnet": {
        "upsample_kernel_sizes": [20, 12], "upsample_rates": [10, 6], "gen_istft_hop_size": 5, "gen_istft_n_fft": 20,
        "resblock_dilation_sizes": [[1, 3, 5]], "resblock_kernel_sizes": [3], "upsample_initial_channel": 512,
    },
    "dim_in": 64, "dropout": 0.2, "hidden_dim": 512, "max_conv_dim": 512, "max_dur": 2, "multispeaker": True,
    "n_layer": 2, "n_mels": 80, "n_token": 178, "style_dim": 128, "text_encoder_kernel_size": 5,
    "plbert": {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 512,
               "num_hidden_layers": 1, "dropout": 0.1},
    "vocab": {symbol: i + 1 for i, symbol in enumerate(VOCABULARY)},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    packages = tmp_path_factory.mktemp("packages")
    import spacy

    if not spacy.util.is_package("en_core_web_sm"):
        tagger(packages)
        sys.path.insert(0, str(packages))
        importlib.invalidate_caches()
    folder = tmp_path_factory.mktemp("kokoro")
    (folder / "voices").mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    torch.save({}, folder / "kokoro-v1_0.pth")
    torch.manual_seed(0)
    for voice in ("af_heart", "bm_lewis"):
        torch.save(0.1 * torch.randn(510, 1, 256), folder / "voices" / f"{voice}.pt")
    yield folder
    if str(packages) in sys.path:
        sys.path.remove(str(packages))
        sys.modules.pop("en_core_web_sm", None)


@pytest.fixture(scope="module")
def tts(folder):
    torch.manual_seed(0)
    return load_tts(f"kokoro:{folder}")


def check(utterance, text):
    for word in utterance.words:
        assert text[word.char_start : word.char_end] == word.word == word.word.strip() != ""
        assert 0 <= word.start_s < word.end_s <= utterance.duration_s + 1e-3
    for before, after in zip(utterance.words, utterance.words[1:], strict=False):
        assert before.char_end < after.char_start and before.end_s <= after.start_s


def test_words_have_times_and_characters(tts):
    assert tts.voices == ("af_heart", "bm_lewis")
    text = "The cat isn't here; it sat (again) in the café."
    for voice in tts.voices:
        utterance = tts.speak(text, voice, 0)
        check(utterance, text)
        assert [w.word for w in utterance.words] == text.split() and utterance.flags == []
        assert utterance.sample_rate == 16_000 and utterance.samples.dtype == np.float32


def test_a_long_text_is_split_at_sentences_and_its_times_go_on(tts, monkeypatch):
    text = "The cat sat on the mat. Then it ran away, as cats do! " * 15
    spans = pieces(text, PIECE)
    assert len(spans) > 2 and all(end - start <= PIECE for start, end in spans)
    assert "".join(text[start:end] for start, end in spans) == text
    monkeypatch.setattr("salad.speech.kokoro.PIECE", 60)
    text = text[:130]
    spans = pieces(text, 60)
    assert len(spans) == 3
    utterance = tts.speak(text, "af_heart", 0)
    check(utterance, text)
    assert [w.word for w in utterance.words] == text.split()
    first = tts.speak(text[slice(*spans[0])], "af_heart", 0)
    for long, short in zip(utterance.words, first.words[:-1], strict=False):
        assert long.start_s == pytest.approx(short.start_s, abs=1e-6)
    second = utterance.words[len(text[slice(*spans[0])].split())]
    assert second.start_s >= first.duration_s - 1e-3  # the piece's offset is added


def test_the_seed_draws_the_speed_and_repeats(tts, monkeypatch):
    monkeypatch.setattr(tts, "jitter", 0.6)  # with random weights a phoneme lasts one frame, or two when slow
    text = "The cat sat on the mat and it was red."
    recording, again, other = (tts.speak(text, "af_heart", seed) for seed in (1, 1, 2))
    assert np.array_equal(recording.samples, again.samples) and recording.words == again.words
    assert len(other.samples) != len(recording.samples)


def test_markup_is_not_read_as_phonemes(tts):
    text = "See [cats](/dɒɡz/) now."
    utterance = tts.speak(text, "af_heart", 0)
    check(utterance, text)
    assert utterance.words[-1].char_end == len(text)
    plain = tts.speak("See (cats)(/dɒɡz/) now.", "af_heart", 0)
    assert np.array_equal(plain.samples, utterance.samples)


def test_skipped_words_truncation_and_nothing_are_flagged(tts, monkeypatch):
    with monkeypatch.context() as without_espeak:
        without_espeak.setattr(tts._pipeline("af_heart").g2p, "fallback", None)
        text = "The xqzptw cat."
        utterance = tts.speak(text, "af_heart", 0)
        assert "skipped words" in utterance.flags and utterance.words[0].word == "The xqzptw"
    vocab = dict(tts._model.vocab)
    with monkeypatch.context() as other_espeak:  # one phoneme that Kokoro does not know is no word that is skipped
        other_espeak.setattr(tts._model, "vocab", {key: value for key, value in vocab.items() if key not in "æɪ"})
        assert tts.speak("The cat sat.", "af_heart", 0).flags == []
        other_espeak.setattr(tts._model, "vocab", {key: value for key, value in vocab.items() if key not in "kætˈˌ"})
        assert tts.speak("The cat ran.", "af_heart", 0).flags == ["skipped words"]
    assert "truncated" in tts.speak("Pay 777" + ",777" * 16 + " now.", "af_heart", 0).flags
    assert tts.speak("  ", "af_heart", 0).flags == ["empty"]


def test_what_is_missing_is_named_in_one_line(tts, folder, tmp_path, monkeypatch):
    with pytest.raises(SaladError, match='no voice "af_nobody".*af_heart'):
        tts.speak("A cat.", "af_nobody", 0)
    (tmp_path / "voices").mkdir()
    for voice in ("zf_xiaobei", "jf_alpha"):
        (tmp_path / "voices" / f"{voice}.pt").write_bytes((folder / "voices" / "af_heart.pt").read_bytes())
        with pytest.raises(SaladError, match="reads another language than English.*espeak or piper"):
            Kokoro(str(tmp_path)).speak("今天", voice, 0)
    (tmp_path / "voices" / "af_heart.pt").write_bytes((folder / "voices" / "af_heart.pt").read_bytes())
    with pytest.raises(SaladError, match="config.json is not in .*hf download hexgrad/Kokoro-82M") as error:
        Kokoro(str(tmp_path)).speak("A cat.", "af_heart", 0)
    assert "\n" not in str(error.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SaladError, match="cannot be had from hexgrad/Kokoro-82M: .*hf download") as error:
        load_tts("kokoro").speak("A cat.", "af_heart", 0)
    assert "\n" not in str(error.value)
