"""A diagnosed model as a page to read and listen to: beside the other models, and in the clusters where it hears worst."""

import base64
from pathlib import Path

import pandas as pd
from markupsafe import Markup, escape

import store
from workbench import diagnosis, divergences
from workbench.divergences import ScoredCheckpoint
from workbench.reports.tables import ReportTable

LEGEND = (
    "M is how far the model is from itself when it hears the prompt instead of reading it, in nats a token of what follows; "
    "intervals are 95 %, over texts. A deaf control hears another text's recording, a silent one silence. The heard share, "
    "1 − M / M deaf, says how much of what a deaf one lacks its hearing gives."
)
LISTEN = (
    "What stands before the coloured words is spoken, and the model then predicts these. The darker a token, the more its "
    "prediction changes between reading and hearing; hover for what it expects after each."
)
VERMILION = "213,94,0"


def tables(con, sides: list[diagnosis.Diagnosed], samples: list[str] | None = None) -> list[ReportTable]:
    """The diagnosed models on the same texts, and the worst clusters of the first of them; none where nothing is diagnosed."""
    out = []
    models = diagnosis.model_rows(diagnosis.compared(con, sides, samples)) if sides else []
    if models:
        out.append(_table("diagnoses", "Diagnosed models, on the same texts", models))
        worst = diagnosis.cluster_rows(diagnosis.worst_clusters(con, sides[0], samples=samples))
        if worst:
            out.append(_table("diagnosis-clusters", f"Where {sides[0].label} hears worst", worst))
    return out


def _table(name: str, title: str, rows: list[dict[str, str]]) -> ReportTable:
    return ReportTable(name, title, list(rows[0]), [list(row.values()) for row in rows])


def write_page(con, lab: Path, sides: list[diagnosis.Diagnosed], samples: list[str] | None = None) -> Path:
    """Write lab/report/diagnosis-<run>.html of the first of `sides`, the others beside it, with sound; returns its path."""
    side = sides[0]
    parts = [Markup("<h1>Where does {} fall behind its own text self?</h1><p>{}</p>").format(side.label, LEGEND)]
    for table in tables(con, sides, samples):
        parts += [Markup("<h2>{}</h2>").format(table.title), _grid(table)]
    worst = diagnosis.worst_clusters(con, side, samples=samples)
    if len(worst):
        parts.append(Markup("<h2>Listen: the worst text of each of these clusters</h2><p>{}</p>").format(LISTEN))
    parts += [_listen(con, side, row) for row in worst.to_dict("records")]
    path = lab / "report" / f"diagnosis-{side.run_id}.html"
    path.parent.mkdir(exist_ok=True)
    style = (Path(__file__).parent / "diagnosis.css").read_text()
    title = f"{escape(side.label)}: diagnosis"
    page = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{style}</style>"
    store.atomic.write_bytes(path, "\n".join([page, *parts, "</html>"]).encode())
    return path


def _grid(table: ReportTable) -> Markup:
    head, *body = [
        Markup("<tr>{}</tr>").format(Markup("").join(Markup(cell).format(value) for value in row))
        for cell, row in [("<th>{}</th>", table.heads), *(("<td>{}</td>", row) for row in table.cells)]
    ]
    return Markup("<div class='wide'><table><thead>{}</thead><tbody>{}</tbody></table></div>").format(head, Markup("").join(body))


def _listen(con, side: diagnosis.Diagnosed, row: dict) -> Markup:
    """A cluster's worst text: its sound, and its answer's tokens coloured by M."""
    card = divergences.card(con, ScoredCheckpoint(side.run_id, side.step, side.label), row["sample_id"])
    tokens = [token for token in card["tokens"]] if card else []
    text = card["text"] if card else row["text"] or ""
    first = min((token["char_start"] for token in tokens), default=len(text))
    top = max((token["m"] for token in tokens), default=1.0) or 1.0
    spans = []
    for token in tokens:
        sides = [" ".join(f"{word!r} {p:.0%}" for word, p in token[side][:3]) for side in ("teacher", "student")]
        tip = f"M {token['m']:.3f} nats\nafter reading: {sides[0]}\nafter hearing: {sides[1]}"
        shade = 0.85 * (token["m"] / top) ** 0.5
        spans.append(Markup("<span title='{}' style='background:rgba({},{})'>{}</span>").format(tip, VERMILION, f"{shade:.2f}",
                                                                                              token["token"]))  # fmt: skip
    try:
        flac = base64.b64encode(store.audio(con, row["synthesis_id"])).decode()
        sound = Markup("<audio controls preload='none' src='data:audio/flac;base64,{}'></audio>").format(flac)
    except store.UserError as error:
        sound = Markup("<p>{}</p>").format(error)
    terms = ", ".join(row["terms"] if row["terms"] is not None else [])
    cer = "" if pd.isna(row["cer"]) else f", CER of its recordings {row['cer']:.2f}"
    return Markup("<section><h3>{} {}</h3><p class='facts'>M of the cluster {}, of this text {}; {} s are heard{}</p>{}"
                  "<p class='text'>{}{}</p></section>").format(
        row["cluster_id"], terms, diagnosis.interval(row["m"], row["low"], row["high"]), f"{row['worst_m']:.3f}",
        f"{row['speech_s']:.1f}", cer, sound, text[:first], Markup("").join(spans))  # fmt: skip
