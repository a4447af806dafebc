"""Scoring spoken multiple-choice items: one pass a context with its key-value cache shared, beside one pass a choice.

    python benchmarks/evaluate.py                  # all cases, three rounds each, committed results
    python benchmarks/evaluate.py --items 16 --rounds 2 --no-save

The peer is the plain way: for every choice the recording is encoded, and prompt and choice run through the LLM together,
in batches of the same rows. Both give the same log-probabilities (to 1e-4, checked here on every round). A random LLM of
3 M parameters, the miniature's encoder and adapter; recordings of 5 s, four choices of 3 to 9 tokens. "examples" puts
the same two spoken examples before every item. "qwen2-audio" is a contender of transformers, random weights too, whose
peer runs the four choices as rows of one batch, the recording in each of them. What counts is the ratio within one round:
the times alone depend on what else the machine does. Results: `benchmarks/results/evaluate.json`.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]  # store.py is there

RESULTS = Path(__file__).parent / "results" / "evaluate.json"
RATE, SECONDS, CHOICES, EXAMPLES = 16_000, 5.0, 4, 2


def model(folder: Path):
    """A speech LM with random weights, from folders as any other."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    from salad.config import AdapterConfig, EncoderConfig, LLMConfig, OptimConfig, RunConfig
    from salad.models.phone import PhoneConfig, PhoneEncoder
    from salad.models.speech_lm import SpeechLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: n + 1 for n, letter in enumerate(alphabet)} | {"<s>": 0}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>", pad_token="<s>")
    torch.manual_seed(0)
    llm = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=len(tokenizer), hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
                    num_key_value_heads=2, intermediate_size=704, tie_word_embeddings=True)
    )  # fmt: skip
    llm.save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    PhoneEncoder(PhoneConfig()).save_pretrained(folder / "encoder")
    config = RunConfig(
        kind="stage1",
        contender="x",
        llm=LLMConfig(name=str(folder / "llm"), lora_rank=4),
        encoder=EncoderConfig(name=str(folder / "encoder")),
        adapter=AdapterConfig(layers=2, width=128, mlp=384, heads=4, kv_heads=4, match_embedding_rms=True),
        optim=OptimConfig(steps=1, lr_adapter=1e-3, lr_llm=1e-3),
    )
    return SpeechLM.build(config).eval()


def items(count: int, examples: int):
    """(prompts, continuations): noise of 5 s and choices of random letters."""
    from salad.evaluation.scoring import Recording

    rng = np.random.default_rng(0)

    def sound(name):
        return Recording(name, (rng.standard_normal(int(RATE * SECONDS)) * 0.1).astype(np.float32))

    def words():
        return " " + "".join(rng.choice(list("abcdefgh"), rng.integers(2, 9)))

    head = [part for n in range(examples) for part in (sound(f"example-{n}"), f"\nAnswer:{words()}\n\n")]
    prompts = [[*head, sound(f"item-{n}"), "\nAnswer:"] for n in range(count)]
    return prompts, [[words() for _ in range(CHOICES)] for _ in prompts]


@torch.no_grad()
def unshared(lm, prompts, continuations, batch: int) -> list[list[float]]:
    """Every choice by itself: its prompt's recordings encoded, prompt and choice run together, `batch` rows at once."""
    flat = [(prompt, item) for prompt, some in zip(prompts, continuations, strict=True) for item in some]
    embed, decoder, head = lm.llm.get_input_embeddings(), lm.llm.get_decoder(), lm.head
    sums = []
    for start in range(0, len(flat), batch):
        rows, targets = [], []
        for prompt, item in flat[start : start + batch]:
            units, (ids,) = lm.prompt.units(prompt, [item])
            parts = [
                embed(torch.tensor([unit]))
                if isinstance(unit, int)
                else lm.adapter(lm.encoder(torch.from_numpy(unit.samples))[None])[0]
                for unit in units
            ]
            rows.append(torch.cat([*parts, embed(torch.tensor(ids[:-1], dtype=torch.long))]))
            targets.append(torch.tensor(ids))
        inputs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        hidden = decoder(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
        for states, row, ids in zip(hidden, rows, targets, strict=True):
            logp = (states[len(row) - len(ids) : len(row)] @ head.T).float().log_softmax(-1)
            sums.append(float(logp.gather(1, ids[:, None]).sum()))
    return [sums[n : n + CHOICES] for n in range(0, len(sums), CHOICES)]


def qwen2_audio(folder: Path):
    """A contender of transformers: Qwen2-Audio's own class with random weights, 3 + 3 M parameters."""
    from transformers import AutoTokenizer, Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor

    from salad.evaluation.transformers_speech import MARKS, TransformersSpeech

    marks = MARKS["qwen2-audio"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "llm")
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    text = dict(model_type="qwen2", vocab_size=len(tokenizer), hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
                num_key_value_heads=2, intermediate_size=704)  # fmt: skip
    audio = dict(d_model=256, encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=1024, num_mel_bins=80)
    torch.manual_seed(0)
    made = Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=tokenizer.convert_tokens_to_ids(marks[1]))
    )
    made.save_pretrained(folder / "qwen2-audio")
    tokenizer.save_pretrained(folder / "qwen2-audio")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "qwen2-audio")
    return TransformersSpeech("qwen2-audio", str(folder / "qwen2-audio"), "qwen2-audio")


