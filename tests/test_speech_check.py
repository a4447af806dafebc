"""The ASR check: rates on both sides of one normaliser, recognisers by standard loading, acoustic flags."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from salad import SaladError
from salad.speech import load_tts
from salad.speech.check import CTCRecogniser, acoustic_flags, check, check_many, load_recogniser, normalise
from tests.test_speech_spoken import CHINESE, GERMAN, SAID

TEXT = "What color is the cat? Blue."
spoken = load_tts("espeak").speak(TEXT, "en-us", 0).samples


class Hears:
    """A recogniser of one's own: hears what it is told to."""

    name = "told"

    def __init__(self, *transcripts):
        self.transcripts = list(transcripts)

    def transcribe(self, samples):
        return [self.transcripts.pop(0) for _ in samples]


def test_both_sides_go_through_one_normaliser_and_the_raw_rates_stand_beside():
    got = check(spoken, "It cost $1,000, Dr. Smith.", Hears("it cost one thousand dollars doctor smith"))
    assert (got.cer, got.wer) == (0, 0) and got.raw_cer > 0.3 and got.raw_wer > 0.5
    assert got.text_asr.startswith("it cost one") and got.asr == "told"
    wrong = check(spoken, "The cat sat", Hears("the hat sat"))
    assert wrong.wer == pytest.approx(1 / 3) and wrong.cer == pytest.approx(1 / 11)
    assert normalise("It's 20% of the colour!") == normalise("it is twenty percent of the colour")


def test_an_address_is_compared_as_it_is_read():
    statement = "Go to example dot com."
    got = check(spoken, "Go to https://www.example.com/a/b", Hears("go to example dot com"), spoken=statement)
    assert got.cer == 0


def test_what_was_wrongly_spoken_shows_as_an_error_though_the_voice_said_what_it_was_given():
    for text, wrong, right in [
        ("Over 10k people.", "Over one 0k people.", "over ten thousand people"),
        ("In the 1990s.", "In the nineteen ninety seconds.", "in the nineteen nineties"),
        ("Is it? No. It is.", "Is it? number It is.", "is it no it is"),
    ]:
        assert check(spoken, text, Hears(wrong.lower()), spoken=wrong).cer > 0.05
        assert check(spoken, text, Hears(right), spoken=wrong).cer == 0


@pytest.mark.parametrize("language, cases", [("en", SAID), ("de", GERMAN), ("zh", CHINESE)])
def test_perfect_speech_has_no_error_however_the_recogniser_writes_it(language, cases):
    for text, message in cases.items():
        for written in (text, message, re.sub(r"[^\w\s']", " ", message.lower())):
            assert normalise(written, language) == normalise(text, language), text


@pytest.mark.parametrize(
    "text, transcript",
    [
        ("I don’t know; it’s “fine”.", "I don't know. It's fine."),
        ("Meet at 3:45pm.", "Meet at 3:45 PM"),
        ("the U.S. and the café", "the US and the cafe\u0301"),
        ("It sat (again) on [the] mat.", "It sat again on the mat"),
        ("1,500 or 150 people", "fifteen hundred or one hundred fifty people"),
        ("Call 555-1234.", "call five five five one two three four"),
    ],
)
def test_quotes_letters_and_accents_are_no_errors(text, transcript):
    assert check(spoken, text, Hears(transcript)).cer == 0


def test_other_languages_have_rates_of_their_own():
    got = check(spoken, "Es kostet 3 €.", Knows("es kostet drei euro"), language="de")
    assert (got.cer, got.wer) == (0, 0)
    got = check(spoken, "今天25℃，很好。", Knows("今天二十五摄氏度 很坏"), language="zh")
    assert got.cer == got.wer == pytest.approx(1 / 10)
    assert check(spoken, "这里的传统很好，25个人", Knows("這裡的傳統很好二十五個人"), language="zh").cer == 0


class Knows(Hears):
    """One that is told the language."""

    def transcribe(self, samples, languages):
        assert set(languages) <= {"de", "zh"}
        return super().transcribe(samples)


def test_empty_texts_and_empty_sound_give_numbers():
    assert check(spoken, "!?", Hears("")).cer == 0 and check(spoken, "!?", Hears("oh")).cer == 1
    empty, good = check_many([np.zeros(0, np.float32), spoken], [TEXT, TEXT], Hears(TEXT))
    assert empty.cer == empty.wer == 1 and empty.flags == ["empty"] and good.cer == 0 and good.flags == []


def test_good_speech_has_no_acoustic_flag():
    from salad.speech import room

    tts = load_tts("espeak")
    for seed, voice in enumerate(tts.voices):
        for text in (TEXT, "The whale lives in the sea. It is a mammal, and it sings at night."):
            utterance = tts.speak(text, voice, 0)
            assert acoustic_flags(utterance.samples, text) == []
            assert acoustic_flags(room.record(utterance, seed).samples, text) == []


