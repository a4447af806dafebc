"""What all figures share: Okabe and Ito's colours, which the colour-blind can tell apart; a quantity keeps its colour and,
within a lab, its scale in every figure."""

import itertools
from collections.abc import Iterable

import altair as alt
import duckdb

from workbench import review

BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#7f7f7f",
)
CONTENDERS = {"teacher": GREY, "stage1": PURPLE, "stage2_active": VERMILION, "stage2_uniform": BLUE}
ROW = 19  # pixels a cluster takes in the panel
alt.utils.schemapi.disable_debug_mode()  # a chart is validated whole when it is shown, not each of its parts as well


@alt.theme.register("salad", enable=True)
def _theme() -> alt.theme.ThemeConfig:
    """Lines and ground that do on white and on black, so that a figure takes the page's own colours."""
    lines = {"gridColor": "#88888844", "tickColor": "#888888aa", "domainColor": "#888888aa"}
    config = {"background": "transparent", "axis": lines, "view": {"stroke": "#88888866"}}
    return {"config": config}


def contenders_scale(names: Iterable[str]) -> alt.Scale:
    """The fixed colours of those that are shown (a study's arms have no "stage2_"), and further ones for contenders
    that a user has named."""
    known = {n: CONTENDERS.get(n) or CONTENDERS.get(f"stage2_{n}") for n in sorted(names, key=_place)}
    spare = itertools.cycle([SKY, GREEN, ORANGE])
    return alt.Scale(domain=list(known), range=[colour or next(spare) for colour in known.values()])


def _place(name: str) -> tuple[int, str]:
    order = list(CONTENDERS)
    own = name if name in CONTENDERS else f"stage2_{name}"
    return (order.index(own) if own in CONTENDERS else len(order)), name


def top_d(con: duckdb.DuckDBPyConnection) -> float:
    """The upper end of every axis of D per text: the lab's largest, rounded up to a half."""
    top = review.of_lab(con, "SELECT quantile_cont(d, 0.995) FROM raw.scored") or 1.0
    return float(-(-top // 0.5) * 0.5)