@torch.no_grad()
def repeated(who, prompts, continuations) -> list[list[float]]:
    """An item's choices as rows of one batch, recordings and prompt in each of them."""
    results = []
    for prompt, some in zip(prompts, continuations, strict=True):
        ids, tail, sounds = who._inputs(prompt)
        context = ids + who._encode(tail)
        after = [torch.tensor(who._encode(tail + item)[len(who._encode(tail)) :]) for item in some]
        rows = [torch.cat([torch.tensor(context), item]) for item in after]
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        rows = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        sounds = {name: x.repeat(len(some), *[1] * (x.dim() - 1)) for name, x in sounds.items()}
        logits = who.model(input_ids=rows, attention_mask=mask, use_cache=False, **sounds).logits
        start = len(context) - 1
        results.append(
            [
                float(row[start : start + len(item)].log_softmax(-1).gather(1, item[:, None]).sum())
                for row, item in zip(logits, after, strict=True)
            ]
        )
    return results


def case(both: dict, count: int, examples: int, rounds: int, batch: int) -> dict:
    """Times of the two ways of `both`, the order turned round from round to round, and how far their scores differ."""
    prompts, continuations = items(count, examples)
    times, worst = {"shared": [], "unshared": []}, 0.0
    for number in range(rounds + 1):
        fields = {}
        for name in ("shared", "unshared") if number % 2 else ("unshared", "shared"):
            started = time.perf_counter()
            fields[name] = both[name](prompts, continuations)
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - started)
        worst = max(worst, float(np.abs(np.array(fields["shared"]) - np.array(fields["unshared"])).max()))
    if worst > 1e-4:
        raise SystemExit(f"the two ways differ by {worst:.2e} nats")
    ratios = [u / s for s, u in zip(times["shared"], times["unshared"], strict=True)]
    return {
        "items": count, "choices": CHOICES, "examples": examples, "rows_at_once": batch, "rounds": rounds,
        "seconds_shared": statistics.median(times["shared"]), "seconds_unshared": statistics.median(times["unshared"]),
        "ratio": statistics.median(ratios), "ratios": ratios, "largest_difference_nats": worst,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="rows (choices) at once")
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        from salad.evaluation.scoring import loglikelihoods

        def scores(result):
            return [[score for score, _ in some] for some in result]

        lm = model(Path(folder))
        who = qwen2_audio(Path(folder))
        ours = {
            "shared": lambda *asked: scores(loglikelihoods(lm, *asked, batch=given.batch // CHOICES)),
            "unshared": lambda *asked: unshared(lm, *asked, given.batch),
        }
        reference = {
            "shared": lambda *asked: scores(who.loglikelihoods(*asked)),
            "unshared": lambda *asked: repeated(who, *asked),
        }
        fields = {
            "items": case(ours, given.items, 0, given.rounds, given.batch),
            "examples": case(ours, given.items, EXAMPLES, given.rounds, given.batch),
            "qwen2-audio": case(reference, given.items, 0, given.rounds, CHOICES),
        }
    for name, item in fields.items():
        print(
            f"{name}: {item['seconds_shared']:.2f} s shared, {item['seconds_unshared']:.2f} s unshared, "
            f"{item['ratio']:.2f} x, largest difference {item['largest_difference_nats']:.1e} nats"
        )
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": 1,
               "load_average": os.getloadavg()[0], "torch": torch.__version__, "python": platform.python_version()}  # fmt: skip
    if not given.no_save:
        command = " ".join(["python benchmarks/evaluate.py", *sys.argv[1:]])
        document = {"command": command, "date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine}
        RESULTS.write_text(json.dumps(document | {"cases": fields}, indent=1) + "\n")


if __name__ == "__main__":
    main()
