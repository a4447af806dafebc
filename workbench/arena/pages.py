"""What the app's pages show, as HTML."""

import html
import json

import store
from workbench.arena import preferences
from workbench.arena.service import ArenaService


def decimals(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _alternatives(title: str, top: list) -> str:
    shown = lambda text: html.escape(repr(text)[1:-1]) if text.strip() else "␣" * max(1, len(text))  # noqa: E731
    rows = "".join(f"<tr><td>{shown(text)}</td><td>{p:.0%}</td></tr>" for text, p in top)
    return f"<table><caption>{title}</caption>{rows}</table>"


def token_html(token: dict, first: bool = False) -> str:
    """A token, tinted by its divergence, with both models' alternatives for hovering and for the keyboard; the
    answer's first without the space before it."""
    d = token["d"]
    tint = 0 if d is None else min(85, round(100 * (1 - 2 ** (-d))))
    tip = f"<b>divergence {decimals(d, 3)} nats</b>" + _alternatives("this model", token["ours"])
    tip += _alternatives("text teacher", token["teachers"])
    said = html.escape(token["text"].lstrip() if first else token["text"]) or "&thinsp;"
    return f'<span class="tok" tabindex="0" style="--tint:{tint}%">{said}<span class="tip">{tip}</span></span>'


def card(facts: dict | None, title: str, veiled: bool = False, running: bool = False) -> str:
    """One answer as HTML; `veiled`: the words alone."""
    if facts is None:
        return f'<div class="answer empty"><div class="who">{html.escape(title)}</div></div>'
    if veiled:
        said = html.escape(facts["text"]) or "<i>no words</i>"
        return f'<div class="answer"><div class="who">{html.escape(title)}</div><div class="said">{said}</div></div>'
    who = f"<b>{html.escape(facts['contender'])}</b> · {facts['modality']}"
    run = "" if facts["run_id"] is None else f"{facts['run_id']}, step {facts['step']}"
    said = "".join(token_html(token, i == 0) for i, token in enumerate(facts["tokens"])) or (
        "" if running else "<i>no words</i>"
    )
    end = "" if not running else '<span class="cursor">▍</span>'
    worst = max((t["d"] for t in facts["tokens"] if t["d"] is not None), default=None)
    told = [f"first token {facts['first_s']:.2f} s", f"in all {facts['total_s']:.2f} s", f"{facts['n_tokens']} tokens"]
    told.append(f"divergence {decimals(facts['d'])} mean, {decimals(worst)} at most")
    if facts["ended"]:
        told.append(f"ended by: {html.escape(facts['ended'])}")
    flag = '<span class="flag">tells how it was asked</span>' if facts["gives_away"] else ""
    return (
        f'<div class="answer"><div class="who">{html.escape(title)}: {who} <small>{run}</small>{flag}</div>'
        f'<div class="said">{said}{end}</div><div class="facts">{" · ".join(told)}</div></div>'
    )


def question_html(facts: dict) -> str:
    """What was asked, what the recogniser heard, and what was done to the sound."""
    rows = []
    if facts["text"]:
        rows.append(("asked", html.escape(facts["text"])))
    if facts.get("heard") is not None:
        cer = f" <small>character error rate {facts['cer']:.0%}</small>" if facts.get("cer") is not None else ""
        only = "" if facts["text"] else " <small>this is what the text side reads, as nothing else was given</small>"
        rows.append(("the recogniser heard", (html.escape(facts["heard"]) or "<i>nothing</i>") + cer + only))
    if facts.get("answer"):
        rows.append(("right answer", html.escape(facts["answer"])))
    rows.append(("sound", html.escape("; ".join([f"{facts['voice']}, {facts['duration_s']:.1f} s", *facts["notes"]]))))
    return '<dl class="question">' + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows) + "</dl>"


LEGEND = (
    '<p class="legend">Tint: divergence of the next-token prediction from the text teacher’s, '
    '<span class="tok" style="--tint:0%">0</span> <span class="tok" style="--tint:29%">0.5</span> '
    '<span class="tok" style="--tint:50%">1</span> <span class="tok" style="--tint:85%">3 nats or more</span>; '
    "point at a token, or reach it with Tab, for the alternatives.</p>"
)


