"""How the notebooks feel on a large lab: first paint, and what a click costs, in Debian's Chromium.

    python benchmarks/notebooks.py                    # a lab of 1 M divergences is made first (minutes, 2 GB)
    python benchmarks/notebooks.py --lab FOLDER       # one that was made before
    python benchmarks/notebooks.py --tables           # Markdown of the committed results

The lab: 250,000 texts in 128 clusters, all scored under two checkpoints with two patterns each, 6 M scored tokens, a
selection of 200,000 texts, 1,000 decisions. Texts, divergences and tokens are drawn; the speech is espeak's, 24
recordings that all the texts share. Times are from the act in the page to what it changes in the page. The CPU seconds
are those of the notebook's process, which a busy machine does not lengthen. The floor is a notebook of a heading and a
figure of two bars on the same machine in the same run: what marimo and the browser take by themselves.
Results: `benchmarks/results/notebooks.json`.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).parent]  # a file there is named store
sys.path.insert(0, str(ROOT / "tests"))

import duckdb  # noqa: E402

import store  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "notebooks.json"
TEXTS, CLUSTERS, DRAWN, WORDS = 250_000, 128, 200_000, 12
PART = 50_000  # texts a unit
VOCABULARY = (
    "tidal comet onion viola glass amber cedar delta ember fjord grain heron inlet joule karst lemon maple night "
    "ocean pearl quartz river stone tulip umber vapor wheat xenon yeast zebra acorn basil cello drift"
).split()
EMPTY = """import marimo
app = marimo.App(width="full")
with app.setup:
    import altair as alt
    import marimo as mo
    import pandas as pd
@app.cell
def _():
    mo.md("## Two bars")
    return
@app.cell
def _():
    mo.ui.altair_chart(alt.Chart(pd.DataFrame({"a": [1, 2], "b": [3, 4]})).mark_bar().encode(x="a:Q", y="b:Q"))
    return
