import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="SALAD: what should be synthesised?")

with app.setup:
    import marimo as mo

    import store
    from salad import recipes
    from workbench import charts, panels, review
    from workbench.listening import Listening


@app.cell
def _():
    lab = store.lab_path()
    return (lab,)


@app.cell(hide_code=True)
def _():
    drawn, set_drawn = mo.state(None)  # the selection that a refill has drawn
    decided, set_decided = mo.state((0, ""))  # events so far, and the last in words: what shows decisions reads it
    return drawn, decided, set_drawn, set_decided


@app.cell(hide_code=True)
def _(drawn, lab):
    con = store.connect(lab)
    advice = panels.advice(con, lab, "selection")
    mo.stop(advice is not None, mo.callout(mo.md(advice or ""), kind="warn"))
    listed = review.selections(con)
    choices = dict(zip(listed.label, listed.selection_id, strict=True))
    _newest = [label for label, selection_id in choices.items() if selection_id == drawn()]
    selection_ui = mo.ui.dropdown(choices, value=[*_newest, *choices][0], label="selection")
    reviewer_ui = mo.ui.text(review.reviewer_name(), label="reviewer")
    mo.vstack([
        mo.md("## What should be synthesised?\nWhere the speech model disagrees with its text teacher, what was drawn "
              "for it, and what you let through. Every decision is an event in the lab, and can be undone."),
        mo.hstack([selection_ui, reviewer_ui, panels.lab_name(lab)], justify="start", gap=2),
        panels.state(con, lab),
    ])
    return con, reviewer_ui, selection_ui


@app.cell(hide_code=True)
def _(con, lab, reviewer_ui, selection_ui):
    selection = selection_ui.value
    judge = review.Review(lab, selection, reviewer_ui.value or review.reviewer_name())
    mo.stop(*panels.unready(con, selection))
    gamma_ui = mo.ui.slider(0, 6, 0.25, value=panels.own_gamma(con, selection), label="γ", show_value=True, full_width=True)
    shown_ui = panels.cluster_filter(con, selection)
    return gamma_ui, judge, selection, shown_ui


@app.cell(hide_code=True)
def _(con, decided, selection):
    decided()
    events_ui = panels.events_table(con, selection)
    mo.vstack([mo.md("### What is kept, and what the drops did"), panels.effect(con, selection)])
    return (events_ui,)


@app.cell(hide_code=True)
def _(con, selection, shown_ui):
    cluster_chart = mo.ui.altair_chart(charts.clusters(con, selection, **shown_ui.value))
    cluster_view = mo.vstack([cluster_chart])  # a name of its own: what shows the figure is not drawn anew at a click
    cer_ui = mo.ui.slider(0.02, 0.6, 0.02, review.usual_cer(con, selection), label="CER above", show_value=True, debounce=True)
    d_ui = mo.ui.number(0, 100, 0.1, value=round(review.median_d(con, selection), 1), label="D above (at first the median)")
    return cer_ui, cluster_chart, cluster_view, d_ui


@app.cell(hide_code=True)
def _(cluster_view, con, gamma_ui, decided, selection, shown_ui):
    decided()
    _gamma, _shown = gamma_ui.value, shown_ui.value
    panels.main_and_side(
        panels.clusters(shown_ui, cluster_view, charts.masses(con, selection, _gamma, **_shown)),
        mo.vstack([mo.md("### γ, live\nP_target ∝ P_web · d_clusterᵞ. Bars: hours at this γ. Green: kept now."), gamma_ui,
                   panels.gamma_facts(con, selection, _gamma),
                   panels.scrolled(charts.hours(con, selection, _gamma, **_shown), height=480)]))
    return


@app.cell(hide_code=True)
def _(cer_ui, con, d_ui, selection):
    quadrant_chart = mo.ui.altair_chart(charts.quadrants(con, selection, cer_ui.value, d_ui.value))
    return (quadrant_chart,)


@app.cell(hide_code=True)
def _(cer_ui, con, d_ui, quadrant_chart, selection):
    _words = panels.quadrant_words(con, selection, cer_ui, d_ui)
    mo.vstack([mo.md("### Bad speech, or a gap?"), panels.beside(quadrant_chart, _words)])
    return


@app.cell(hide_code=True)
def _(con, selection):
    order_ui = mo.ui.dropdown({v: k for k, v in review.QUEUES.items()}, value=review.QUEUES["worst"], label="queue")
    unjudged_ui = mo.ui.checkbox(label="only what I have not judged")
    audit_n = mo.ui.number(1, 500, value=20, label="texts a cluster")
    search_ui = mo.ui.text(placeholder="words in the text", label="search", debounce=300)
    sort_ui = mo.ui.dropdown(["divergence", "character error rate", "draw"], value="divergence", label="sort by")
    standing_ui = mo.ui.dropdown(["all", "kept", "dropped"], value="all", label="show")
    rule_ui = mo.ui.text(placeholder="cer > 0.3", label="drop where", full_width=True, debounce=400)
    reason_ui = mo.ui.dropdown(panels.REASONS, value=panels.REASONS[0], label="reason")
    weight_ui = mo.ui.number(0, 10, 0.1, value=0.5, label="weight")
    export_button = mo.ui.run_button(label="export what is kept")
    launch_button = mo.ui.run_button(label="launch Stage II on this", kind="success")
    recipe_ui = mo.ui.dropdown([n for n in recipes.names() if n.endswith("stage2")], label="recipe",
                               value=review.stage2_recipe(con, selection))
    on_ui = mo.ui.text("here", label="where", placeholder="here, ssh:HOST, slurm, sky, or a target")
    return (audit_n, export_button, launch_button, on_ui, order_ui, reason_ui, recipe_ui, rule_ui, search_ui, sort_ui,
            standing_ui, unjudged_ui, weight_ui)


