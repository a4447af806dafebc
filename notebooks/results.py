import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="SALAD: what came out?")

with app.setup:
    import marimo as mo

    import store
    from workbench import panels, reports
    from workbench.markup import markdown


@app.cell
def _():
    lab = store.lab_path()
    return (lab,)


@app.cell(hide_code=True)
def _(lab):
    con = store.connect(lab)
    advice = panels.advice(con, lab, "results")
    mo.stop(advice is not None, mo.callout(mo.md(advice or ""), kind="warn"))
    newest = reports.checkpoints(con)
    contenders_ui = mo.ui.multiselect(newest.contender.tolist(), value=newest.contender.tolist(), label="contenders")
    mo.vstack([mo.md(markdown("## What came out?\n<code>{}</code>. ", lab) + reports.explain(lab)), contenders_ui,
               panels.state(con, lab)])
    return advice, con, contenders_ui, newest


@app.cell(hide_code=True)
def _(con, contenders_ui, lab, newest):
    _chosen = newest[newest.contender.isin(contenders_ui.value)]
    mo.stop(_chosen.empty, mo.md("Choose a contender above."))
    study, rows = reports.measured(lab, con, _chosen)
    table = reports.shown(rows)
    return rows, study, table


@app.cell(hide_code=True)
def _(con, rows, table):
    _page = mo.ui.table(table, selection=None, pagination=False, show_column_summaries=False, show_data_types=False,
                        text_justify_columns={c: "right" for c in table.columns[2:]})
    _published = panels.plain_table(reports.beside_published(con, rows).drop(columns=["source", "whose"]))
    mo.vstack([mo.md("### Accuracy and gap"), _page,
               mo.accordion({"Beside the published, by benchmark (accuracy in per cent / gap in points; other models, data "
                             "and tasks)": _published})])
    return


@app.cell(hide_code=True)
def _(con, lab, rows, study):
    figures = reports.figures(con, lab, study, rows)
    votes_figures = reports.votes(con)
    return figures, votes_figures


@app.cell(hide_code=True)
def _(figures):
    mo.vstack([mo.md("### Figures\nEach saves as SVG, PNG and the rows behind it."),
               panels.row(*(panels.figure(single) for single in figures))])
    return


@app.cell(hide_code=True)
def _(votes_figures):
    mo.vstack([mo.md("### Votes"),
               panels.plain_table(votes_figures) if len(votes_figures) else
               mo.md("No blind votes yet: `make arena` opens the app where people compare answers.")])
    return


if __name__ == "__main__":
    app.run()