"""
TOP = "[{{'token': ' ' || {}, 'p': 0.6}}, {{'token': ' the', 'p': 0.2}}]"


def make(lab: Path, texts: int = TEXTS, drawn: int = DRAWN) -> None:
    """Publish the lab, in units of PART texts, as shards of a pass do."""
    from labs import _run
    from numpy.random import default_rng

    from salad.speech import load_tts, shar

    con, rng = duckdb.connect(), default_rng(0)
    con.execute("CREATE TABLE w AS SELECT ? AS list", [VOCABULARY])
    con.execute(f"""CREATE TABLE texts AS SELECT i, 's' || substr(md5('t' || i), 1, 12) AS sample_id,
        (hash(i) % {CLUSTERS})::INTEGER AS cluster_id, 'y' || substr(md5('y' || i), 1, 12) AS synthesis_id,
        list_transform(range({WORDS}), lambda k: list[(hash(i * 31 + k) % len(list) + 1)::INTEGER]) AS words,
        array_to_string(words, ' ') || '.' AS text FROM range({texts}) t(i), w""")
    runs = {name: _run(lab, name, kind, rng) for name, kind in (("stage1", "stage1"), ("stage2_active", "stage2"))}
    item = runs["stage1"]
    tts, spoken = load_tts("espeak"), con.sql("SELECT sample_id, text FROM texts WHERE i < 24").fetchall()
    real = shar.write(lab, "probe", spoken, lambda s: shar.Speech(
        store.ids.synthesis_id(s[0], "espeak", "en-us", 0), s[0], s[1], tts.speak(s[1], "en-us", 0), "en-us", "espeak"),
        job_id=lambda s: store.ids.synthesis_id(s[0], "espeak", "en-us", 0))  # fmt: skip
    con.register(
        "incoming", _arrow([{k: r[k] for k in ("audio_path", "audio_offset", "audio_bytes", "duration_s")} for r in real])
    )
    con.execute("CREATE TABLE real AS SELECT row_number() OVER () - 1 AS at, * FROM incoming")
    clustering = store.ids.clustering_id({"benchmark": "notebooks", "texts": texts})
    clusters = con.sql(
        f"""SELECT $c AS clustering_id, cluster_id, $r AS run_id, count(*) AS size,
        count(*) / {texts} AS p_web, list_distinct(any_value(words))[1:4] AS terms FROM texts GROUP BY cluster_id""",
        params={"c": clustering, "r": item["run_id"]},
    )
    store.publish(lab, "clusters", clusters.to_arrow_table(), {"k": CLUSTERS})
    level = "(0.3 + (hash(cluster_id) % 100) / 40.0)"
    position = f"""SELECT i, sample_id, synthesis_id, cluster_id, k AS position, words[k + 1] AS word,
        (hash(i * {WORDS} + k) % 2)::INTEGER AS pattern, k > 0 AS after_speech, d.duration_s * k / {WORDS} AS start_s,
        d.duration_s * (k + 1) / {WORDS} AS end_s, length(array_to_string(words[1:k], ' '))::INTEGER AS char_start,
        length(array_to_string(words[1:k + 1], ' '))::INTEGER AS char_end FROM (SELECT *, unnest(range({WORDS})) AS k FROM texts
        WHERE i >= $from AND i < $from + {PART}) JOIN real AS d ON d.at = i % 24"""
    con.execute("SET preserve_insertion_order=false")
    for start in range(0, texts, PART):
        part, key = {"from": start}, {"benchmark": "notebooks", "from": start}

        def put(table, query, part=part, key=key, **more):
            store.publish(lab, table, con.sql(query, params=part).to_arrow_table(), key | more)

        where = f"FROM texts WHERE i >= $from AND i < $from + {PART}"
        put(
            "samples",
            f"""SELECT sample_id, text, text AS spoken, 'broad' AS corpus, 'domain ' || cluster_id % 7 AS
            domain, {WORDS} AS n_tokens, 'CC0-1.0' AS licence, CASE WHEN i % 50 = 0 THEN ['near-duplicate'] ELSE [] END
            AS flags {where}""",
        )
        put("assignments", f"SELECT '{clustering}' AS clustering_id, sample_id, cluster_id, random() AS distance {where}")
        put(
            "syntheses",
            f"""SELECT synthesis_id, sample_id, sample_id AS cut_id, audio_path, audio_offset, audio_bytes,
            'espeak' AS tts, 'en-us' AS voice, duration_s, list_transform(range({WORDS}), lambda k: {{'word': words[k + 1],
            'char_start': (length(array_to_string(words[1:k], ' ')) + (k > 0)::INT)::INTEGER, 'char_end':
            length(array_to_string(words[1:k + 1], ' '))::INTEGER, 'start_s': duration_s * k / {WORDS}, 'end_s':
            duration_s * (k + 1) / {WORDS}}}) AS words, least(1, -ln(1 - random()) / 20) AS cer, 'recogniser' AS asr,
            []::VARCHAR[] AS flags, 0 AS seed, 'probe' AS speech
            FROM texts JOIN real ON real.at = i % 24 WHERE i >= $from AND i < $from + {PART}""",
        )
        for name, run in runs.items():
            scale = "0.1" if name == "stage2_active" else "1.0"
            con.execute(
                f"""CREATE OR REPLACE TABLE tokens AS SELECT '{run["run_id"]}' AS run_id, {run["step"]}::BIGINT AS
                step, sample_id, synthesis_id, pattern, position::INTEGER AS position, CASE WHEN position > 0 THEN ' '
                ELSE '' END || word AS token, char_start, char_end, start_s, end_s, after_speech, d, d * 0.95 AS m,
                -ln(1 - random()) / 30 AS f, {TOP.format("word")} AS teacher_top, {TOP.format("'night'")} AS student_top
                FROM (SELECT *, CASE WHEN after_speech THEN -ln(1 - random()) * {level} * {scale} END AS d
                FROM ({position}))""",
                part,
            )
            put("token_divergences", "FROM tokens WHERE $from >= 0", run=name)
            put("divergences", """SELECT run_id, step, sample_id, synthesis_id, pattern, avg(m) AS m, avg(f) AS f,
                avg(d) AS d, count(d)::INTEGER AS n_positions, count(f)::INTEGER AS n_positions_f, 2.0 AS speech_s
                FROM tokens WHERE $from >= 0 GROUP BY ALL""", run=name)  # fmt: skip
        print(f"{min(start + PART, texts):,} of {texts:,} texts", flush=True)
    made = {"clustering": clustering, "drawn": drawn}
    selection = store.ids.selection_id(made)
    store.publish(lab, "selections", [{"selection_id": selection, "clustering_id": clustering, "strategy": "active",
                  "run_id": item["run_id"], "step": item["step"], "gamma": 2.0, "budget_h": drawn * 4.5 / 3600 / 1.1,
                  "seed": 0}], made)  # fmt: skip
    store.publish(lab, "selected", con.sql(f"""SELECT $l AS selection_id, sample_id, cluster_id,
        row_number() OVER (ORDER BY md5(sample_id)) - 1 AS draw, 1 / {CLUSTERS} AS p_web, 1 / {CLUSTERS} AS p_target,
        {level} AS d_cluster, 4.5 AS estimated_s FROM texts ORDER BY md5(sample_id) LIMIT {drawn}""",
                  params={"l": selection}).to_arrow_table(), made)  # fmt: skip
    for (sample,) in con.sql("SELECT sample_id FROM texts WHERE i % 250 = 0").fetchall():
        store.append(lab, "decisions", selection_id=selection, target="sample", sample_id=sample, verdict="drop",
                     reason="duplicate", reviewer="bob")  # fmt: skip


def _arrow(rows: list[dict]):
    import pyarrow as pa

    return pa.Table.from_pylist(rows)


# ------------------------------------------------------------------------------------------------ looking


def _cpu() -> float:
    """CPU seconds of the notebook servers that this process has started: a busy machine lengthens clocks, not this."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == os.getpid() and b"marimo" in (stat.parent / "cmdline").read_bytes():
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class Watch:
    """Times of acts in a page, and the largest message that the page was sent."""

    def __init__(self, tab):
        self.tab, self.times, self.largest = tab, {}, 0
        tab.on("websocket", lambda ws: ws.on("framereceived", self._frame))

    def _frame(self, data):
        self.largest = max(self.largest, len(data))

    def act(self, name: str, do, done, seconds: float = 240.0):
        """`do` it, and wait until `done` gives something other than before; None, where it is being drawn, is nothing."""
        before, cpu, started = done(), _cpu(), time.perf_counter()
        do()
        while done() in (before, None):
            if time.perf_counter() - started > seconds:
                raise SystemExit(f"{name}: nothing happened within {seconds:.0f} s")
            time.sleep(0.01)
        took, used = time.perf_counter() - started, _cpu() - cpu
        self.settle()
        self.times.setdefault(name, []).append(
            {"s": round(took, 3), "cpu_s": round(used, 3), "cpu_in_all_s": round(_cpu() - cpu, 3)}
        )

    def settle(self) -> None:
        """Until the notebook has nothing left to do."""
        before = None
        while before is None or _cpu() - before > 0.02:
            before = _cpu()
            self.tab.wait_for_timeout(1500)


