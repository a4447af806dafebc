"""A small, realistic lab through the store's own API: the miniature's texts, espeak's speech and its real word times,
with divergences, decisions-to-be and evaluations drawn from known distributions. For tests of what shows them."""

import json
import random
import re
from pathlib import Path

import numpy as np

import store
from salad.miniature.facts import WORLD
from salad.miniature.world import WorldConfig, documents
from salad.runs import RunFolder
from salad.speech import load_tts, shar

LEVEL = {
    "stories": 0.05,
    "family": 0.5,
    "biology": 1.6,
    "chemistry": 2.6,
    "geography": 1.9,
    "cooking": 1.2,
    "music": 2.1,
}
COVERAGE = {"stories": "covered", "family": "partly covered"}
ACCURACY = {  # text, speech, cascade
    "teacher": (0.93, None, 0.83),
    "stage1": (0.88, 0.36, None),
    "stage2_active": (0.92, 0.5, None),
    "stage2_uniform": (0.91, 0.42, None),
}
MISALIGNED = {"stage1": 1.0, "stage2_active": 0.07, "stage2_uniform": 0.11}


def make_lab(lab: Path, broad: int = 280, spoken: int = 60, heldout: int = 8, n_items: int = 24, seed: int = 7) -> dict:
    """Publish the lab; returns its ids: run, step, clustering, active, uniform. About ten seconds."""
    rng, draw = np.random.default_rng(seed), random.Random(seed)
    world = WorldConfig(seed=seed, items_per_domain=n_items)
    p_web = dict(world.p_web)
    samples = []
    for domain in WORLD:
        name = domain.name
        for corpus, n in (("broad", max(4, round(broad * p_web[name]))), ("heldout", heldout)):
            for text, _ in zip(documents(world, corpus, domain), range(n), strict=False):
                samples.append(
                    {
                        "sample_id": store.ids.sample_id(corpus, text),
                        "text": text,
                        "spoken": text,
                        "corpus": corpus,
                        "domain": name,
                        "n_tokens": len(text.split()),
                        "licence": "CC0-1.0",
                        "flags": [],
                    }
                )
    samples = list({s["sample_id"]: s for s in samples}.values())
    for s in draw.sample([s for s in samples if s["corpus"] == "broad"], 6):
        s["flags"] = ["near-duplicate"]
    store.publish(lab, "samples", samples, made_from={"corpus": "broad", "seed": seed})
    runs = {name: _run(lab, name, "stage1" if name == "stage1" else "stage2", rng) for name in MISALIGNED}
    item = runs["stage1"]
    clustering, clusters, where = _cluster(lab, item["run_id"], samples, p_web)
    rows, utterances = _speak(lab, samples, where, spoken, heldout, rng)
    store.publish(lab, "syntheses", rows, made_from={"speech": "lab", "seed": seed})
    by_id = {s["sample_id"]: s for s in samples}
    for contender, run in runs.items():
        recorded = [r for r in rows if by_id[r["sample_id"]]["corpus"] == "heldout" or contender == "stage1"]
        _score(lab, run, contender, recorded, by_id, rng, tokens=contender == "stage1")
    ids = {"run": item["run_id"], "step": item["step"], "clustering": clustering}
    for strategy, gamma in (("active", 2.0), ("uniform", 0.0)):
        ids[strategy] = _select(lab, strategy, gamma, ids, clusters, where, rng)
    _evaluate(lab, runs, world, rng)
    store.atomic.write_json(lab / "study.json", {"p_web": p_web, "coverage": {d: COVERAGE.get(d, "uncovered") for d in p_web}})
    return ids


def _run(lab, name, kind, rng) -> dict:
    run = RunFolder.get_or_create(lab, kind, f"miniature_{kind}", {"contender": name, "seed": 0, "kind": kind})
    lines = [
        {
            "step": s,
            "tokens": s * 900,
            "at": "2026-11-20T10:00:00Z",
            "values": {"loss": float(3 * np.exp(-s / 150) + 0.2 + 0.05 * rng.normal())},
        }
        for s in range(10, 610, 10)
    ]
    (run.path / "metrics-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    store.atomic.write_json(
        run.path / "status.json",
        {
            "state": "done",
            "step": 600,
            "max_steps": 600,
            "tokens": 540000,
            "started_at": "2026-11-20T10:00:00Z",
            "ended_at": "2026-11-20T10:01:00Z",
            "heartbeat_at": "2026-11-20T10:01:00Z",
            "error": None,
            "engine": "here",
            "device": "cpu",
            "host": "here",
            "pid": 1,
            "git_commit": None,
            "seconds_left": 0,
        },
    )
    return {"run_id": run.run_id, "step": 600}


