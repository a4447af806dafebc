"""The real classes at toy sizes: a lab with a random teacher and encoder, espeak speech, and a run's configuration."""

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import store
from salad.config import AdapterConfig, DataConfig, LLMConfig, OptimConfig, RunConfig
from salad.data.corpora import SpokenText

TEXTS = [
    "The otter eats fish. What does the otter eat? Fish.",
    "What is the capital of France? Paris. Anna lives by the sea.",
    "Water boils at 100 °C, Dr. Reed said. It isn't cold.",
    "Ben likes pears, and his sister likes plums.",
    "The violin has four strings. The whale is 25 m long.",
    "Who bakes bread in the morning? Clara does.",
]


def tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "<end>", "<pad>"]
    )
    core.train_from_iterator(TEXTS * 4, trainer)
    from tokenizers import decoders

    core.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>", **special)


def teacher(folder: Path, bos: bool = True, padded: int = 20, seed: int = 0) -> Path:
    """A random Qwen2 whose head has more rows than its tokenizer has ids."""
    tok = tokenizer(bos)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tok) + padded, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=64, tie_word_embeddings=True, initializer_range=0.2,
            bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def encoder(folder: Path) -> Path:
    from salad.models.phone import PhoneConfig, PhoneEncoder

    torch.manual_seed(1)
    PhoneEncoder(PhoneConfig(width=16, n_phones=8)).save_pretrained(folder)
    return folder


def config(**changes) -> RunConfig:
    base = RunConfig(
        kind="stage1",
        contender="stage1",
        llm=LLMConfig(lora_rank=4),
        adapter=AdapterConfig(layers=1, width=32, mlp=64, heads=4, kv_heads=2, match_embedding_rms=True),
        data=DataConfig(natural=("natural",), text=("broad",)),
        optim=OptimConfig(steps=12, batch=3, lr_adapter=2e-3, lr_llm=2e-3, warmup=2, decay=4, checkpoint_every=4, log_every=1),
        threads=1,
    )
    return base.model_copy(update=changes)


def lab(folder: Path, answers: dict[str, str] | None = None) -> Path:
    """A lab with models, a corpus, and TEXTS spoken as `natural`; `answers` to some of the texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from salad.passes.synthesise import jobs_of, synthesise
    from salad.speech import load_tts

    teacher(folder / "models" / "teacher")
    encoder(folder / "models" / "encoder")
    (folder / "corpora" / "broad").mkdir(parents=True)
    fields = {"text": TEXTS} | ({"answer": [answers.get(text) for text in TEXTS]} if answers else {})
    pq.write_table(pa.table(fields), folder / "corpora" / "broad" / "part-0.parquet")
    samples = [(store.ids.sample_id("natural", text), text) for text in TEXTS]
    store.publish(folder, "samples", [
        {"sample_id": s, "text": t, "spoken": t, "corpus": "natural", "domain": "stories", "n_tokens": 20, "flags": [],
         "answer": (answers or {}).get(t)}
        for s, t in samples
    ], {"corpus": "natural"})  # fmt: skip
    jobs = jobs_of(samples, ("en-us", "en-us+f2"))
    synthesise(folder, "natural", jobs, load_tts("espeak"), {"seed": 0}, recorded=True)
    return folder


def spoken_text(text: str, seed: int = 0) -> tuple[SpokenText, np.ndarray]:
    """A text with made-up word times and noise as its sound (16 kHz), for tests that need no voice."""
    rng = np.random.default_rng(seed)
    words, time, at = [], 0.1, 0
    for word in text.split():
        at = text.index(word, at)
        length = rng.uniform(0.15, 0.5)
        words.append((word, at, at + len(word), time, time + length))
        time, at = time + length, at + len(word)
    duration = time + 0.2
    samples = rng.standard_normal(int(duration * 16_000)).astype(np.float32) * 0.1
    return SpokenText("s" + str(seed), f"y{seed}", text, tuple(words), duration, "", 0, 0), samples
