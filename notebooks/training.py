import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="SALAD: run it")

with app.setup:
    import marimo as mo

    import store
    from salad import recipes
    from workbench import charts, control, panels, review
    from workbench.markup import markdown, plain, preformatted


@app.cell
def _():
    lab = store.lab_path()
    return (lab,)


@app.cell(hide_code=True)
def _():
    acted, set_acted = mo.state((0, ""))  # number of actions so far, and the result of the last
    kept = {}  # the runs that are chosen, while the table is drawn anew

    def say(words):
        set_acted(lambda before: (before[0] + 1, words))

    return kept, say, acted


@app.cell(hide_code=True)
def _(lab):
    con = store.connect(lab)
    advice = panels.advice(con, lab, "training")
    recipe_ui = mo.ui.dropdown(recipes.names(), value="miniature_stage1", label="recipe")
    on_ui = mo.ui.text("here", label="where", placeholder="here, ssh:HOST, slurm, sky, or a target")
    gpus_ui = mo.ui.text("", label="GPUs", placeholder="2 or H200:8")
    hours_ui = mo.ui.number(0, 10_000, value=0, label="at most hours (0: no limit)", debounce=True)
    budget_ui = mo.ui.number(0, 1_000_000, value=0, label="at most money (0: no limit)", debounce=True)
    mo.vstack([mo.md(markdown("## Run it\nStart, watch, stop and take up runs of <code>{}</code>. ", lab)
                     + "A run goes on when this closes."),
               mo.callout(mo.md(advice), kind="warn") if advice else mo.md(""), panels.state(con, lab)])
    return advice, budget_ui, con, gpus_ui, hours_ui, on_ui, recipe_ui


@app.cell(hide_code=True)
def _(con):
    _going = con.execute("SELECT count(*) FROM runs WHERE status IN ('queued', 'starting', 'running')").fetchone()[0]
    tick = mo.ui.refresh(["2s", "5s", "30s"], default_interval="5s" if _going else None, label="look again every")
    return (tick,)


@app.cell(hide_code=True)
def _(con, kept, lab, tick, acted):
    tick.value, acted()
    store.refresh(con)
    runs = control.runs(con, lab)
    runs_ui = control.runs_table(runs, kept)
    return runs, runs_ui


@app.cell(hide_code=True)
def _(runs, runs_ui):
    picked = runs_ui.value.run.tolist() if len(runs) else []
    tags_ui = mo.ui.text(label="tags", placeholder="ablation, good")
    note_ui = mo.ui.text(label="note", placeholder="what was tried")
    return note_ui, picked, tags_ui


@app.cell(hide_code=True)
def _(lab, note_ui, picked, runs_ui, say, tags_ui, tick, acted):
    _stop = control.button("stop", lambda: control.stop(lab, picked), say, "danger")
    _resume = control.button("resume", lambda: control.resume(lab, picked), say)
    _fetch = control.button("fetch", lambda: control.fetch(lab, picked), say)
    _note = control.button(
        "write down", lambda: control.note(lab, picked, tags_ui.value, note_ui.value, review.reviewer_name()), say)
    mo.vstack([
        mo.md("### Runs"),
        mo.hstack([mo.md("Choose rows to see their curves and to act on them."), tick], justify="space-between"),
        runs_ui, mo.hstack([_stop, _resume, _fetch, tags_ui, note_ui, _note], justify="start", gap=1),
        mo.md(acted()[1])])
    return


@app.cell(hide_code=True)
def _(con, picked):
    names = control.measures(con, picked)
    names_ui = mo.ui.multiselect(names, value=[n for n in names if n in control.SHOWN], label="curves")
    return names, names_ui


@app.cell(hide_code=True)
def _(con, lab, names, names_ui, picked, runs):
    mo.vstack([
        mo.md(f"### Curves\n{len(picked)} of {len(runs)} runs"),
        names_ui if names else mo.md("Nothing is logged by the chosen runs yet."),
        panels.row(*(charts.curves(con, name, picked) for name in names_ui.value)),
        mo.md(control.unscored(con, lab, picked)),
        *(mo.accordion({markdown("log of {}", run_id): mo.plain_text(control.log(lab, run_id))}) for run_id in picked[:3]),
        panels.differences(control.differences(con, picked))])
    return


@app.cell(hide_code=True)
def _(recipe_ui):
    form_ui = control.form(recipe_ui.value)
    return (form_ui,)


@app.cell(hide_code=True)
def _(form_ui, recipe_ui):
    try:
        changed, wrong = control.overrides(recipe_ui.value, form_ui.value), None
    except store.UserError as _error:
        changed, wrong = {}, str(_error)
    return changed, wrong


@app.cell(hide_code=True)
def _(budget_ui, changed, form_ui, gpus_ui, hours_ui, lab, on_ui, recipe_ui, say, acted, wrong):
    _limits = {"max_hours": hours_ui.value, "budget": budget_ui.value}
    command = control.command_line(recipe_ui.value, changed, on_ui.value, gpus_ui.value, lab, **_limits)

    def _start(dry_run):
        if wrong:
            return markdown("Not done: {}", wrong)
        return control.start(lab, recipe_ui.value, changed, on_ui.value, gpus_ui.value, dry_run, **_limits)

    mo.vstack([
        mo.md("### Start one\nEvery value of the configuration, as the recipe has it; what you change is an override."),
        mo.hstack([recipe_ui, on_ui, gpus_ui, hours_ui, budget_ui], justify="start", gap=1, wrap=True),
        control.form_laid_out(form_ui),
        mo.callout(mo.md(plain(wrong)), kind="danger") if wrong else mo.md(preformatted(command)),
        mo.hstack([control.button("estimate cost", lambda: _start(True), say),
                   control.button("launch", lambda: _start(False), say, "success")], justify="start", gap=1),
        mo.md(acted()[1])])
    return (command,)


if __name__ == "__main__":
    app.run()
