"""Pins: what a tiny study computes is what tests/pins.json says, on any CPU."""

import copy
import json

import pytest
from pins import ANY_CPU, GOLDEN, ROOT, SAME_MACHINE, differences, measured


@pytest.fixture(scope="module")
def now():
    return measured(ROOT)


def test_losses_rows_and_ids_are_those_that_are_committed(now):
    rows = list(differences(json.loads(GOLDEN.read_text()), now, ANY_CPU))
    assert not rows, "\n".join([*rows[:40], "where that is meant: python -m tests.pins --write, in a commit of its own"])


def test_a_resumed_run_has_the_losses_of_the_one_that_nothing_stopped(now):
    result = now["trajectories"]
    assert result["lora, resumed"] == result["lora"] and len(result["lora"]) == 20


def test_a_change_of_a_loss_a_row_or_an_id_is_seen(now):
    assert not list(differences(now, json.loads(json.dumps(now)), SAME_MACHINE))
    for path, change in (
        (("trajectories", "full", 19, "loss"), lambda x: x * (1 + 3e-6)),
        (("trajectories", "lora, packed", 3, "tokens"), lambda x: x + 1),
        (("scoring", 2, "m"), lambda x: x * (1 + 3e-6)),
        (("ids", "units", 0), lambda x: x[:-1]),
    ):
        changed = node = copy.deepcopy(now)
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = change(node[path[-1]])
        (result,) = differences(now, changed, SAME_MACHINE)
        assert str(path[-1]) in result
