"""Cluster embedded texts, and choose each cluster's probe."""

import hashlib
from pathlib import Path

import numpy as np

import store
from salad.errors import SaladError
from salad.passes import published
from salad.selection import BalancedKMeans, terms
from store.ids import clustering_id, digest


def cluster(lab: Path | str, run_id: str | None, model_name: str, corpus: str, n_clusters: int, seed: int) -> str:
    """Publish a balanced clustering of the corpus's embeddings (`clusters`, `assignments`); returns its id."""
    con = store.connect(lab)
    found = con.execute(
        """select e.sample_id, e.vector, s.text from embeddings e join samples s using (sample_id)
           where e.model = ? and s.corpus = ?
           qualify row_number() over (partition by e.sample_id) = 1 order by e.sample_id""",
        [model_name, corpus],
    ).fetchall()
    ids = [row[0] for row in found]
    made_from = {
        "pass": "cluster", "model": model_name, "corpus": corpus, "n_clusters": n_clusters, "seed": seed,
        "samples": digest(ids),
    }  # fmt: skip
    name = clustering_id(made_from)
    if not found:
        raise SaladError(f"no embeddings of {corpus!r} by {model_name!r}; make them with `salad pass embed`")
    if all(store.unit_id(table, made_from) in published(lab) for table in ("assignments", "clusters")):
        return name
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
