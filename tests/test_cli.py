"""The command line: tables out, one line for a user's error, a promise kept on Ctrl-C."""

import contextlib
import csv
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from labs import make_lab

import store
from salad.analysis import ALL
from workbench import cli, reports

QUESTION = (
    "select domain, count(*) as n, round(avg(d), 9) as d from misalignment where d is not null group by domain order by domain"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = tmp_path_factory.mktemp("cli") / "lab"
    make_lab(lab, broad=140, spoken=30, n_items=12)
    return lab


def run(capsys, *args) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in args])
    output = capsys.readouterr()
    return stop.value.code, output.out, output.err


def salad(*args, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "workbench.cli", *map(str, args)], capture_output=True, text=True, **kwargs)


def test_help_answers_within_a_second_and_names_every_command():
    def spent():  # of CPU: the clock would measure what else the machine is doing
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = spent()
    completed = salad("--help")
    assert completed.returncode == 0 and spent() - before < 1.0
    assert all(name in completed.stdout for name in cli.COMMANDS)


def test_every_command_explains_itself_and_takes_a_lab(capsys):
    for name, function in cli.COMMANDS.items():
        code, out, _ = run(capsys, name, "--help")
        first_words = " ".join(function.__doc__.split()[:5])
        assert code == 0 and first_words in " ".join(out.split()) and "--lab" in out, name


