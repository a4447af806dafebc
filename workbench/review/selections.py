"""The lab's selections, and whether one can be shown."""

import duckdb
import pandas as pd

from workbench.markup import markdown
from workbench.review.clusters import clusters_without_gamma


def selections(con: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """The lab's selections with a label to choose by; those drawn by divergence first, children last."""
    return con.execute("""
        SELECT s.*, coalesce(n, 0) AS n_texts, round(coalesce(hours, 0), 2) AS hours,
            format('{} · γ {} · {} texts · {}', strategy, coalesce(gamma, 0), coalesce(n, 0), s.selection_id) AS label
        FROM selections AS s LEFT JOIN (SELECT selection_id, count(*) AS n, sum(estimated_s) / 3600 AS hours
            FROM selected GROUP BY ALL) USING (selection_id)
        ORDER BY parent_selection_id IS NOT NULL, strategy <> 'active', s.selection_id""").df()


def unready(con: duckdb.DuckDBPyConnection, selection_id: str) -> str | None:
    """What to do where a selection's clusters or their divergences are not in the lab, in a sentence; None where they are."""
    table = clusters_without_gamma(con, selection_id)
    named = markdown("selection <code>{}</code>", selection_id)
    if table.empty:
        return (
            f"The clusters that {named} was drawn from are not in this lab. If a file is damaged, `salad verify --repair` moves "
            "it away; `salad pass cluster` makes clusters again. Another selection may be whole: choose it above."
        )
    if not table.d_cluster.notna().any():
        return (
            f"Neither the drawn texts of {named} are in this lab nor divergences of its clusters. If a file is damaged, "
            "`salad verify --repair` moves it away; `salad pass score` scores again, `salad select` draws again."
        )
    return None


def stage2_recipe(con: duckdb.DuckDBPyConnection, selection_id: str) -> str:
    """The recipe of Stage II that belongs to the Stage I which the selection was drawn with: the one of its name, else the
    first of the same LLM and fine-tuning (a study's own Stage I), else the miniature's."""
    from salad import recipes

    row = con.execute(
        "SELECT r.recipe, json_extract_string(r.config, '$.llm.name'), json_extract_string(r.config, '$.llm.finetune') "
        "FROM selections AS l JOIN runs AS r USING (run_id) WHERE l.selection_id = ?", [selection_id]
    ).fetchone()  # fmt: skip
    recipe, llm, finetune = row or (None, None, None)
    name = (recipe or "").replace("stage1", "stage2")
    if name in recipes.names():
        return name
    stage2 = [name for name in recipes.names() if name.endswith("stage2")]
    same = (name for name in stage2 if (recipes.get(name).llm.name, recipes.get(name).llm.finetune) == (llm, finetune))
    return next(same, "miniature_stage2")
