"""Speech that can be told exactly: each letter a tone, and a CTC recogniser that hears them."""

import json

import numpy as np
import torch

from salad.speech.check import CTCRecogniser

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"]


def hears_tones(folder) -> CTCRecogniser:
    """A CTC recogniser that hears tones as letters: loading and vocabulary are real, its logits a filter bank."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    config = Wav2Vec2Config(
        vocab_size=len(LETTERS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(32,), conv_kernel=(320,), conv_stride=(320,), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, pad_token_id=0,
    )  # fmt: skip
    model = Wav2Vec2ForCTC(config)
    processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(do_normalize=False), Wav2Vec2CTCTokenizer(str(folder / "vocab.json")))

    class Tones(CTCRecogniser):
        def log_probs(self, samples):
            frames = [torch.tensor(s[: len(s) // 320 * 320]).reshape(-1, 320) for s in samples]
            hertz = 500 + 200 * torch.arange(len(LETTERS))
            bank = torch.exp(2j * np.pi * torch.outer(torch.arange(320), hertz) / 16_000)
            n_speech_frames = [(f.to(bank.dtype) @ bank).abs() / 16 for f in frames]
            for h in n_speech_frames:
                h[:, 0] = 3.0
            return [h.log_softmax(-1).numpy() for h in n_speech_frames]

    return Tones("tones", model, processor, 120)


def tones(text_spoken, seconds=0.06, rate=16_000):
    """Each letter as its tone, 0.1 s of silence between words: float32 samples at `rate`, and the words' true times."""
    gap = np.zeros(int(0.1 * rate), np.float32)
    samples, times = [gap], []
    for word in text_spoken.split():
        start = sum(map(len, samples))
        for letter in filter(str.isalpha, word.lower()):
            t = np.arange(int(seconds * rate)) / rate
            samples.append(np.sin(2 * np.pi * (500 + 200 * LETTERS.index(letter)) * t).astype(np.float32))
        times.append((start / rate, sum(map(len, samples)) / rate))
        samples.append(gap)
    return np.concatenate(samples), times
