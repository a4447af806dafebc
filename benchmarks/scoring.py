"""The scoring pass beside a plain padded loop over transformers' logits: positions a second, and equal values.

    python benchmarks/scoring.py                      # a random Qwen2 of 8 layers and 32,768 ids
    python benchmarks/scoring.py --lab LAB --run r…   # a checkpoint of yours, on a folder of its speech
    python benchmarks/scoring.py --table              # Markdown of every committed result

Both score the same samples under the same two patterns, from encoder frames that are in memory, to M, F and D per
position and per sample. The plain loop is what one writes first: samples in the order of their ids, batches of a fixed
size, padded to the longest; for each pattern the teacher on the text, the student on the text and the student on the
interleaved sequence, each to the logits of every row; log_softmax and KL at the positions. The pass also makes the
store's rows, top-5 tokens with them, which the loop does not: its time is counted. Rounds alternate. Seconds are the
processor's on a CPU (so give --threads 1 on a busy machine), the clock's on a GPU.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).parent]  # a file there is named store
from salad.data.batches import collate  # noqa: E402
from salad.data.frame_source import FrameSource  # noqa: E402
from salad.data.interleaving import scoring_patterns  # noqa: E402
from salad.passes.score import score_texts  # noqa: E402

RESULTS = Path(__file__).parent / "results"
sys.path.append(str(Path(__file__).parent.parent / "tests"))
BATCH = 16
SIZE = {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 768, "vocab_size": 32_768}  # fmt: skip


@torch.no_grad()
def plain(model, encoded: FrameSource, spoken: list, seed: int = 0, batch: int = BATCH) -> dict:
    """(synthesis id, pattern) -> (positions, m [N], f [N], d [N], after speech [N]), float32, as it is first written."""
    out = {}
    llm, vocab = model.llm, model.vocab_size
    for start in range(0, len(spoken), batch):
        group = spoken[start : start + batch]
        for pattern in (0, 1):
            layouts = [encoded.layout(s) for s in group]
            spans = [
                item.spans(scoring_patterns(seed, s.sample_id, len(item.units))[pattern])
                for s, item in zip(group, layouts, strict=True)
            ]
            laid = [item.sequence(sp) for item, sp in zip(layouts, spans, strict=True)]
            speech = [encoded.frames(s, sp) for s, sp in zip(group, spans, strict=True)]
            at = collate(laid, speech, [s.sample_id for s in group]).to(model.device)
            teacher = model.teacher
            with teacher.switched():
                log_q = teacher.llm(input_ids=at.text_ids_BS, use_cache=False).logits[..., :vocab].float().log_softmax(-1)
            log_p = llm(input_ids=at.text_ids_BS, use_cache=False).logits[..., :vocab].float().log_softmax(-1)
            log_c = llm(inputs_embeds=model.embed(at), use_cache=False).logits[..., :vocab].float().log_softmax(-1)
            log_q, log_p = log_q.flatten(0, 1)[at.text_rows_N], log_p.flatten(0, 1)[at.text_rows_N]
            log_c = log_c.flatten(0, 1)[at.rows_N]
            m = (log_p.exp() * (log_p - log_c)).sum(-1)
            f = (log_q.exp() * (log_q - log_p)).sum(-1)
            d = (log_q.exp() * (log_q - log_c)).sum(-1)
            for b, item in enumerate(group):
                own = at.sample_N == b
                out[item.synthesis_id, pattern] = tuple(x[own].cpu() for x in (at.positions_N, m, f, d, at.after_N))
    return out


def differences(result: dict, rows, tokens) -> dict[str, float]:
    """The largest absolute difference of a position's and of a sample's m, f and d, nats; `missing` positions."""
    worst, sample_worst = 0.0, 0.0
    of_token = {(t["synthesis_id"], t["pattern"], t["position"]): t for t in tokens.to_pylist()}
    missing = 0
    for (synthesis, pattern), (positions, m, f, d, after) in result.items():
        for place, *values, recorded in zip(*(x.tolist() for x in (positions, m, f, d, after)), strict=True):
            row = of_token.pop((synthesis, pattern, place), None)
            if row is None:
                missing += 1
                continue
            for name, value in zip("mfd", values, strict=True):
                if recorded or name == "f":
                    worst = max(worst, abs(row[name] - value))
    for row in rows.to_pylist():
        _, m, f, d, after = result[row["synthesis_id"], row["pattern"]]
        for name, values in (("m", m[after]), ("f", f), ("d", d[after])):
            if len(values):
                sample_worst = max(sample_worst, abs(row[name] - values.double().mean().item()))
    return {"position": worst, "sample": sample_worst, "missing": missing + len(of_token)}


class InMemory(FrameSource):
    """Encoder frames of sounds that no file holds."""

    def __init__(self, model, sounds: dict[str, np.ndarray]):
        super().__init__(None, model.prompt, model.encoder)
        self.made = {name: model.encoder(torch.from_numpy(samples)).numpy() for name, samples in sounds.items()}

    def frames(self, spoken, spans):
        return self.made[spoken.synthesis_id] if any(span.speech for span in spans) else None


def made_up(count: int, folder: Path):
    """(model, encoded, spoken): the real classes with random weights, and texts of 5 to 30 s with made-up word times."""
    import tiny  # the toy tokenizer and encoder of the tests
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from salad.models.speech_lm import SpeechLM

    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"<extra {i}>" for i in range(SIZE["vocab_size"] - len(tokenizer) - 64)])
    torch.manual_seed(0)
    llm = Qwen2ForCausalLM(Qwen2Config(**SIZE, tie_word_embeddings=True, initializer_range=0.1,
                                       bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))  # fmt: skip
    llm.save_pretrained(folder / "models" / "teacher")
    tokenizer.save_pretrained(folder / "models" / "teacher")
    tiny.encoder(folder / "models" / "encoder")
    model = SpeechLM.build(tiny.config(), folder).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():  # LoRA starts at nothing: F would be 0
        for name, parameter in model.llm.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    words = sorted({word for text in tiny.TEXTS for word in text.split()})
    spoken, sounds = [], {}
    for number in range(count):
        text = " ".join(rng.choice(words, int(rng.integers(12, 75))))
        recording, samples = tiny.spoken_text(text, number)
        spoken.append(recording)
        sounds[recording.synthesis_id] = samples
    return model, InMemory(model, sounds), spoken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lab")
    parser.add_argument("--run")
    parser.add_argument("--speech", default="heldout")
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # of this process on a CPU: what else the machine does is not measured
    clock = time.perf_counter if device == "cuda" else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        if options.lab:
            import store
            from salad import lookup
            from salad.data import corpora

            run = options.run or lookup.newest_run(options.lab, "stage1")
            model = lookup.model_of(options.lab, run)[0]
            spoken = corpora.of_speech(store.connect(options.lab), [options.speech])[: options.samples]
            encoded, what = FrameSource(options.lab, model.prompt, model.encoder), f"lab: {options.speech}"
            model.to(device)
        else:
            model, encoded, spoken = made_up(options.samples, Path(folder))
            model.to(device)
            what = "random Qwen2: " + ", ".join(f"{key} {value}" for key, value in SIZE.items())
        spoken = sorted(spoken, key=lambda s: s.synthesis_id)
        for _ in range(2):  # frames come into memory
            rows, tokens = score_texts(model, encoded, spoken)
        outcome = plain(model, encoded, spoken)
        results = differences(outcome, rows, tokens)
        n = tokens.num_rows
        seconds: dict[str, list[float]] = {"salad": [], "plain": []}
        for _ in range(options.rounds):
            for name, work in (("plain", plain), ("salad", score_texts)):
                if device == "cuda":
                    torch.cuda.synchronize()
                began = clock()
                work(model, encoded, spoken)
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(clock() - began)
    rate = {name: n / statistics.median(values) for name, values in seconds.items()}
    ratios = [p / s for p, s in zip(seconds["plain"], seconds["salad"], strict=True)]
    result = {
        "model": what, "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "samples": len(spoken), "positions": n,
        "batch of the loop": BATCH, "positions a second": rate, "ratio": statistics.median(ratios),
        "ratio of each round": ratios, "seconds": seconds, "seconds of": "processor" if device == "cpu" else "clock",
        "largest difference": results,
        "load average": os.getloadavg()[0],
    }  # fmt: skip
    name = f"scoring-{'cuda' if device == 'cuda' else 'cpu'}-{'lab' if options.lab else 'random'}.json"
    (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
    print(table())
    if not (results["position"] < 1e-4 and results["sample"] < 1e-4 and results["missing"] == 0):
        raise SystemExit(f"the values differ: {results}")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return platform.processor()


def table() -> str:
    """Markdown of the committed results."""
    heads = ("model, samples", "device, threads", "plain, positions/s", "pass, positions/s", "ratio (each round)",
             "largest difference", "load")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for path in sorted(RESULTS.glob("scoring-*.json")):
        r = json.loads(path.read_text())
        rate, worst = r["positions a second"], r["largest difference"]
        each = ", ".join(f"{x:.2f}" for x in r["ratio of each round"])
        lines.append(
            f"| {r['model']}; {r['samples']} samples, {r['positions']:,} positions | {r['device']}, {r['threads']} | "
            f"{rate['plain']:,.0f} | {rate['salad']:,.0f} | **{r['ratio']:.2f}** ({each}) | "
            f"{max(worst['position'], worst['sample']):.1e} nats | {r['load average']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