def visit(tab, address: str, heading: str, listens: bool = True) -> dict:
    """Seconds from opening the address to the heading, the first figure and, where there is one, sound to be heard."""
    started, cpu, result = time.perf_counter(), _cpu(), {}
    tab.goto(address)
    awaited = {"heading": tab.get_by_role("heading", name=heading), "first figure": tab.locator(".vega-embed canvas").first}
    if listens:
        awaited["a text and its sound"] = tab.locator(".salad-listen[data-loaded^=y]").first
    for name, what in awaited.items():
        what.wait_for()
        result[name] = {"s": round(time.perf_counter() - started, 3), "cpu_s": round(_cpu() - cpu, 3)}
    tab.locator("marimo-vega canvas").first.wait_for()  # the figure that is clicked
    Watch(tab).settle()
    return result | {"everything": {"s": None, "cpu_s": round(_cpu() - cpu, 3)}}


def selection(tab, watch: Watch, rounds: int) -> None:
    widget = tab.locator(".salad-listen")
    sample, total = lambda: widget.get_attribute("data-loaded"), lambda: widget.locator(".place").inner_text()
    chart, slider = tab.locator("marimo-vega canvas, marimo-vega svg").first, tab.get_by_role("slider").first
    kept = lambda: tab.get_by_text("texts kept", exact=True).locator("xpath=../..").inner_text()  # noqa: E731
    facts, rows = tab.get_by_text("effective clusters").first, tab.get_by_text("Click one to hear it")
    search, sort = tab.get_by_placeholder("words in the text"), tab.get_by_label("sort by")
    table = tab.locator("marimo-table table").first  # a figure's tooltip is a table too
    for i in range(rounds):
        widget.locator(".text").click()
        watch.act("J: the next text and its sound", lambda: tab.keyboard.press("j"), sample)
        watch.act("1: dropped, the next text and its sound", lambda: tab.keyboard.press("1"), sample)
        watch.act("U: taken back, the text and its sound", lambda: tab.keyboard.press("u"), sample)
        watch.act("1: dropped, the panel's figures", lambda: tab.keyboard.press("1"), kept)
        watch.act("U: taken back, the panel's figures", lambda: tab.keyboard.press("u"), kept)  # the next round's are the same
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        at = (box["x"] + box["width"] - 60, box["y"] + 46 + 19 * (3 + 2 * i))
        watch.act("a click on a cluster: its queue", lambda at=at: tab.mouse.click(*at), total)
        watch.act("a double click: all again", lambda at=at: tab.mouse.dblclick(*at), total)
        slider.focus()
        watch.act("γ moved: entropy, sample size", lambda: tab.keyboard.press("ArrowRight"), facts.inner_text)
        watch.act("sorted anew in SQL", lambda i=i: sort.select_option(index=1 - i % 2), table.inner_text)
        word = VOCABULARY[i]
        watch.act("a word searched (0.3 s of waiting for the typist within)", lambda w=word: search.fill(w), rows.inner_text)
        watch.act("the search cleared (the same)", lambda: search.fill(""), rows.inner_text)