def cards(facts: dict, running: frozenset = frozenset()) -> list[str]:
    """HTML of left, right and cascade."""
    titles = {"left": "Left", "right": "Right", "cascade": "Cascade"}
    return [card(facts.get(side), title, running=side in running) for side, title in titles.items()]


def about(service: ArenaService) -> str:
    """One paragraph on what this lab's models can be asked; plain about their ears."""
    listener = service.listener
    told = [f"Lab `{service.lab.name}`."]
    try:
        config = json.loads((service.lab / "study.json").read_text())["config"]
    except (OSError, ValueError, KeyError):
        config = {}
    if "natural_voices" in config:
        told.append(
            "**These models learnt from synthetic voices only** (espeak): they have never heard a person, and know "
            "nothing but the miniature's small world. What the recogniser heard is shown with every question."
        )
    domains = list(dict.fromkeys(item.domain for item in listener.items))
    if domains:
        example = listener.items[0].context
        told.append(f"They can be asked about {', '.join(domains)}: “{example}”")
    return " ".join(told)


def results_html(service: ArenaService, blind_only: bool, margin: float, minimum: float) -> str:
    """The statistics of the lab's votes."""
    with store.connect(service.lab) as con:
        rows = preferences.games(preferences.votes(con, blind_only))
    if rows.empty:
        return '<p class="none">No votes yet. Vote in the Blind tab; untick “blind votes only” to count the others.</p>'
    how = {"margin": float(margin), "minimum": int(minimum)}
    overall = preferences.speech_against_text(rows, **how)
    table = [p for p in [overall, *preferences.pairs(rows, **how)] if p.n]
    body = "".join(_preference_row(p) for p in table)
    told = (
        '<table class="votes"><tr><th>a</th><th>against b</th><th>votes</th><th>preference for a, 95 % interval</th>'
        "<th></th><th>verdict</th><th>left side</th><th>longer answer</th><th>tokens a / b</th></tr>"
        + body
        + "</table>"
        "<p><small>A tie or “both bad” is half a point each. Intervals: bootstrap clustered by question and by voter. "
        f"Parity: equivalence test, two one-sided tests against 0.5 ± {margin:g}. Left side, longer answer: share of "
        "the decided votes; far from 50 %, they say that something else than the answer was judged.</small></p>"
    )
    ranked = preferences.bradley_terry(rows)
    if ranked is not None:
        lines = "".join(
            f"<tr><td>{html.escape(r.competitor)}</td><td>{r.strength:+.2f}</td>"
            f"<td>{r.low:+.2f} to {r.high:+.2f}</td><td>{r.n}</td></tr>"
            for r in ranked.itertuples()
        )
        told += (
            '<h3>Bradley–Terry strengths</h3><table class="votes"><tr><th>competitor</th><th>log-strength</th>'
            f"<th>95 % interval</th><th>votes</th></tr>{lines}</table>"
        )
    return told


def _preference_row(p: preferences.Preference) -> str:
    share = lambda x: "–" if x != x else f"{x:.0%}"  # noqa: E731
    bar = (
        f'<div class="bar"><i style="left:{50 - 100 * p.margin:.1f}%;width:{200 * p.margin:.1f}%"></i>'
        f'<u style="left:{100 * p.low:.1f}%;width:{100 * (p.high - p.low):.1f}%"></u>'
        f'<b style="left:{100 * p.mean:.1f}%"></b></div>'
    )
    lengths = " / ".join("–" if x != x else f"{x:.1f}" for x in (p.tokens_a, p.tokens_b))
    return (
        f"<tr><td>{html.escape(p.a)}</td><td>{html.escape(p.b)}</td><td>{p.n} <small>on {p.questions} questions by "
        f"{p.voters} voters; {p.ties} ties, {p.both_bad} both bad</small></td><td>{p.mean:.2f} [{p.low:.2f}, "
        f"{p.high:.2f}]</td><td>{bar}</td><td>{html.escape(p.verdict)}</td><td>{share(p.left)} <small>p "
        f"{decimals(None if p.p_left != p.p_left else p.p_left)}</small></td><td>{share(p.longer)}</td>"
        f"<td>{lengths}</td></tr>"
    )