@pytest.mark.parametrize(
    "flag, samples, rate",
    [
        ("clipping", np.clip(20 * spoken, -1, 1), 16_000),
        ("silence", np.zeros(32_000, np.float32), 16_000),
        ("silence", np.concatenate([spoken, np.zeros(40_000, np.float32)]), 16_000),
        ("cut off", spoken[:16_000], 16_000),
        ("speaking rate", spoken[:8_000], 16_000),
        ("speaking rate", np.tile(spoken, 6), 16_000),
        ("sample rate", spoken, 22_050),
        ("empty", spoken[:100], 16_000),
        ("not finite", np.where(np.arange(len(spoken)) == 99, np.nan, spoken), 16_000),
        ("duration", spoken, 16_000),
    ],
)
def test_a_bad_recording_is_flagged(flag, samples, rate):
    assert flag in acoustic_flags(samples, TEXT, rate, expected_s=10 if flag == "duration" else None)


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory):
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder = tmp_path_factory.mktemp("ctc")
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, feat_extract_norm="layer",
        do_stable_layer_norm=True, pad_token_id=0,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))).save_pretrained(folder)
    return str(folder)


def test_a_ctc_model_loads_and_batches_change_nothing(ctc_folder):
    recogniser = load_recogniser(ctc_folder)
    assert isinstance(recogniser, CTCRecogniser) and recogniser.hop == 320
    recordings = [spoken, spoken[5_000:15_000], spoken[:20_000]]
    together = recogniser.transcribe(recordings)
    assert together == [recogniser.transcribe([recording])[0] for recording in recordings] and any(together)
    batch, alone = recogniser.log_probs(recordings), recogniser.log_probs([recordings[1]])[0]
    assert batch[1].shape == alone.shape and np.abs(batch[1] - alone).max() < 1e-3
    assert check(spoken, TEXT, recogniser).cer > 0.3  # random weights hear nothing right
    assert recogniser.transcribe([]) == []


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_ctc_model_hears_a_recording_alone_as_in_a_batch_whatever_its_norm_and_mask(ctc_folder, tmp_path, norm, masked):
    """facebook/wav2vec2-base-960h has a group norm and no attention mask; HuBERT's and XLS-R's kinds differ in either."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2Processor

    config = Wav2Vec2Config.from_pretrained(ctc_folder, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")
    torch.manual_seed(1)
    model = Wav2Vec2ForCTC(config).eval()
    model.save_pretrained(tmp_path)
    processor = Wav2Vec2Processor.from_pretrained(ctc_folder)
    processor.feature_extractor.return_attention_mask = masked
    processor.save_pretrained(tmp_path)
    recogniser = load_recogniser(str(tmp_path))
    recordings = [spoken, spoken[5_000:15_000], spoken[:20_000], spoken[1_000:9_000]]
    together = recogniser.log_probs(recordings)
    for recording, result in zip(recordings, together, strict=True):
        given = processor.feature_extractor(recording, sampling_rate=16_000, return_tensors="pt")  # as the processor itself does
        assert ("attention_mask" in given) == masked
        with torch.no_grad():
            wanted = model(**given).logits[0].log_softmax(-1).numpy()
        assert result.shape == wanted.shape and np.abs(result - wanted).max() < 1e-4


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    folder = tmp_path_factory.mktemp("whisper")
    tokens = sorted(ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    vocabulary = {token: i for i, token in enumerate([*tokens, *special])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    end, start, plain = (vocabulary[token] for token in special)
    n = len(vocabulary) + 1501
    config = WhisperConfig(
        vocab_size=n, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=80, max_target_positions=64,
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        is_multilingual=False, decoder_start_token_id=start, eos_token_id=end, pad_token_id=end, bos_token_id=end,
        no_timestamps_token_id=plain, max_length=24, return_timestamps=False,
    )  # fmt: skip
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return str(folder)


def test_a_whisper_loads_and_batches_change_nothing(whisper_folder):
    recogniser = load_recogniser(whisper_folder)
    recordings = [spoken, spoken[:9_000]]
    assert recogniser.transcribe(recordings) == [recogniser.transcribe([recording])[0] for recording in recordings]
    assert len(recogniser.transcribe([np.tile(spoken, 20), spoken])) == 2  # above 30 s
    assert check(spoken, TEXT, recogniser).cer > 0.3
    with pytest.raises(SaladError, match="hears English alone, and this is German: name a multilingual one"):
        check(spoken, TEXT, recogniser, language="de")


def test_what_is_no_recogniser_is_refused_in_one_line(tmp_path, ctc_folder):
    from safetensors.torch import load_file
    from transformers import Qwen2Config

    Qwen2Config().save_pretrained(tmp_path / "llm")
    pickled = shutil.copytree(ctc_folder, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for name, says in [("llm", "neither"), ("none", "cannot be loaded"), ("pickled", "cannot be loaded.*safetensors")]:
        folder = str(tmp_path / name)
        with pytest.raises(SaladError, match=says) as error:
            load_recogniser(folder)
        assert "\n" not in str(error.value)
