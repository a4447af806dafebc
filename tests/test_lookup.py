"""What is taken where no name is given: a lab's newest run, teacher, clustering and checkpoint, by one definition each."""

import pytest

import store
from salad import lookup
from salad.errors import SaladError
from salad.runs import RunFolder


def made(lab, kind: str, seed: int, ended_at: str | None, state: str = "done", **result) -> str:
    run = RunFolder.get_or_create(lab, kind, "a recipe", {"kind": kind, "seed": seed, "contender": kind})
    store.atomic.write_json(run.path / "status.json", {"state": state, "ended_at": ended_at, **result})
    return run.run_id


def test_the_newest_run_is_that_which_ended_last_and_one_that_is_not_done_does_not_count(tmp_path):
    with pytest.raises(SaladError, match="has no finished stage1 run; name one with --run"):
        lookup.newest_run(tmp_path, "stage1")
    made(tmp_path, "stage1", 0, "2026-01-01T05:00:00Z", "failed")
    made(tmp_path, "stage1", 1, None, "running")
    with pytest.raises(SaladError, match="train one first"):
        lookup.newest_run(tmp_path, "stage1", "train one first")
    late = made(tmp_path, "stage1", 2, "2026-01-01T03:00:00Z")
    made(tmp_path, "stage1", 3, "2026-01-01T02:00:00Z")
    made(tmp_path, "stage1", 4, None)
    made(tmp_path, "stage2", 5, "2026-01-01T09:00:00Z")
    assert lookup.newest_run(tmp_path, "stage1") == late


def test_of_runs_that_ended_together_the_higher_id_is_the_newest(tmp_path):
    both = [made(tmp_path, "stage1", seed, "2026-01-01T03:00:00Z") for seed in (0, 1)]
    assert lookup.newest_run(tmp_path, "stage1") == max(both)


def test_a_teacher_from_elsewhere_has_no_run_and_a_trained_one_its_last_step(tmp_path):
    assert lookup.newest_teacher(tmp_path) == (None, None)
    made(tmp_path, "teacher", 0, "2026-01-01T01:00:00Z", step=40)
    last = made(tmp_path, "teacher", 1, "2026-01-01T02:00:00Z", step=80)
    assert lookup.newest_teacher(tmp_path) == (last, 80)


def test_the_newest_clustering_is_the_one_that_divergences_name(tmp_path):
    with pytest.raises(SaladError, match="no clustering; make one"):
        lookup.newest_clustering(tmp_path)
    for name, hour in (("c1", 4), ("c2", 3)):
        run = made(tmp_path, "pass", hour, f"2026-01-01T0{hour}:00:00Z")
        store.publish(tmp_path, "clusters", [{"clustering_id": name, "cluster_id": 0, "run_id": run}], {"c": name})
        row = {"clustering_id": name, "sample_id": "s1", "cluster_id": 0}
        store.publish(tmp_path, "assignments", [row], {"c": name})
    scored = {"run_id": "r1", "step": 1, "sample_id": "s1", "synthesis_id": "y1", "pattern": 0}
    store.publish(tmp_path, "divergences", [scored], {"d": 1})
    of_view = store.connect(tmp_path).execute("SELECT DISTINCT clustering_id FROM divergences").fetchall()
    assert [(lookup.newest_clustering(tmp_path),)] == of_view == [("c1",)]


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    run = made(tmp_path, "stage1", 0, None, "running")
    with pytest.raises(SaladError, match="has no checkpoint yet"):
        lookup.checkpoint(tmp_path, run)
    with pytest.raises(SaladError, match="no checkpoint of step 3"):
        lookup.checkpoint(tmp_path, run, 3)