def divergences(tab, watch: Watch, rounds: int) -> None:
    table, opened = tab.locator("marimo-table table").first, tab.locator(".salad-listen").first
    order, by, figure = tab.get_by_label("sort by"), tab.get_by_label("by", exact=True), tab.locator(".vega-embed").nth(1)

    def height():
        box = figure.bounding_box() if figure.count() else None
        return box and round(box["height"])

    for i in range(rounds):
        watch.act("texts sorted anew", lambda i=i: order.select_option(index=i % 2), table.inner_text)
        row = table.locator("tbody tr").nth(2 + i).get_by_role("checkbox")
        watch.act("a text opened under both", row.click, lambda: opened.get_attribute("data-sample"))
        watch.act("by cluster, by domain", lambda i=i: by.select_option(index=2 if i % 2 == 0 else 0), height)


def measure(lab: Path, rounds: int) -> dict:
    from browser import ARGS, CHROMIUM, served
    from playwright.sync_api import sync_playwright

    from workbench import review

    with store.connect(lab) as con:
        judge = review.Review(lab, review.selections(con).selection_id.iloc[0], review.reviewer_name())
        while judge.undo(con):  # what an earlier measurement said
            store.refresh(con)
        rows = {
            name: con.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
            for name in ("raw.divergences", "token_divergences", "selected", "samples")
        }
    result = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "rows": rows, "notebooks": {},
              "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine(),
                          "load_before": os.getloadavg()}}  # fmt: skip
    notebooks = {
        "floor": ("Two bars", lambda *_: None),
        "selection": ("What should be synthesised?", selection),
        "divergences": ("Where and why?", divergences),
    }
    place = tempfile.TemporaryDirectory()
    empty = Path(place.name, "empty.py")
    empty.write_text(EMPTY)
    for name, (heading, acts) in notebooks.items():
        path = empty if name == "floor" else f"notebooks/{name}.py"
        with served(path, lab) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
            fields = {"visits": []}
            for _ in range(3):  # the first imports what notebooks need, later visitors find it there
                tab = browser.new_page(viewport={"width": 1500, "height": 1000})
                tab.set_default_timeout(300_000)  # on a busy machine too; what took long is told
                watch = Watch(tab)
                fields["visits"].append(visit(tab, address, heading, listens=name != "floor"))
            acts(tab, watch, rounds)
            fields |= {"acts": watch.times, "largest_message_bytes": watch.largest}
            result["notebooks"][name] = fields
            browser.close()
    place.cleanup()
    result["machine"]["load_after"] = os.getloadavg()
    return result


def tables(result: dict) -> str:
    load = result["machine"]
    lines = [
        f"{result['at'][:10]}, {load['cores']} cores, load average {load['load_before'][0]:.1f} before and "
        f"{load['load_after'][0]:.1f} after; {result['rows']['raw.divergences']:,} divergences, "
        f"{result['rows']['token_divergences']:,} tokens, a selection of {result['rows']['selected']:,} texts.",
        "",
        "| notebook | from → to | s by the clock, median (worst) | CPU s of the notebook until then | and in all |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, message in result["notebooks"].items():
        for which, visits in (("first visit", message["visits"][:1]), ("later visit", message["visits"][1:])):
            whole = statistics.median(v["everything"]["cpu_s"] for v in visits)
            for what in visits[0]:
                if what != "everything":
                    clock, cpu = ([v[what][key] for v in visits] for key in ("s", "cpu_s"))
                    lines.append(
                        f"| {name} | {which} → {what} | {statistics.median(clock):.2f} ({max(clock):.2f}) | "
                        f"{statistics.median(cpu):.2f} | {whole:.2f} |"
                    )
        for what, times in message["acts"].items():
            clock, cpu, whole = ([t[key] for t in times] for key in ("s", "cpu_s", "cpu_in_all_s"))
            lines.append(
                f"| {name} | {what} | {statistics.median(clock):.2f} ({max(clock):.2f}) | "
                f"{statistics.median(cpu):.2f} | {statistics.median(whole):.2f} |"
            )
        lines.append(f"| {name} | largest message to the page | {message['largest_message_bytes'] / 1000:,.0f} kB | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", metavar="FOLDER", help="a lab that this made before; else it is made, and removed")
    parser.add_argument("--make", metavar="FOLDER", help="only make the lab, there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tables", action="store_true", help="Markdown of the committed results")
    given = parser.parse_args()
    if given.tables:
        print(tables(json.loads(RESULTS.read_text())))
        return
    if given.make:
        make(Path(given.make))
        return
    with tempfile.TemporaryDirectory() as place:
        lab = Path(given.lab or Path(place) / "lab")
        if not given.lab:
            make(lab)
        result = measure(lab, given.rounds)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(tables(result))


if __name__ == "__main__":
    main()
