"""What the app's pages show, as HTML. Every value gets into a page through `Markup.format` or `Markup.join`, which escape it."""

import json

from markupsafe import Markup

import store
from workbench.arena import preferences
from workbench.arena.service import ArenaService
from workbench.markup import markdown

LEGEND = Markup(
    '<p class="legend">Tint: divergence of the next-token prediction from the text teacher’s, '
    '<span class="tok" style="--tint:0%">0</span> <span class="tok" style="--tint:29%">0.5</span> '
    '<span class="tok" style="--tint:50%">1</span> <span class="tok" style="--tint:85%">3 nats or more</span>; '
    "point at a token, or reach it with Tab, for the alternatives.</p>"
)
NO_WORDS = Markup("<i>no words</i>")


def decimals(value: float | None, digits: int = 2) -> str:
    """A number with a fixed number of decimals, or a dash for a missing one."""
    return "–" if value is None else f"{value:.{digits}f}"


def _visible(text: str) -> str:
    return repr(text)[1:-1] if text.strip() else "␣" * max(1, len(text))


def _alternatives(title: str, top: list) -> Markup:
    row = Markup("<tr><td>{}</td><td>{:.0%}</td></tr>")
    rows = Markup("").join(row.format(_visible(text), p) for text, p in top)
    return Markup("<table><caption>{}</caption>{}</table>").format(title, rows)


def token_html(token: dict, first: bool = False) -> Markup:
    """A token, tinted by its divergence, with both models' alternatives for hovering and for the keyboard; the
    answer's first without the space before it."""
    d = token["d"]
    tint = 0 if d is None else min(85, round(100 * (1 - 2 ** (-d))))
    return Markup(
        '<span class="tok" tabindex="0" style="--tint:{}%">{}<span class="tip"><b>divergence {} nats</b>{}{}</span></span>'
    ).format(
        tint,
        (token["text"].lstrip() if first else token["text"]) or Markup("&thinsp;"),
        decimals(d, 3),
        _alternatives("this model", token["ours"]),
        _alternatives("text teacher", token["teachers"]),
    )


def card(facts: dict | None, title: str, veiled: bool = False, running: bool = False) -> Markup:
    """One answer as HTML; `veiled`: the words alone."""
    if facts is None:
        return Markup('<div class="answer empty"><div class="who">{}</div></div>').format(title)
    if veiled:
        return Markup('<div class="answer"><div class="who">{}</div><div class="said">{}</div></div>').format(
            title, facts["text"] or NO_WORDS
        )
    words = Markup("").join(token_html(token, i == 0) for i, token in enumerate(facts["tokens"]))
    worst = max((t["d"] for t in facts["tokens"] if t["d"] is not None), default=None)
    figures = [f"first token {facts['first_s']:.2f} s", f"in all {facts['total_s']:.2f} s", f"{facts['n_tokens']} tokens",
               f"divergence {decimals(facts['d'])} mean, {decimals(worst)} at most"]  # fmt: skip
    if facts["ended"]:
        figures.append(f"ended by: {facts['ended']}")
    return Markup(
        '<div class="answer"><div class="who">{}: <b>{}</b> · {} <small>{}</small>{}</div>'
        '<div class="said">{}{}</div><div class="facts">{}</div></div>'
    ).format(
        title,
        facts["contender"],
        facts["modality"],
        "" if facts["run_id"] is None else f"{facts['run_id']}, step {facts['step']}",
        Markup('<span class="flag">reveals the modality</span>') if facts["gives_away"] else "",
        words or ("" if running else NO_WORDS),
        Markup('<span class="cursor">▍</span>') if running else "",
        " · ".join(figures),
    )


def question_html(facts: dict) -> Markup:
    """What was asked, what the recogniser heard, and what was done to the sound."""
    rows = []
    small = Markup(" <small>{}</small>")
    if facts["text"]:
        rows.append(("asked", facts["text"]))
    if facts.get("heard") is not None:
        shown = Markup("{}").format(facts["heard"] or Markup("<i>nothing</i>"))
        if facts.get("cer") is not None:
            shown += small.format(f"character error rate {facts['cer']:.0%}")
        if not facts["text"]:
            shown += small.format("this is what the text side reads, as nothing else was given")
        rows.append(("the recogniser heard", shown))
    if facts.get("answer"):
        rows.append(("right answer", facts["answer"]))
    rows.append(("sound", "; ".join([f"{facts['voice']}, {facts['duration_s']:.1f} s", *facts["notes"]])))
    return definitions(rows)


