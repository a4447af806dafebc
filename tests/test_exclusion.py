"""Clusters that a bound on the CER leaves out: whether the speech or the writing is to blame."""

import numpy as np
import pandas as pd
import pytest

import store
from salad.selection.exclusion import left_out, speech_by_cluster
from workbench.reports.summary import clusters_left_out

PLAIN = "The river runs, slowly, through the old town."
TEXTS = {  # cluster -> (text, CER) of its syntheses
    0: [(PLAIN, 0.05), ("It cost $5 & 20% of 300.", 0.9), ("In 1998 we had 4 of 10.", 0.8)],
    1: [(PLAIN + " Twice.", 0.7), ("A badly spoken text.", 0.9)],
    2: [(PLAIN + " Three times.", 0.02), ("All is well.", 0.04)],
    3: [("x = 3 + 4", 0.95)],
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = tmp_path_factory.mktemp("exclusion")
    samples, assigned, spoken = [], [], []
    for cluster, texts in TEXTS.items():
        for text, cer in texts:
            name = store.ids.sample_id("broad", text)
            samples.append({"sample_id": name, "text": text, "corpus": "broad"})
            assigned.append({"clustering_id": "c1", "sample_id": name, "cluster_id": cluster})
            spoken.append({"synthesis_id": store.ids.synthesis_id(name, "espeak", "v", 0), "sample_id": name, "cer": cer,
                           "raw_cer": cer + 0.1, "duration_s": 2.0, "tts": "espeak", "speech": "probe"})  # fmt: skip
    clusters = [{"clustering_id": "c1", "cluster_id": k, "size": len(TEXTS[k]), "terms": [f"term{k}"]} for k in TEXTS]
    selection = {"selection_id": "l1", "clustering_id": "c1", "speech": "probe", "max_cer": 0.5, "strategy": "active"}
    for table, rows in (
        ("samples", samples),
        ("assignments", assigned),
        ("syntheses", spoken),
        ("clusters", clusters),
        ("selections", [selection]),
    ):
        store.publish(lab, table, rows, {"made": "here"})
    return lab


def share(texts, chosen):
    result = "".join("".join(text for text, _ in texts).split())
    return sum(chosen(c) for c in result) / len(result)


def test_digits_and_symbols_are_counted_as_python_counts_them(lab):
    clusters = speech_by_cluster(store.connect(lab), "c1", "probe").set_index("cluster_id")
    assert list(clusters.n) == [3, 2, 2, 1] and list(clusters.n_plain) == [1, 2, 2, 0]
    for cluster, texts in TEXTS.items():
        row = clusters.loc[cluster]
        assert row.cer == pytest.approx(np.mean([cer for _, cer in texts])) and row.raw_cer == pytest.approx(row.cer + 0.1)
        assert row.digits == pytest.approx(share(texts, str.isdigit))
        assert row.symbols == pytest.approx(share(texts, lambda c: not c.isalnum() and c not in ".,;:!?'\"()"))
    assert clusters.loc[0, "symbols"] == pytest.approx(3 / len("".join("".join(t for t, _ in TEXTS[0]).split())))
    assert not len(speech_by_cluster(store.connect(lab), "c1", "another"))


def test_a_formatting_fault_does_not_pass_for_bad_speech(lab):
    rows = left_out(speech_by_cluster(store.connect(lab), "c1", "probe"), 0.5)
    assert dict(zip(rows.cluster_id, rows.blame, strict=True)) == {0: "writing", 1: "speech", 3: "unknown"}
    assert pd.isna(rows.set_index("cluster_id").cer_plain[3])


def test_the_report_says_which_clusters_an_exclusion_removes_and_of_what_they_are_made(lab):
    (table,) = clusters_left_out(store.connect(lab))
    assert [(cells[0], cells[2], cells[3], cells[-1]) for cells in table.cells] == [
        ("l1", "0", "term0", "writing"),
        ("l1", "1", "term1", "speech"),
        ("l1", "3", "term3", "unknown"),
    ]
    assert "0.05 (1)" in table.cells[0] and len(table.heads) == len(table.cells[0])