def test_sql_gives_the_same_rows_as_table_csv_json_and_parquet(capsys, lab, tmp_path):
    expected = store.query(lab, QUESTION).to_pylist()
    assert len(expected) == 7
    code, out, _ = run(capsys, "sql", QUESTION, "--lab", lab, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and [r["domain"] for r in rows] == [r["domain"] for r in expected]
    assert [float(r["d"]) for r in rows] == [r["d"] for r in expected]
    _, out, _ = run(capsys, "sql", QUESTION, "--lab", lab, "--json")
    assert [json.loads(line) for line in out.splitlines()] == expected
    _, out, _ = run(capsys, "sql", QUESTION, "--lab", lab)
    assert all(r["domain"] in out and f"{r['d']:.4g}" in out for r in expected) and "7 rows" in out
    run(capsys, "sql", QUESTION, "--lab", lab, "--parquet", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == expected


def test_lists_structs_and_times_come_out_of_sql_whole(capsys, lab):
    question = (
        "select terms, (select words[1:2] from syntheses order by synthesis_id limit 1) as w, "
        "(select min(started_at) from runs) as t from clusters order by cluster_id limit 1"
    )
    expected = store.query(lab, question).to_pylist()[0]
    _, out, _ = run(capsys, "sql", question, "--lab", lab, "--csv")
    row = next(csv.DictReader(io.StringIO(out)))
    assert json.loads(row["terms"]) == expected["terms"] and json.loads(row["w"]) == expected["w"]
    _, out, _ = run(capsys, "sql", question, "--lab", lab, "--json")
    assert json.loads(out)["t"] == expected["t"].isoformat()


def test_sql_reads_the_statement_from_the_standard_input(lab):
    completed = salad("sql", "-", "--csv", "--lab", lab, input="select 6 * 7 as answer")
    assert completed.stdout == "answer\n42\n"


def test_the_lab_may_come_from_the_environment(lab, monkeypatch, capsys):
    monkeypatch.setenv("SALAD_LAB", str(lab))
    _, out, _ = run(capsys, "sql", "select count(*) as n from clusters", "--csv")
    assert out == "n\n14\n"


@pytest.mark.parametrize(
    "args, words",
    [
        (("sql", "selec 1"), ("SQL",)),
        (("sql", "drop table runs"), ("only SELECT",)),
        (("sql", "select nothing from runs"), ("nothing",)),
        (("sql", "--lb", "x", "select 1"), ("no option --lb", "did you mean --lab?", "salad sql --help")),
        (("sql", "select 1", "--timeout", "soon"), ("--timeout", "soon")),
        (("sql",), ("Missing",)),
        (("sqll", "select 1"), ("sqll", "did you mean sql?")),
        ((), ("name a command",)),
        (("sql", "select 1", "--parquet", "/proc/nowhere/out.parquet"), ("/proc",)),
    ],
)
def test_a_users_error_is_one_line_and_exit_2(capsys, monkeypatch, tmp_path, args, words):
    monkeypatch.setenv("SALAD_LAB", str(tmp_path))
    code, out, err = run(capsys, *args)
    assert code == 2 and not out and len(err.strip().splitlines()) == 1 and err.startswith("salad: ")
    assert all(word in err for word in words), err


def test_ctrl_c_is_one_line_and_exit_130(tmp_path):
    slow = "select count(*) from range(100000000) a, range(100000000) b"
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench.cli", "sql", slow, "--timeout", "600", "--lab", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(4)
    assert process.poll() is None
    for _ in range(20):  # as a person does: a first one may come while something is being imported
        os.kill(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
            break
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err.strip() == "salad: interrupted; rerun the command to resume."


def test_what_a_script_starts_in_the_background_goes_on_ignoring_ctrl_c(tmp_path):
    slow = "select count(*) from range(100000000) a, range(100000000) b"
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "-", sys.executable, "-m", "workbench.cli", "sql", slow, "--timeout", "600",
         "--lab", str(tmp_path)], stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(8):
            time.sleep(0.5)
            os.kill(process.pid, signal.SIGINT)
            assert process.poll() is None
        ignored = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("SigIgn"))
        assert int(ignored.split()[1], 16) & 1 << (signal.SIGINT - 1)
    finally:
        process.kill()
        process.wait()


def test_index_writes_a_file_that_duckdb_opens(capsys, lab):
    import duckdb

    code, out, _ = run(capsys, "index", "--lab", lab)
    assert code == 0
    with duckdb.connect(out.strip(), read_only=True) as con:
        assert con.execute("select count(*) from clusters").fetchone() == (14,)


def test_report_shows_each_contender_in_each_group_with_the_figures_that_sql_gives(capsys, lab):
    code, out, _ = run(capsys, "report", "--lab", lab)
    assert code == 0 and "report.html" in out
    page, text = (lab / "report.html").read_text(), (lab / "report.md").read_text()
    assert page.count("<svg") >= 4 and "SALAD" in text
    made = reports.report(lab)
    assert list(made.rows.contender.unique()) == ["teacher", "stage1", "stage2_active", "stage2_uniform"]
    assert list(made.rows.group.unique()) == [ALL, "covered", "partly covered", "broad"]
    con = store.connect(lab)
    broad = con.execute("""select avg(a), sqrt(sum(v)) / 5 from (
        select avg(correct_norm::int) as a, var_samp(correct_norm::int) / count(*) as v from evaluations
        where contender = 'stage2_active' and modality = 'speech' and domain not in ('stories', 'family')
        group by domain)""").fetchone()
    row = made.rows[(made.rows.group == "broad") & (made.rows.contender == "stage2_active")].iloc[0]
    assert row.speech == pytest.approx(broad[0]) and row.speech_se == pytest.approx(broad[1])
    p_web = json.loads((lab / "study.json").read_text())["p_web"]
    m = dict(
        con.execute("""select s.domain, sum(v.m * v.n_positions) / sum(v.n_positions) from divergences v
        join samples s using (sample_id) join runs r on r.run_id = v.run_id
        where s.corpus = 'heldout' and v.m is not null
        and r.config->>'contender' = 'stage2_uniform' group by 1""").fetchall()
    )
    row = made.rows[(made.rows.group == ALL) & (made.rows.contender == "stage2_uniform")].iloc[0]
    assert row.m == pytest.approx(sum(p_web[d] * m[d] for d in p_web))
    assert f"{row.m:.3f}" in out and f"{row.m:.3f}" in text and f"{row.m:.3f}" in page


def test_report_of_a_lab_without_evaluations_says_what_to_do(capsys, tmp_path):
    code, _, err = run(capsys, "report", "--lab", tmp_path)
    assert code == 2 and "salad evaluate" in err and len(err.strip().splitlines()) == 1


def test_runs_of_a_report_are_named_whole_and_speech_takes_no_workers(capsys, lab, tmp_path):
    code, _, err = run(capsys, "report", "--lab", lab, "--runs", "rnope")
    assert code == 2 and "rnope" in err and len(err.splitlines()) == 1
    code, _, err = run(capsys, "prepare", "speech", tmp_path, "--name", "x", "--workers", "2", "--lab", lab)
    assert code == 2 and "--part" in err and len(err.splitlines()) == 1
