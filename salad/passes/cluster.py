"""Embed texts, cluster them, and choose each cluster's probe."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import store
from salad.objective import distillation_loss
from salad.passes import Progress
from salad.selection import BalancedKMeans, terms
from store.ids import clustering_id, digest


@torch.no_grad()
def embed(lab: Path | str, llm, tokenizer, corpus: str, model_name: str, batch: int = 64,
          progress: Progress | None = None) -> None:  # fmt: skip
    """Publish the mean-pooled last hidden states of `llm`, of unit length, for the corpus's speakable samples, and its
    mean NLL of each, nats a token from the second on.

    The embedded default: needs no further model. Texts with a flag (formula, code, url …) are left out."""
    con = store.connect(lab)
    rows = con.execute(
        "select sample_id, text from samples where corpus = ? and len(coalesce(flags, [])) = 0 order by sample_id",
        [corpus],
    ).fetchall()
    made_from = {"pass": "embed", "corpus": corpus, "model": model_name, "samples": digest([r[0] for r in rows])}
    if store.exists(lab, "embeddings", made_from):
        return
    ids = tokenizer([text for _, text in rows], add_special_tokens=False)["input_ids"]
    order = sorted(range(len(rows)), key=lambda i: (len(ids[i]), i))
    vectors = np.zeros((len(rows), llm.config.hidden_size), dtype=np.float32)
    nll, head = np.full(len(rows), np.nan), llm.get_output_embeddings().weight
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        longest = max(len(ids[i]) for i in group) or 1
        inputs, mask = torch.zeros(len(group), longest, dtype=torch.long), torch.zeros(len(group), longest, 1)
        for row, i in enumerate(group):
            inputs[row, : len(ids[i])] = torch.tensor(ids[i], dtype=torch.long)
            mask[row, : len(ids[i])] = 1
        device = llm.device
        hidden = llm.get_decoder()(input_ids=inputs.to(device), use_cache=False).last_hidden_state
        targets = torch.where(mask[:, 1:, 0] > 0, inputs[:, 1:], -1).to(device)
        told = distillation_loss(hidden[:, :-1].flatten(0, 1), head, hidden[:, :-1].flatten(0, 1), head,
                                 targets.flatten(), alpha=0.0, vocab_size=len(tokenizer), reduction="none")  # fmt: skip
        count = (targets >= 0).sum(1)
        mean = told.nll.view(targets.shape).sum(1) / count
        nll[group] = torch.where(count > 0, mean, torch.nan).double().cpu().numpy()
        hidden = hidden.float().cpu()
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
        vectors[group] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        if progress is not None:
            progress(min(start + batch, len(order)), len(order))
    table = pa.table({
        "sample_id": [r[0] for r in rows],
        "model": [model_name] * len(rows),
        "vector": pa.array(list(vectors), pa.list_(pa.float32())),
        "nll": pa.array(nll, from_pandas=True),
    })  # fmt: skip
    store.publish(lab, "embeddings", table, made_from)


def cluster(lab: Path | str, run_id: str, model_name: str, corpus: str, n_clusters: int, seed: int) -> str:
    """Publish a balanced clustering of the corpus's embeddings (`clusters`, `assignments`); returns its id."""
    con = store.connect(lab)
    found = con.execute(
        """select e.sample_id, e.vector, s.text from embeddings e join samples s using (sample_id)
           where e.model = ? and s.corpus = ? order by e.sample_id""",
        [model_name, corpus],
    ).fetchall()
    ids = [row[0] for row in found]
    made_from = {
        "pass": "cluster", "model": model_name, "corpus": corpus, "n_clusters": n_clusters, "seed": seed,
        "samples": digest(ids),
    }  # fmt: skip
    name = clustering_id(made_from)
    x = np.asarray([row[1] for row in found], dtype=np.float32)
    # centred: hidden states share a large common part, which would hide what tells texts apart
    x = x - x.mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    model = BalancedKMeans(n_clusters, seed).fit(x)
    labels = model.predict(x)
    distance = 1 - (x * model.cluster_centers_[labels]).sum(1)
    told = terms([row[2] for row in found], labels, n_clusters)
    sizes = np.bincount(labels, minlength=n_clusters)
    store.publish(lab, "assignments", [
        {"clustering_id": name, "sample_id": s, "cluster_id": int(k), "distance": float(v)}
        for s, k, v in zip(ids, labels, distance, strict=True)
    ], made_from)  # fmt: skip
    store.publish(lab, "clusters", [
        {"clustering_id": name, "cluster_id": k, "run_id": run_id, "size": int(sizes[k]),
         "p_web": float(sizes[k] / sizes.sum()), "terms": told[k],
         "centroid": model.cluster_centers_[k].tolist(), "price": float(model.prices_[k])}
        for k in range(n_clusters)
    ], made_from)  # fmt: skip
    return name


def probe_texts(lab: Path | str, clustering: str, per_cluster: int, seed: int) -> list[tuple[str, str]]:
    """(sample id, text) of each cluster's probe: `per_cluster` of its texts, drawn by a hash of seed and id."""
    rows = store.connect(lab).execute(
        """select a.cluster_id, a.sample_id, s.text from assignments a join samples s using (sample_id)
           where clustering_id = ? order by 1, 2""",
        [clustering],
    ).fetchall()  # fmt: skip
    by_cluster: dict[int, list] = {}
    for cluster_id, sample_id, text in rows:
        key = hashlib.sha256(f"{seed} {sample_id}".encode()).digest()
        by_cluster.setdefault(cluster_id, []).append((key, sample_id, text))
    return [(s, t) for k in sorted(by_cluster) for _, s, t in sorted(by_cluster[k])[:per_cluster]]
