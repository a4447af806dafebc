"""salad evaluate, answer and import-predictions, as they are typed."""

import json

import pytest
from test_evaluation import ITEMS, write
from tiny import config, lab

import store
from salad import training
from salad.config import OptimConfig
from workbench import cli


def salad(capsys, *args):
    """(exit status, standard output, standard error's own lines) of a command."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(arg) for arg in args])
    output = capsys.readouterr()
    return stop.value.code, output.out, [line for line in output.err.splitlines() if line.startswith("salad: ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = lab(tmp_path_factory.mktemp("lab"))
    write(folder, "questions", ITEMS)
    optim = OptimConfig(steps=2, batch=2, lr_adapter=1e-3, lr_llm=1e-3, checkpoint_every=2)
    run = training.prepare(folder, config(optim=optim), "tiny")
    training.train(folder, run.run_id)
    return folder, run.run_id


def test_a_run_is_evaluated_compared_and_told(place, capsys):
    folder, run_id = place
    result = salad(capsys, "evaluate", "--lab", folder, "--contender", "teacher", "--modality", "text")
    assert result[0] == 0 and "questions  text" in result[1]
    code, out, _ = salad(capsys, "evaluate", "--lab", folder, "--run", run_id, "--modality", "text,speech", "--against",
                         "teacher")  # fmt: skip
    assert code == 0 and "speech − text" in out and "stage1 against teacher, item by item:" in out
    rows = store.connect(folder).execute(
        "select contender, run_id, step, modality, count(*), count(speech_s), count(compute_s) from evaluations "
        "group by all order by all"
    ).fetchall()  # fmt: skip
    assert rows == [
        ("stage1", run_id, 2, "speech", 3, 3, 3), ("stage1", run_id, 2, "text", 3, 0, 3),
        ("teacher", None, None, "text", 3, 0, 3),
    ]  # fmt: skip


def test_the_floor_for_hearing_is_told_beside_accuracy(place, capsys):
    folder, run_id = place
    code, out, _ = salad(capsys, "evaluate", "--lab", folder, "--run", run_id, "--modality", "text,speech,deaf,silent")
    assert code == 0 and "questions, heard share: " in out and "speech − deaf" in out and "deaf − text" in out


def test_questions_are_answered_and_predictions_imported(place, capsys, tmp_path):
    folder, run_id = place
    (tmp_path / "asked.txt").write_text("What does the otter eat?\n")
    code, out, _ = salad(capsys, "answer", tmp_path / "asked.txt", "--lab", folder, "--run", run_id, "--max-new-tokens", 3)
    assert code == 0 and out.count("What does the otter eat?") == 2
    line = {"contender": "theirs", "task": "questions", "item": "t-0", "modality": "speech", "text": "A"}
    (tmp_path / "theirs.jsonl").write_text(json.dumps(line) + "\n")
    code, out, _ = salad(capsys, "import-predictions", tmp_path / "theirs.jsonl", "--lab", folder)
    assert code == 0 and out.startswith("theirs, questions, speech: 1 of 3 items, 100.0 % right")


@pytest.mark.parametrize(
    "args, message",
    [
        (["evaluate", "--tasks", "question"], "did you mean 'questions'"),
        (["evaluate", "--modality", "smell"], "no modality 'smell'"),
        (["evaluate", "--contender", "teachers"], "did you mean teacher"),
        (["evaluate", "--against", "nobody"], "no evaluation of 'nobody'"),
        (["evaluate", "--step", "7"], "has no checkpoint of step 7"),
        (["evaluate", "--voices", "nobody+f9", "--modality", "speech"], "nobody"),
        (["answer", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["import-predictions", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(place, capsys, args, message):
    folder, run_id = place
    run = ["--run", run_id] if args[0] == "evaluate" and "--contender" not in args else []
    before = len(list((folder / "tables").rglob("*.parquet")))
    code, out, lines = salad(capsys, *args, *run, "--lab", folder)
    assert code == 2 and not out and message in lines[-1]
    assert len([line for line in lines if "deprecated" not in line]) == 1
    assert before == len(list((folder / "tables").rglob("*.parquet")))
