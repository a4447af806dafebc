import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="SALAD: where and why speech diverges from text")

with app.setup:
    import marimo as mo

    import store
    from workbench import charts, divergences, panels
    from workbench.listening import Reading
    from workbench.markup import markdown


@app.cell
def _():
    lab = store.lab_path()
    return (lab,)


@app.cell(hide_code=True)
def _():
    opened, set_opened = mo.state(None)  # the text that was clicked
    return opened, set_opened


@app.cell(hide_code=True)
def _(lab):
    con = store.connect(lab)
    advice = panels.advice(con, lab, "divergences")
    mo.stop(advice is not None, mo.callout(mo.md(advice or ""), kind="warn"))
    listed = divergences.checkpoints(con)
    _first, _second = divergences.two(listed)
    a_ui = mo.ui.dropdown(listed.label.tolist(), value=_first, label="A")
    b_ui = mo.ui.dropdown(listed.label.tolist(), value=_second, label="B")
    measure_ui = mo.ui.dropdown({v: k for k, v in divergences.MEASURES.items()}, value=divergences.MEASURES["m"],
                                label="measure")
    mo.vstack([
        mo.md("## Where and why?\nHow far each checkpoint is from its text teacher, and from itself on text, on the "
              "same texts. Means are token-weighted; intervals are 95 %, over texts."),
        mo.hstack([a_ui, b_ui, measure_ui], justify="start", gap=2, wrap=True), panels.state(con, lab)])
    return a_ui, advice, b_ui, con, listed, measure_ui


@app.cell(hide_code=True)
def _(a_ui, b_ui, con, listed):
    labels = list(dict.fromkeys([a_ui.value, b_ui.value]))
    chosen = [divergences.ScoredCheckpoint(r.run_id, r.step, r.label) for v in labels
              for r in listed[listed.label == v].itertuples()]
    scored = divergences.read(con, chosen)
    _corpora = divergences.corpora(con, scored)
    corpus_ui = mo.ui.dropdown({"all": None, **{c: c for c in _corpora}}, value=[*_corpora, "all"][0], label="texts of")
    group_ui = mo.ui.dropdown(list(divergences.GROUPS), value="domain", label="by")
    return chosen, corpus_ui, group_ui, labels, scored


@app.cell(hide_code=True)
def _(con, corpus_ui, labels, measure_ui, scored):
    measure, corpus = measure_ui.value, corpus_ui.value
    spread = charts.distribution(con, scored, measure, labels, corpus)
    mo.vstack([corpus_ui, panels.divergence_facts(con, scored, measure, labels, corpus)])
    return corpus, measure, spread


@app.cell(hide_code=True)
def _(con, corpus, group_ui, labels, measure, scored, spread):
    panels.row(
        mo.vstack([mo.md("### How many texts, how far?\nDashed: the token-weighted mean."), spread]),
        mo.vstack([mo.md("### In which texts?\nBy cluster: only texts that the newest clustering holds."), group_ui,
                   charts.divergence_by_group(con, scored, measure, group_ui.value, labels, corpus)]))
    return


@app.cell(hide_code=True)
def _(con, corpus, labels, measure, scored):
    panels.row(
        mo.vstack([mo.md("### Where in the text?\nBand: 95 % interval."),
                   charts.divergence_by_position(con, scored, measure, labels, corpus)]),
        mo.vstack([mo.md("### At which words?\nHover: the share of all divergence, and the tokens that add most."),
                   charts.divergence_by_kind(con, scored, measure, labels, corpus)]))
    return


@app.cell(hide_code=True)
def _(a_ui, b_ui, con, corpus, measure, scored):
    compared_ui = mo.ui.altair_chart(charts.compared(con, scored, measure, a_ui.value, b_ui.value, corpus))
    order_ui = mo.ui.dropdown({v: k for k, v in divergences.ORDERS.items()}, value=divergences.ORDERS["b"],
                              label="sort by")
    search_ui = mo.ui.text(placeholder="words in the text", label="search", debounce=300)
    page_ui = mo.ui.number(1, 100_000, value=1, label="page")
    return compared_ui, order_ui, page_ui, search_ui


@app.cell(hide_code=True)
def _(a_ui, b_ui, compared_ui, con, corpus, measure, order_ui, page_ui, scored, search_ui, set_opened):
    brushed = compared_ui.selections.get("brush") or {}
    rows, total = divergences.texts(con, scored, measure, a_ui.value, b_ui.value, corpus, brushed, search_ui.value,
                                    order_ui.value, page_ui.value - 1, 8)
    mo.vstack([
        mo.md("### Text by text\nBelow the line B is better. Drag to choose; a double click takes all."),
        panels.beside(compared_ui, mo.vstack([
            mo.hstack([order_ui, search_ui, page_ui], justify="start", gap=1, wrap=True),
            mo.md(f"{total:,} texts. Click one to open it."), panels.compared_table(rows, set_opened)]))])
    return rows, total


@app.cell(hide_code=True)
def _(chosen, con):
    readings = [Reading(con, checkpoint, []) for checkpoint in chosen]
    players = [mo.vstack([mo.md(markdown("**{}**", reading.checkpoint.label)), mo.ui.anywidget(reading)]) for reading in readings]
    return players, readings


@app.cell(hide_code=True)
def _(opened, rows):
    sample = opened() or (rows.sample_id.iloc[0] if len(rows) else None)
    return (sample,)


@app.cell(hide_code=True)
def _(measure, players, readings, sample):
    for _reading in readings:
        _reading.load([sample] if sample else [])
    mo.vstack([
        mo.md("### One text\nColour: the divergence of each token; hover for the teacher's likeliest tokens on text "
              "beside the student's on speech."),
        *players, charts.tokens({r.checkpoint.label: r.card for r in readings}, measure) if sample else mo.md("")])
    return


@app.cell(hide_code=True)
def _(lab):
    locked = store.connect(lab, locked=True)  # your own SQL cells can use it as their engine
    query_ui = mo.ui.code_editor(
        "SELECT domain, run_id, step, round(avg(m), 3) AS m, round(avg(f), 4) AS f, count(*) AS texts\n"
        "FROM misalignment GROUP BY ALL ORDER BY m DESC LIMIT 20", language="sql", debounce=600, min_height=60)
    return locked, query_ui


@app.cell(hide_code=True)
def _(locked, query_ui):
    mo.vstack([mo.md("### Ask in SQL\nOne SELECT over the lab's tables (`misalignment`, `runs`, `metrics` ...); "
                     "nothing changes."),
               query_ui, panels.answer(locked, query_ui.value)])
    return


if __name__ == "__main__":
    app.run()