def _cluster(lab, run_id, samples, p_web):
    """Two clusters a domain, told apart by the length of the text."""
    clustering = store.ids.clustering_id({"run": run_id, "k": 2 * len(p_web)})
    where, members = {}, {}
    for s in samples:
        if s["corpus"] == "broad":
            cluster = 2 * list(p_web).index(s["domain"]) + (len(s["text"]) % 2)
            where[s["sample_id"]] = cluster
            members.setdefault(cluster, []).append(s["text"])
    clusters = []
    for c, texts in sorted(members.items()):
        words = re.findall(r"[a-z]{5,}", " ".join(texts).lower())
        top = sorted(set(words), key=lambda w: (-words.count(w), w))[:4]
        clusters.append(
            {
                "clustering_id": clustering,
                "cluster_id": c,
                "run_id": run_id,
                "size": len(texts),
                "p_web": len(texts) / len(where),
                "terms": top,
            }
        )
    store.publish(lab, "clusters", clusters, made_from={"clustering": clustering})
    store.publish(
        lab,
        "assignments",
        [{"clustering_id": clustering, "sample_id": s, "cluster_id": c, "distance": 0.2} for s, c in where.items()],
        made_from={"clustering": clustering},
    )
    return clustering, clusters, where


def _speak(lab, samples, where, spoken, heldout, rng):
    tts = load_tts("espeak")
    broad = [s for s in samples if s["sample_id"] in where]
    chosen = [broad[i] for i in np.linspace(0, len(broad) - 1, spoken).astype(int)]
    chosen += [s for s in samples if s["corpus"] == "heldout"][:: max(1, heldout // 3)]

    def make(sample):
        cer = float(np.clip(rng.gamma(1.2, 0.05), 0, 1)) if rng.random() < 0.85 else float(rng.uniform(0.3, 0.9))
        utterance = tts.speak(sample["text"], "en-us", 0)
        if cer > 0.3:
            utterance.flags.append("truncated")
        return shar.Speech(
            store.ids.synthesis_id(sample["sample_id"], "espeak", "en-us", 0),
            sample["sample_id"],
            sample["text"],
            utterance,
            "en-us",
            "espeak",
            0,
            {"cer": cer, "wer": min(1.0, 1.6 * cer), "asr": "recogniser"},
        )

    rows = shar.write(
        lab, "selected", chosen, make, job_id=lambda s: store.ids.synthesis_id(s["sample_id"], "espeak", "en-us", 0)
    )
    return rows, tts


def _score(lab, run, contender, rows, by_id, rng, tokens):
    """Two patterns a sample: every other word is speech in one and text in the other."""
    scored, positions = [], []
    for row in rows:
        sample = by_id[row["sample_id"]]
        level = LEVEL[sample["domain"]] * MISALIGNED[contender] * rng.lognormal(0, 0.35) * (1 + 1.5 * (row["cer"] or 0))
        for pattern in (0, 1):
            key = {
                "run_id": run["run_id"],
                "step": run["step"],
                "sample_id": sample["sample_id"],
                "synthesis_id": row["synthesis_id"],
                "pattern": pattern,
            }
            per = []
            for i, word in enumerate(row["words"]):
                if i % 2 != pattern:
                    continue
                d = float(rng.gamma(0.7, level / 0.7))
                f = float(rng.gamma(0.8, 0.03))
                after = i > 0
                start = word["char_start"] - (word["char_start"] > 0)
                wrong = draw_word(rng)
                q, p = 0.9, float(np.exp(-d))
                per.append(
                    {
                        **key,
                        "position": i,
                        "token": sample["text"][start : word["char_end"]],
                        "char_start": start,
                        "char_end": word["char_end"],
                        "start_s": word["start_s"],
                        "end_s": word["end_s"],
                        "after_speech": after,
                        "m": d * 0.95 if after else None,
                        "f": f,
                        "d": d if after else None,
                        "teacher_top": [{"token": " " + word["word"], "p": q}, {"token": " the", "p": 0.04}],
                        "student_top": [
                            {"token": " " + wrong, "p": round(1 - p, 4)},
                            {"token": " " + word["word"], "p": round(p * q, 4)},
                        ],
                    }
                )
            recorded = [t for t in per if t["after_speech"]]
            mean = {k: float(np.mean([t[k] for t in recorded])) if recorded else None for k in ("m", "d")}
            scored.append(
                {
                    **key,
                    **mean,
                    "f": float(np.mean([t["f"] for t in per])) if per else None,
                    "n_positions": len(recorded),
                    "n_positions_f": len(per),
                    "speech_s": row["duration_s"] / 2,
                }
            )
            positions += per
    made = {"run": run["run_id"], "step": run["step"]}
    store.publish(lab, "divergences", scored, made_from=made)
    if tokens:
        store.publish(lab, "token_divergences", positions, made_from=made)


def draw_word(rng) -> str:
    return ["light", "small", "river", "seven", "under", "green"][int(rng.integers(6))]


def _select(lab, strategy, gamma, ids, clusters, where, rng) -> str:
    """Texts in an order drawn from P_target, about two thirds of the corpus."""
    made = {"clustering": ids["clustering"], "strategy": strategy, "gamma": gamma}
    selection = store.ids.selection_id(made)
    con = store.connect(lab)
    d = dict(
        con.execute(
            """SELECT a.cluster_id, sum(v.d * v.n_positions) / sum(v.n_positions) FROM divergences AS v
        JOIN assignments AS a ON a.sample_id = v.sample_id WHERE v.run_id = ? AND v.d IS NOT NULL GROUP BY 1""",
            [ids["run"]],
        ).fetchall()
    )
    p_web = {c["cluster_id"]: c["p_web"] for c in clusters}
    target = {c: p_web[c] * d.get(c, 0.0) ** gamma for c in p_web}
    target = {c: v / sum(target.values()) for c, v in target.items()}
    left = {c: sorted(s for s, k in where.items() if k == c) for c in p_web}
    lengths = dict(con.execute("SELECT sample_id, length(text) FROM samples").fetchall())
    rows = []
    while len(rows) < 0.6 * len(where):
        open_ = [c for c in left if left[c] and target[c] > 0]
        if not open_:
            break
        p = np.array([target[c] for c in open_])
        c = int(rng.choice(open_, p=p / p.sum()))
        s = left[c].pop(int(rng.integers(len(left[c]))))
        rows.append(
            {
                "selection_id": selection,
                "sample_id": s,
                "cluster_id": c,
                "draw": len(rows),
                "p_web": p_web[c],
                "p_target": target[c],
                "d_cluster": d.get(c),
                "estimated_s": lengths[s] * 0.065,
            }
        )
    budget = sum(r["estimated_s"] for r in rows) / 3600 / 1.1
    store.publish(
        lab,
        "selections",
        [
            {
                "selection_id": selection,
                "clustering_id": ids["clustering"],
                "run_id": ids["run"],
                "step": ids["step"],
                "strategy": strategy,
                "gamma": gamma,
                "budget_h": budget,
                "seed": 0,
            }
        ],
        made_from=made,
    )
    store.publish(lab, "selected", rows, made_from=made)
    return selection


def _evaluate(lab, runs, world, rng):
    for contender, (text, speech, cascade) in ACCURACY.items():
        run = runs.get(contender, {"run_id": None, "step": None})
        rows = []
        for domain in LEVEL:
            for modality, level in (("text", text), ("speech", speech), ("cascade", cascade)):
                if level is None:
                    continue
                if modality == "speech":
                    level = min(0.95, level * (2 if domain == "stories" else 1))
                for item in range(world.items_per_domain):
                    right = bool(rng.random() < level)
                    rows.append(
                        {
                            "eval_id": store.ids.hash_id("e", contender, domain, modality, item),
                            **run,
                            "contender": contender,
                            "task": f"miniature_{domain}",
                            "modality": modality,
                            "voice": None if modality == "text" else "en-us",
                            "item_id": f"{domain}-{item}",
                            "scores": [-1.0, -2.0, -2.5, -3.0],
                            "prediction": str(int(not right)),
                            "answer": "0",
                            "correct": right,
                            "correct_norm": right,
                            "domain": domain,
                        }
                    )
        store.publish(lab, "evaluations", rows, made_from={"contender": contender})


if __name__ == "__main__":
    import sys

    print(make_lab(Path(sys.argv[1])))