def definitions(rows: list[tuple[str, str]]) -> Markup:
    """What was asked and the like, as a list of names and values."""
    row = Markup("<dt>{}</dt><dd>{}</dd>")
    return Markup('<dl class="question">{}</dl>').format(Markup("").join(row.format(*pair) for pair in rows))


def cards(facts: dict, running: frozenset = frozenset()) -> list[Markup]:
    """HTML of left, right and cascade."""
    titles = {"left": "Left", "right": "Right", "cascade": "Cascade"}
    return [card(facts.get(side), title, running=side in running) for side, title in titles.items()]


def about(service: ArenaService) -> str:
    """One paragraph of Markdown on what this lab's models can be asked; plain about their ears."""
    listener = service.listener
    sentences = [markdown("Lab <code>{}</code>.", service.lab.name)]
    try:
        config = json.loads((service.lab / "study.json").read_text())["config"]
    except (OSError, RecursionError, ValueError, KeyError, TypeError):
        config = {}
    if "natural_voices" in config:
        sentences.append(
            "**These models learnt from synthetic voices only** (espeak): they have never heard a person, and know "
            "nothing but the miniature's small world. What the recogniser heard is shown with every question."
        )
    domains = list(dict.fromkeys(str(item.domain) for item in listener.items))
    if domains:
        sentences.append(markdown("They can be asked about {}: “{}”", ", ".join(domains), listener.items[0].context))
    return " ".join(sentences)


def results_html(service: ArenaService, blind_only: bool, margin: float, minimum: float) -> Markup:
    """The statistics of the lab's votes."""
    with store.connect(service.lab) as con:
        rows = preferences.games(preferences.votes(con, blind_only))
    if rows.empty:
        return Markup('<p class="none">No votes yet. Vote in the Blind tab; untick “blind votes only” to count the others.</p>')
    how = {"margin": float(margin), "minimum": int(minimum)}
    overall = preferences.speech_against_text(rows, **how)
    table = [p for p in [overall, *preferences.pairs(rows, **how)] if p.n]
    shown = Markup(
        '<table class="votes"><tr><th>a</th><th>against b</th><th>votes</th><th>preference for a, 95 % interval</th>'
        "<th></th><th>verdict</th><th>left side</th><th>longer answer</th><th>tokens a / b</th></tr>{}</table>"
        "<p><small>A tie or “both bad” is half a point each. Intervals: bootstrap clustered by question and by voter. "
        "Parity: equivalence test, two one-sided tests against 0.5 ± {:g}. Left side, longer answer: share of "
        "the decided votes; far from 50 %, they say that something else than the answer was judged.</small></p>"
    ).format(Markup("").join(_preference_row(p) for p in table), how["margin"])
    ranked = preferences.bradley_terry(rows)
    if ranked is not None:
        row = Markup("<tr><td>{}</td><td>{:+.2f}</td><td>{:+.2f} to {:+.2f}</td><td>{}</td></tr>")
        lines = Markup("").join(row.format(r.competitor, r.strength, r.low, r.high, r.n) for r in ranked.itertuples())
        shown += Markup(
            '<h3>Bradley–Terry strengths</h3><table class="votes"><tr><th>competitor</th><th>log-strength</th>'
            "<th>95 % interval</th><th>votes</th></tr>{}</table>"
        ).format(lines)
    return shown


def _preference_row(p: preferences.Preference) -> Markup:
    share = lambda x: "–" if x != x else f"{x:.0%}"  # noqa: E731
    bar = Markup(
        '<div class="bar"><i style="left:{:.1f}%;width:{:.1f}%"></i><u style="left:{:.1f}%;width:{:.1f}%"></u>'
        '<b style="left:{:.1f}%"></b></div>'
    ).format(50 - 100 * p.margin, 200 * p.margin, 100 * p.low, 100 * (p.high - p.low), 100 * p.mean)
    lengths = " / ".join("–" if x != x else f"{x:.1f}" for x in (p.tokens_a, p.tokens_b))
    return Markup(
        "<tr><td>{}</td><td>{}</td><td>{} <small>on {} questions by {} voters; {} ties, {} both bad</small></td>"
        "<td>{:.2f} [{:.2f}, {:.2f}]</td><td>{}</td><td>{}</td><td>{} <small>p {}</small></td><td>{}</td><td>{}</td></tr>"
    ).format(
        p.a, p.b, p.n, p.questions, p.voters, p.ties, p.both_bad, p.mean, p.low, p.high, bar, p.verdict, share(p.left),
        decimals(None if p.p_left != p.p_left else p.p_left), share(p.longer), lengths,
    )  # fmt: skip
