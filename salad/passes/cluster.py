"""Cluster embedded texts, and choose each cluster's probe."""

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import store
from salad.errors import SaladError
from salad.passes import published
from salad.selection import BalancedKMeans, terms
from store.ids import clustering_id, digest

HELD = 1 << 30  # bytes of vectors that are held in memory; more are mapped from a file
BATCH = 16_384
MAX_TEXTS_FOR_TERMS = 500_000  # texts that the clusters' terms are taken from, at most


def cluster(
    lab: Path | str, run_id: str | None, model_name: str, corpus: str, n_clusters: int, seed: int, held: int = HELD
) -> str:
    """Publish a balanced clustering of the corpus's embeddings (`clusters`, `assignments`); returns its id.

    Over `held` bytes of vectors lie in a file without a name beside the lab's tables while this lasts; memory is then
    some 100 bytes a text and what BalancedKMeans takes. A cluster's terms come from at most
    MAX_TEXTS_FOR_TERMS texts, drawn by `seed`."""
    con = store.connect(lab)
    wanted = "from embeddings e join samples s using (sample_id) where e.model = ? and s.corpus = ?"
    ids = con.sql(f"select distinct e.sample_id {wanted} order by 1", params=[model_name, corpus]).to_arrow_table()[0]
    made_from = {
        "pass": "cluster", "model": model_name, "corpus": corpus, "n_clusters": n_clusters, "seed": seed,
        "samples": digest(ids.to_pylist()),
    }  # fmt: skip
    name = clustering_id(made_from)
    if not len(ids):
        raise SaladError(f"no embeddings of {corpus!r} by {model_name!r}; make them with `salad pass embed`")
    if all(store.unit_id(table, made_from) in published(lab) for table in ("assignments", "clusters")):
        return name
    x = _vectors(con, lab, ids, wanted, [model_name, corpus], held)
    mean = x.mean(0)
    for rows in _slices(len(x)):
        # centred: hidden states share a large common part, which would hide what tells texts apart
        x[rows] -= mean
        x[rows] /= np.linalg.norm(x[rows], axis=1, keepdims=True)
    model = BalancedKMeans(n_clusters, seed).fit(x)
    labels, centers = model.labels_, model.cluster_centers_
    distance = np.concatenate([1 - (x[rows] * centers[labels[rows]]).sum(1) for rows in _slices(len(x))])
    del x
    terms = _terms(con, ids, labels, n_clusters, seed)
    sizes = np.bincount(labels, minlength=n_clusters)
    store.publish(lab, "assignments", pa.table({
        "clustering_id": pa.repeat(name, len(ids)), "sample_id": ids, "cluster_id": labels, "distance": distance,
    }), made_from)  # fmt: skip
    store.publish(lab, "clusters", [
        {"clustering_id": name, "cluster_id": k, "run_id": run_id, "size": int(sizes[k]),
         "p_web": float(sizes[k] / sizes.sum()), "terms": terms[k],
         "centroid": model.cluster_centers_[k].tolist(), "price": float(model.prices_[k])}
        for k in range(n_clusters)
    ], made_from)  # fmt: skip
    return name


def _slices(n: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, n, BATCH)]


def _vectors(con, lab, ids: pa.ChunkedArray, wanted: str, of: list, held: int) -> np.ndarray:
    """The embeddings in the order of `ids`, float32 [N, D], in memory or mapped."""
    width = len(con.sql(f"select e.vector {wanted} limit 1", params=of).to_arrow_table()[0][0])
    if len(ids) * width * 4 <= held:
        x = np.empty((len(ids), width), np.float32)
    else:
        try:
            with tempfile.TemporaryFile(dir=store.lab_path(lab)) as file:  # gone with this process, however it ends
                os.posix_fallocate(file.fileno(), 0, len(ids) * width * 4)  # or a full disk would be a SIGBUS
                x = np.memmap(file, np.float32, "r+", shape=(len(ids), width))
        except OSError as error:
            size = f"{len(ids) * width * 4 / 1e9:.1f} GB of embeddings"
            raise SaladError(f"{lab}: no room for {size} while they are clustered ({error.strerror})") from error
    names = np.array(ids.to_pylist(), "S")
    for batch in con.sql(f"select e.sample_id, e.vector {wanted}", params=of).to_arrow_reader(BATCH):
        flat = batch.column(1).flatten()
        if len(flat) != batch.num_rows * width:
            raise SaladError(f"embeddings by {of[0]!r} are not all of {width} dimensions: they are of two models; embed anew")
        x[np.searchsorted(names, np.array(batch.column(0).to_pylist(), "S"))] = flat.to_numpy().reshape(-1, width)
    return x


def _terms(con, ids: pa.ChunkedArray, labels: np.ndarray, n_clusters: int, seed: int) -> list[list[str]]:
    rows = np.arange(len(ids))
    if len(rows) > MAX_TEXTS_FOR_TERMS:
        rows = np.sort(np.random.default_rng(seed).choice(len(ids), MAX_TEXTS_FOR_TERMS, replace=False, shuffle=False))
    con.register("_told", pa.table({"row": rows, "sample_id": ids.take(pa.array(rows))}))
    texts = con.sql(
        "select text from _told t join (select sample_id, any_value(text) as text from samples group by 1) using (sample_id) "
        "order by t.row"
    ).to_arrow_table()["text"].to_pylist()  # fmt: skip
    con.unregister("_told")
    return terms(texts, labels[rows], n_clusters)


def probe_texts(lab: Path | str, clustering: str, per_cluster: int, seed: int) -> list[tuple[str, str]]:
    """(sample id, text) of each cluster's probe: `per_cluster` of its texts, drawn by a hash of seed and id."""
    rows = store.connect(lab).execute(
        """select a.cluster_id, a.sample_id, s.text from assignments a join samples s using (sample_id)
           where clustering_id = ? order by 1, 2""",
        [clustering],
    ).fetchall()  # fmt: skip
    return of_each(rows, per_cluster, seed)


def of_each(rows: Iterable[tuple[Any, str, str]], n: int, seed: int) -> list[tuple[str, str]]:
    """(sample id, text) of `n` texts of each group, drawn by a hash of seed and id, from (group, sample id, text) rows."""
    groups: dict[Any, list] = {}
    for group, sample_id, text in rows:
        key = hashlib.sha256(f"{seed} {sample_id}".encode()).digest()
        groups.setdefault(group, []).append((key, sample_id, text))
    return [(s, t) for group in sorted(groups) for _, s, t in sorted(groups[group])[:n]]