@app.cell(hide_code=True)
def _(con, judge, set_decided):
    listening = Listening(con, judge, [], on_decision=lambda message: set_decided(lambda before: (before[0] + 1, message)))
    player = mo.vstack([mo.ui.anywidget(listening)])
    return listening, player


@app.cell(hide_code=True)
def _(cluster_chart, quadrant_chart):
    picked, brushed = panels.picked(cluster_chart), quadrant_chart.selections.get("brush") or {}
    return brushed, picked


@app.cell(hide_code=True)
def _(brushed, picked, search_ui, sort_ui, standing_ui):
    _ = picked, brushed, search_ui.value, sort_ui.value, standing_ui.value  # the first page again of whatever is looked for
    page_ui = mo.ui.number(1, 100_000, value=1, label="page")
    return (page_ui,)


@app.cell(hide_code=True)
def _(audit_n, brushed, con, judge, listening, order_ui, picked, player, search_ui, selection, unjudged_ui):
    queue = review.queue(con, selection, order_ui.value, picked, judge.reviewer, unjudged_ui.value,
                         search=search_ui.value, per_cluster=audit_n.value, within=brushed)
    listening.load(queue)
    mo.vstack([mo.md(f"### Read and listen\n{panels.picked_words(con, selection, picked, brushed)}"),
               mo.hstack([order_ui, unjudged_ui, search_ui], justify="start", gap=2), player])
    return


@app.cell(hide_code=True)
def _(brushed, con, listening, page_ui, picked, decided, search_ui, selection, sort_ui, standing_ui):
    decided()
    rows, total = review.texts(con, selection, picked, search_ui.value, sort_ui.value, page_ui.value - 1, 10,
                               standing_ui.value, brushed)
    mo.vstack([
        mo.hstack([sort_ui, standing_ui, page_ui, mo.md(f"of {max(1, -(-total // 10)):,}; {total:,} texts. "
                   "Click one to hear it.")], justify="start", gap=2),
        panels.text_table(rows, on_pick=listening.turn_to)])
    return


@app.cell(hide_code=True)
def _(con, selection):
    mo.vstack([mo.md(panels.ADJUSTED), panels.when_seen(lambda: charts.adjusted_ranking(con, selection), height=420)])
    return


@app.cell(hide_code=True)
def _(con, events_ui, judge, picked, reason_ui, rule_ui, set_drawn, set_decided, weight_ui):
    # Each acts once, on its click: a cell that acted would act again when what it showed has changed.
    actions = panels.buttons(
        con, judge, rule_ui.value, reason_ui.value, weight_ui.value, picked, events_ui.value,
        on_decision=lambda message: set_decided(lambda before: (before[0] + 1, message)), on_drawn=set_drawn)
    return (actions,)


@app.cell(hide_code=True)
def _(actions, audit_n, con, events_ui, picked, reason_ui, rule_ui, decided, selection, weight_ui):
    mo.vstack([
        mo.md("### By rule, by cluster, by audit"),
        mo.hstack([rule_ui, reason_ui, actions["rule"]], widths=[4, 1, 1], align="end"),
        panels.rule_preview(con, selection, rule_ui.value),
        mo.hstack([mo.md(panels.picked_words(con, selection, picked)), actions["leave out"], actions["take in"], weight_ui,
                   actions["reweight"]], justify="start", gap=1),
        mo.hstack([mo.md("**Audit**"), audit_n, actions["accept"], actions["reject"]], justify="start", gap=1),
        panels.audits(con, selection, picked, audit_n.value),
        mo.md(f"#### Current decisions\n{decided()[1]}"), events_ui,
        mo.hstack([actions["undo"], panels.agreement(con, selection)], justify="start", gap=2)])
    return


@app.cell(hide_code=True)
def _(actions, con, decided, export_button, lab, launch_button, on_ui, recipe_ui, selection):
    mo.vstack([mo.md("### Go on"), panels.review_gate(lab, actions["reviewed"], decided()), mo.hstack(
        [actions["refill"], export_button, recipe_ui, on_ui, launch_button], justify="start", gap=1, wrap=True), panels.go_on(
            lab, con, selection, recipe_ui.value, on_ui.value, export=export_button.value, launch=launch_button.value)])
    return


if __name__ == "__main__":
    app.run()
