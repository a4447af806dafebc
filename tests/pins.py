"""Pins: what a tiny study computes, step by step, which a change that means to change nothing must reproduce.

    python -m tests.pins                    this tree against its parent commit, on this machine (`make pins`)
    python -m tests.pins --rev REV          against another commit
    python -m tests.pins --write            write tests/pins.json anew, in a commit of its own that says why

Losses of the first 20 steps through the real command line (LoRA and full, one sample a row and packed, resumed from a
checkpoint, Stage II on a selection), the rows of one scoring, and the ids of units, texts and selections. Losses and rows
agree within 1e-6 on one machine, and with tests/pins.json within 1e-3 on any CPU; ids agree exactly. Everything starts from
fixed inputs. The other commit is measured by this very file, which therefore uses only what stays: the command line, the
files of a run, and `store.publish`, `store.connect` and `store.ids`.
"""

import argparse
import contextlib
import importlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).with_name("pins.json")
STEPS = 20
RESUMED_AT = 10
STEERS = "r000000000001"  # the run whose divergences, which are given, steer the selections
SAME_MACHINE, ANY_CPU = 1e-6, 1e-3

SUBJECTS = {
    "stories": "Anna walks to the old house. The otter sleeps by the river. Nobody hears it.",
    "biology": "The heart has four parts. Blood carries air to every cell. It never rests.",
    "cooking": "Stir the soup with a spoon. Add salt, then wait a little. Serve it warm.",
    "music": "The violin has four strings. A bow moves over them. The sound is bright.",
}
WORDS = "north south early quietly often again slowly today outside together".split()
MERGES = ["Ġ t", "h e", "Ġt he", "i n", "Ġ a", "r e", "Ġ s", "o n", "e r", "Ġ w"]


# --- a lab of fixed inputs ---


def texts(subject: str, count: int = 8) -> list[str]:
    """Texts of a subject that differ in a word or two."""
    return [f"{SUBJECTS[subject][:-1]}, {WORDS[i]} {WORDS[(3 * i + 1) % 10]}." for i in range(count)]


def make_teacher(folder: Path) -> None:
    """A Qwen2 folder whose weights come from numpy's generator, with a byte-level BPE of given merges."""
    import numpy as np
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [tuple(pair.split()) for pair in MERGES]
    vocabulary = ["<s>", "<end>", *alphabet, *("".join(pair) for pair in pairs)]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=pairs))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="<end>", pad_token="<end>")
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(vocabulary) + 8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=64, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() == 2:
                parameter.copy_(torch.from_numpy(0.2 * rng.standard_normal(parameter.shape)))
            else:
                parameter.fill_(1.0 if "norm" in name else 0.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def speak(lab: Path, folder: str, spoken: list[tuple[str, str]], tts: str) -> list[dict]:
    """Rows of `syntheses`, and their sound: noise with made-up word times, FLAC in one file."""
    import numpy as np
    import soundfile

    import store

    path, rows, written = Path("speech") / folder / "recording.000000.tar", [], io.BytesIO()
    for number, (sample_id, text) in enumerate(spoken):
        rng = np.random.default_rng([7, number])
        words, time_s, at = [], 0.1, 0
        for word in text.split():
            at, length = text.index(word, at), float(rng.uniform(0.15, 0.5))
            words.append(
                {"word": word, "char_start": at, "char_end": at + len(word), "start_s": time_s, "end_s": time_s + length}
            )
            time_s, at = time_s + length, at + len(word)
        samples = (0.1 * rng.standard_normal(int((time_s + 0.2) * 16_000))).clip(-1, 1).astype(np.float32)
        sound = io.BytesIO()
        soundfile.write(sound, samples, 16_000, format="FLAC", subtype="PCM_16")
        offset = written.tell()
        written.write(sound.getvalue())
        rows.append({
            "sample_id": sample_id, "synthesis_id": store.ids.synthesis_id(sample_id, tts, "v", 0), "tts": tts, "voice": "v",
            "seed": 0, "speech": folder, "audio_path": str(path), "audio_offset": offset, "audio_bytes": len(sound.getvalue()),
            "duration_s": len(samples) / 16_000, "words": words, "cer": 0.01 * (number % 5), "flags": [],
        })  # fmt: skip
    (lab / path).parent.mkdir(parents=True)
    (lab / path).write_bytes(written.getvalue())
    return rows


def make_lab(lab: Path) -> None:
    """Models, natural speech of one subject, a broad corpus of all, embedded, half of it spoken as the probe."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    import store

    make_teacher(lab / "models" / "teacher")
    natural = [(store.ids.sample_id("natural", text), text) for text in texts("stories")]
    broad = [(store.ids.sample_id("broad", text), text, subject) for subject in SUBJECTS for text in texts(subject)]
    (lab / "corpora" / "broad").mkdir(parents=True)
    pq.write_table(pa.table({"text": [text for _, text, _ in broad]}), lab / "corpora" / "broad" / "part-0.parquet")
    rows = {
        "natural": [{"sample_id": i, "text": t, "spoken": t, "corpus": "natural", "domain": "stories"} for i, t in natural],
        "broad": [{"sample_id": i, "text": t, "spoken": t, "corpus": "broad", "domain": d} for i, t, d in broad],
    }
    for corpus, result in rows.items():
        store.publish(lab, "samples", [row | {"n_tokens": 20, "flags": []} for row in result], {"corpus": corpus})
    store.publish(lab, "syntheses", speak(lab, "natural", natural, "recorded"), {"speech": "natural"})
    probe = speak(lab, "probe", [(i, t) for i, t, _ in broad], "espeak")
    store.publish(lab, "syntheses", probe, {"speech": "probe"})
    rng, ordered = np.random.default_rng(3), sorted(i for i, _, _ in broad)
    place = {i: list(SUBJECTS).index(d) for i, _, d in broad}
    vectors = np.eye(4, 8)[[place[i] for i in ordered]] + 0.05 * rng.standard_normal((len(ordered), 8))
    store.publish(lab, "embeddings", pa.table({
        "sample_id": ordered, "model": ["teacher"] * len(ordered),
        "vector": pa.array(list(vectors.astype(np.float32)), pa.list_(pa.float32())),
    }), {"pass": "embed", "corpus": "broad", "model": "teacher", "samples": store.ids.digest(ordered), "part": 0})  # fmt: skip
    run = lab / "runs" / STEERS  # whose divergences these are
    (run / "checkpoints" / "step-1").mkdir(parents=True)
    (run / "checkpoints" / "step-1" / "manifest.json").write_text(json.dumps({"step": 1, "sha256": {}}))
    (run / "config.json").write_text(json.dumps({
        "run_id": STEERS, "kind": "stage1", "recipe": "pins", "config": configuration(), "parent_run_id": None,
        "selection_id": None, "repetition": 0,
    }))  # fmt: skip
    scored = sorted(probe, key=lambda row: row["sample_id"])[::2]
    store.publish(lab, "divergences", [
        {"run_id": STEERS, "step": 1, "sample_id": row["sample_id"], "synthesis_id": row["synthesis_id"],
         "pattern": pattern, "m": 0.1, "f": 0.01, "d": 0.1 + 0.2 * place[row["sample_id"]] + 0.01 * (n % 7),
         "n_positions": 20 + n, "n_positions_f": 30 + n, "speech_s": 1.0}
        for n, row in enumerate(scored) for pattern in (0, 1)
    ], {"probe": 1})  # fmt: skip


def configuration(**changes: dict) -> dict:
    """A run's configuration; what is left out has its default. `changes`: by section."""
    base = {
        "kind": "stage1", "contender": "stage1", "threads": 1, "encoder": {"name": "logmel"},
        "llm": {"lora_rank": 4},
        "adapter": {"layers": 1, "width": 32, "mlp": 64, "heads": 4, "kv_heads": 2, "match_embedding_rms": True},
        "sequences": {"span_units": [1, 4]},
        "optim": {"steps": STEPS, "batch": 3, "lr_adapter": 2e-3, "lr_llm": 2e-3, "warmup": 2, "decay": 4,
                  "checkpoint_every": RESUMED_AT, "keep": [RESUMED_AT], "log_every": 1},
    }  # fmt: skip
    return {k: v | changes.pop(k, {}) if isinstance(v, dict) else changes.pop(k, v) for k, v in base.items()} | changes


FULL = {"finetune": "full"}
PACKED = {"batch_tokens": 400, "micro_tokens": 250}
RUNS = {
    "lora": {},
    "lora, packed": {"optim": PACKED, "sequences": {"context": 256}},
    "full": {"llm": FULL, "objective": {"alpha": 0.5}},
    "full, packed": {"llm": FULL, "optim": PACKED, "sequences": {"context": 256}},
}


# --- measuring ---


def salad(*arguments: str) -> None:
    """The console script's own function, as pyproject.toml names it; RuntimeError unless it leaves with 0."""
    scripts = tomllib.loads((Path.cwd() / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["salad"].partition(":")
    try:
        code = getattr(importlib.import_module(module), name)([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    if code:
        raise RuntimeError(f"salad {' '.join(map(str, arguments))} left with {code}")


def trained(lab: Path, file: Path) -> Path:
    """Train the configuration in `file`; returns its run's folder."""
    before = set((lab / "runs").glob("r*"))
    salad("train", file, "--lab", lab)
    (run,) = set((lab / "runs").glob("r*")) - before
    return run


def trajectory(run: Path) -> list[dict]:
    """What each step logged: losses, the gradient's norm, and how many tokens were fed so far."""
    rows = {}
    for path in sorted(run.glob("metrics-*.jsonl"), key=lambda path: int(path.stem.split("-")[1])):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            kept = {k: v for k, v in row["values"].items() if k in ("loss", "nll", "grad_norm") or k.startswith("d_")}
            rows[row["step"]] = {"step": row["step"], "tokens": row["tokens"], **kept}
    return [rows[step] for step in sorted(rows)]


def resumed(lab: Path, run: Path, file: Path) -> list[dict]:
    """The run's trajectory when its later checkpoints are gone and the same command takes it up."""
    for path in (run / "checkpoints").glob("step-*"):
        if int(path.name.partition("-")[2]) > RESUMED_AT:
            shutil.rmtree(path)
    for path in run.glob("metrics-*.jsonl"):
        kept = [line for line in path.read_text().splitlines(True) if json.loads(line)["step"] <= RESUMED_AT]
        path.write_text("".join(kept))
    salad("train", file, "--lab", lab)
    return trajectory(run)


def measure() -> dict:
    """All pins of the tree that is the current folder."""
    import store

    with tempfile.TemporaryDirectory() as folder:
        lab = Path(folder) / "lab"
        make_lab(lab)
        by_name, runs = {}, {}
        for number, (name, changes) in enumerate(RUNS.items()):
            file = Path(folder) / f"{number}.json"
            file.write_text(json.dumps(configuration(**changes)))
            runs[name] = trained(lab, file)
            by_name[name] = trajectory(runs[name])
        salad("pass", "score", "--lab", lab, "--run", runs["lora"].name, "--step", RESUMED_AT, "--speech", "natural")
        rows = store.connect(lab).execute(
            """select sample_id, synthesis_id, pattern, m, f, d, n_positions, n_positions_f, speech_s from raw.divergences
            where run_id = ? order by all""",
            [runs["lora"].name],
        )
        names = [column[0] for column in rows.description]
        scored = [dict(zip(names, row, strict=True)) for row in rows.fetchall()]
        salad("pass", "cluster", "--lab", lab, "--corpus", "broad", "--k", "4")
        for strategy in ("active", "uniform"):
            salad("select", "--lab", lab, "--run", STEERS, "--step", "1", "--strategy", strategy, "--budget", "0.02")
        clusterings, drawn = ids_of(lab)
        file = Path(folder) / "stage2.json"
        stage2 = {"kind": "stage2", "contender": "stage2", "parent": runs["lora"].name, "selection": min(drawn)}
        file.write_text(json.dumps(configuration(**stage2)))
        by_name["stage 2"] = trajectory(trained(lab, file))
        selections = ids_of(lab)[1]
        units = sorted(
            f"{path.relative_to(lab / 'tables').parts[0]} {'-'.join(path.stem.split('-')[:2])}"
            for path in (lab / "tables").rglob("unit-*.json")
            if runs["lora"].name not in str(path)
        )
        by_name["lora, resumed"] = resumed(lab, runs["lora"], Path(folder) / "0.json")
    ids = {"clusterings": clusterings, "selections": selections, "units": units}
    return {"trajectories": by_name, "scoring": scored, "ids": ids}


def ids_of(lab: Path) -> tuple[dict, dict]:
    """Texts by cluster of each clustering, and each selection's texts in draw order."""
    import store

    results = []
    for query in (
        "select clustering_id, list(sample_id || ' ' || cluster_id order by sample_id) from assignments group by 1",
        "select selection_id, list(sample_id order by draw) from selected group by 1",
    ):
        results.append(dict(sorted(store.connect(lab).execute(query).fetchall())))
    return results[0], results[1]


# --- comparing ---


def differences(before, now, tolerance: float, where: str = "") -> Iterator[str]:
    """Lines of what differs: numbers by more than the relative `tolerance` (below 1e-2: that share of 1e-2), ids at all."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if key not in before or key not in now:
                yield f"{where}{key}: only {'now' if key in now else 'before'}"
            else:
                yield from differences(before[key], now[key], tolerance, f"{where}{key}: ")
    elif isinstance(before, list) and isinstance(now, list):
        if len(before) != len(now):
            yield f"{where}{len(before)} before, {len(now)} now"
        for place, (a, b) in enumerate(zip(before, now, strict=False)):
            yield from differences(a, b, tolerance, f"{where}{place}: ")
    elif isinstance(before, float) and isinstance(now, float):
        if not math.isclose(before, now, rel_tol=tolerance, abs_tol=tolerance * 1e-2):
            yield f"{where}{before!r} before, {now!r} now"
    elif before != now:
        yield f"{where}{before!r} before, {now!r} now"


def written(value, depth: int = 0) -> str:
    """JSON with a step, a row or an id on a line."""
    lead = "\n" + " " * (depth + 1)
    if isinstance(value, dict) and (depth < 2 or any(isinstance(x, (list, dict)) for x in value.values())):
        inside = [f"{json.dumps(key)}: {written(x, depth + 1)}" for key, x in value.items()]
        return "{" + lead + f",{lead}".join(inside) + lead[:-1] + "}"
    if isinstance(value, list):
        return "[" + lead + f",{lead}".join(written(x, depth + 1) for x in value) + lead[:-1] + "]"
    return json.dumps(value)


def measured(tree: Path) -> dict:
    """The pins of a checkout, by a process of its own that imports from there."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pins.json"
        environment = os.environ | {
            "PYTHONPATH": str(tree),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        environment.pop("SALAD_LAB", None)
        completed = subprocess.run([sys.executable, str(Path(__file__).resolve()), "--measure", str(out)], cwd=tree, text=True,
                              env=environment, capture_output=True)  # fmt: skip
        if completed.returncode:
            raise SystemExit(f"pins of {tree} could not be measured:\n{completed.stdout[-2000:]}{completed.stderr[-4000:]}")
        return json.loads(out.read_text())


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A commit's files in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", revision], check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rev", help="the commit to compare with; by default HEAD where files have changed, else its parent")
    parser.add_argument("--write", action="store_true", help="write tests/pins.json anew")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        sys.path[0] = str(Path.cwd())
        import store

        assert Path(store.__file__).is_relative_to(Path.cwd()), f"store was imported from {store.__file__}"
        given.measure.write_text(json.dumps(measure()))
        return 0
    now = measured(ROOT)
    if given.write:
        before = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(written(now) + "\n")
        changed = list(differences(before, now, SAME_MACHINE))
        print(f"{GOLDEN.name}: {len(changed)} values moved", *changed[:40], sep="\n")
        return 0
    revision = given.rev or ("HEAD" if git("status", "--porcelain", "--untracked-files=no") else "HEAD^")
    with checkout(revision) as tree:
        before = measured(tree)
    rows = list(differences(before, now, SAME_MACHINE))
    result = f"{git('rev-parse', '--short', revision)} and this tree"
    print(f"{result}: {len(rows)} pins differ" if rows else f"{result} agree in every pin", *rows[:60], sep="\n")
    return 1 if rows else 0


if __name__ == "__main__":
    sys.exit(main())
