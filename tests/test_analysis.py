"""The analysis against closed forms, and against synthetic stores whose truth is known."""

import json

import numpy as np
import pandas as pd
import pytest

import store
from salad import SaladError, analysis
from salad.analysis import ALL
from salad.runs import RunFolder


def test_leave_one_out_and_partial_r2_equal_their_closed_forms():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(25, 2))
    y = 2 + x @ [0.7, -0.4] + 0.3 * rng.normal(size=25)
    made = analysis.regression(y, x, ("a", "b"))
    full = np.column_stack([np.ones(25), x])
    hat = full @ np.linalg.inv(full.T @ full) @ full.T
    error = y - hat @ y
    press = ((error / (1 - np.diag(hat))) ** 2).sum()  # leave-one-out errors without refitting
    total = ((y - y.mean()) ** 2).sum()
    assert made.r2_loo == pytest.approx(1 - press / total) and made.r2 == pytest.approx(1 - error @ error / total)
    # the squared correlation of what is left of y and of a once b is taken out
    other = full[:, [0, 2]]
    rest = np.eye(25) - other @ np.linalg.inv(other.T @ other) @ other.T
    assert made.partial["a"] == pytest.approx(np.corrcoef(rest @ y, rest @ x[:, 0])[0, 1] ** 2)
    assert made.coefficients == pytest.approx(np.linalg.solve(full.T @ full, full.T @ y))


def test_leaving_out_whole_seeds_is_what_refitting_without_them_gives():
    rng = np.random.default_rng(4)
    x, seed = rng.normal(size=12), np.repeat([0, 1, 2], 4)
    y = x + seed + 0.1 * rng.normal(size=12)
    errors = 0.0
    for out in range(3):
        slope, intercept = np.polyfit(x[seed != out], y[seed != out], 1)
        errors += ((y - intercept - slope * x)[seed == out] ** 2).sum()
    made = analysis.regression(y, x[:, None], ("x",), seed)
    assert made.r2_loo == pytest.approx(1 - errors / ((y - y.mean()) ** 2).sum())
    assert made.r2_loo < analysis.regression(y, x[:, None], ("x",)).r2_loo


def test_noise_explains_nothing_that_was_left_out():
    rng = np.random.default_rng(5)
    fits = [analysis.regression(rng.normal(size=20), rng.normal(size=(20, 1)), ("x",)) for _ in range(200)]
    assert np.mean([f.r2_loo for f in fits]) < 0 < np.mean([f.r2 for f in fits])


@pytest.mark.parametrize(
    ("y", "x", "says"),
    [
        ([1, 2, 3], [[1], [2], [3]], "too few"),
        ([1, 2, 3, 4, 5], [[1, 2], [2, 4], [3, 6], [4, 8], [5, 10]], "independently"),
        ([1, 1, 1, 1], [[1], [2], [3], [4]], "nothing to explain"),
        ([1, np.nan, np.nan, 4, 5], [[1], [2], [3], [4], [5]], "too few"),
    ],
)
def test_what_cannot_be_regressed_is_one_clear_line(y, x, says):
    with pytest.raises(SaladError, match=says):
        analysis.regression(y, x, [f"x{i}" for i in range(len(x[0]))])


@pytest.mark.parametrize(("e", "b", "beta"), [(0.04, 30.0, 0.45), (0.13, 5.0, 0.2), (0.0, 200.0, 0.8), (0.5, 4000.0, 1.5)])
def test_a_power_law_is_found_again(e, b, beta):
    n = np.geomspace(1e3, 1e6, 9)
    assert analysis.fit_power_law(n, e + b * n**-beta) == pytest.approx((e, b, beta), rel=2e-3, abs=1e-5)


def test_a_power_law_with_noise_is_found_within_it_and_growth_gives_no_law():
    rng, n = np.random.default_rng(6), np.geomspace(1e3, 1e6, 12)
    e, _, beta = analysis.fit_power_law(n, (0.1 + 20 * n**-0.5) * (1 + 0.01 * rng.normal(size=12)))
    assert abs(e - 0.1) < 0.02 and abs(beta - 0.5) < 0.08
    e, b, _ = analysis.fit_power_law(n, 0.1 + 1e-7 * n)
    assert b == 0 and e == pytest.approx((0.1 + 1e-7 * n).mean())
    with pytest.raises(SaladError, match="4 are needed"):
        analysis.fit_power_law([1e3, 1e4, 1e5], [3, 2, 1])


LAWS = {"r" + "1" * 12: (0.05, 40.0, 0.5), "r" + "2" * 12: (0.3, 8.0, 0.3)}
TOKENS = {10: 2_000, 20: 8_000, 40: 32_000, 80: 192_000, 160: 512_000}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A lab whose runs' M follow known laws, domain stories twice as high as family, with noise between texts."""
    lab = tmp_path_factory.mktemp("analysis") / "lab"
    rng = np.random.default_rng(0)
    samples = [
        {"sample_id": store.ids.sample_id("heldout", f"{d} {i}"), "text": f"{d} {i}", "corpus": "heldout", "domain": d}
        for d in ("stories", "family")
        for i in range(40)
    ]
    store.publish(lab, "samples", samples, {"test": "analysis"})
    runs = {}
    for contender in ("stage1", "narrow_alpha0"):
        config = {"contender": contender, "objective": {"alpha": 1.0}, "llm": {"finetune": "lora"}, "optim": {"decay": 0}}
        run = RunFolder.get_or_create(lab, "stage1", "test", config)
        writer = run.metrics_writer(1)
        for step, tokens in TOKENS.items():
            if step != 80:  # a step that was kept and not logged: half way between its neighbours' tokens
                writer.log(step, tokens, loss=1.0)
        writer.close()
        run.status(state="done", max_steps=160)
        runs[contender] = run.run_id
    noise = rng.gamma(50, 1 / 50, size=len(samples))  # a text is hard at every checkpoint
    answers = []
    for (contender, run_id), law in zip(runs.items(), LAWS.values(), strict=True):
        for step, tokens in TOKENS.items():
            level = law[0] + law[1] * tokens ** -law[2]
            rows = [{
                "run_id": run_id, "step": step, "sample_id": s["sample_id"], "synthesis_id": f"y{i:012x}", "pattern": p,
                "m": level * (2 if s["domain"] == "stories" else 1) * noise[i], "f": 0.01, "d": 1.0,
                "n_positions": 10, "n_positions_f": 20, "speech_s": 2.0,
            } for i, s in enumerate(samples) for p in (0, 1)]  # fmt: skip
            store.publish(lab, "divergences", rows, {"test": contender, "step": step})
        for modality, share in (("text", 0.9), ("speech", 0.5)):
            answers += [{
                "eval_id": f"{contender}{modality}{d}{i}", "run_id": run_id, "step": 160, "contender": contender,
                "task": f"miniature_{d}", "domain": d, "modality": modality, "item_id": str(i), "correct": i < 20 * share,
                "correct_norm": i < 20 * share,
            } for d in ("stories", "family") for i in range(20)]  # fmt: skip
    store.publish(lab, "evaluations", answers, {"test": "answers"})
    (lab / "study.json").write_text(json.dumps({
        "p_web": {"stories": 0.25, "family": 0.75}, "coverage": {"stories": "covered", "family": "partly covered"},
    }))  # fmt: skip
    return lab, runs


def test_a_runs_law_comes_back_from_the_store_with_an_interval_that_holds_the_truth(lab):
    con, weights = store.connect(lab[0]), {"stories": 0.25, "family": 0.75}
    for run_id, (e, b, beta) in zip(lab[1].values(), LAWS.values(), strict=True):
        law = analysis.power_law(con, run_id, weights, draws=200)
        assert law.beta == pytest.approx(beta, rel=1e-2)  # noise between texts scales E and B, not beta
        assert law.low["e"] <= 1.25 * e <= law.high["e"] and law.low["b"] <= 1.25 * b <= law.high["b"]
        assert law.trend < 0 and law.trend_low <= law.trend <= law.trend_high
        value, low, high = law.at(1e6)
        assert low <= 1.25 * (e + b * 1e6**-beta) <= high and low <= value <= high


def test_a_law_is_not_carried_beyond_ten_times_its_tokens_unless_that_is_said(lab):
    law = analysis.power_law(store.connect(lab[0]), lab[1]["stage1"], {"stories": 1.0}, draws=20)
    law.at(5.12e6)
    with pytest.raises(SaladError, match="11.7 times the most that were fitted"):
        law.at(6e6)
    assert law.at(6e6, extrapolate=True)[0] > 0
    with pytest.raises(SaladError, match="4 are needed"):
        analysis.power_law(store.connect(lab[0]), lab[1]["stage1"], {"stories": 1.0}, steps=(10, 20, 40))


def test_collected_checkpoints_say_what_sql_says(lab):
    rows = analysis.collect({0: lab[0]})
    assert len(rows) == 2 * len(TOKENS) * 3 and set(rows.group) == {ALL, "covered", "partly covered"}
    con = store.connect(lab[0])
    m = dict(con.execute("""select domain, sum(m * n_positions) / sum(n_positions) from divergences join samples
        using (sample_id) where run_id = ? and step = 80 group by 1""", [lab[1]["stage1"]]).fetchall())  # fmt: skip
    row = rows[(rows.contender == "stage1") & (rows.step == 80)].set_index("group")
    assert row.m[ALL] == pytest.approx(0.25 * m["stories"] + 0.75 * m["family"])
    assert row.m["covered"] == pytest.approx(m["stories"])
    assert row.tokens[ALL] == TOKENS[80] and not row["last"].any() and row.speech.isna().all()
    last = rows[rows["last"] & (rows.group == ALL)].set_index("contender")
    assert last.speech["stage1"] == 0.5 and last.text["narrow_alpha0"] == 0.9 and set(last.step) == {160}
    assert analysis.collect({0: lab[0]}, [lab[1]["stage1"]]).contender.unique().tolist() == ["stage1"]


def checkpoints(values: dict) -> pd.DataFrame:
    return pd.DataFrame([
        {"seed": seed, "contender": name, "group": ALL, "last": True, "hours": 1.0, "m": m, "f": 0.1, "speech": 0.5, "text": 0.9}
        for name, row in values.items() for seed, m in enumerate(row)
    ])  # fmt: skip


def test_arms_are_compared_seed_by_seed():
    rows = checkpoints({"uniform": [1.0, 2.0, 3.0], "active": [0.8, 1.7, 2.9]})
    made = analysis.compare(rows, ["uniform", "active"]).set_index("contender")
    assert made.m_over["active"] == pytest.approx(-0.2) and made.m_over["uniform"] == 0
    # t with two degrees of freedom: 4.3027 · s / sqrt(3), s = 0.1
    assert made.m_over_half["active"] == pytest.approx(4.302653 * 0.1 / np.sqrt(3), rel=1e-6)
    assert made.m_half["active"] > 1 > made.m_over_half["active"]  # paired, the seeds' own levels play no part
    assert analysis.verdict(0.2, made.m_over_half["active"]) == "undecided"
    assert analysis.verdict(0.3, 0.2) == "holds" and analysis.verdict(-0.3, 0.2) == "does not hold"
    assert analysis.verdict(0.3, float("nan")) == "undecided"


def test_hours_to_match_interpolate_and_never_extrapolate():
    hours, m = [0.5, 1.0, 2.0, 4.0], [0.8, 0.6, 0.4, 0.2]  # a straight line over log hours
    assert analysis.hours_to_match(hours, m, 0.5) == ("=", pytest.approx(2**0.5))
    assert analysis.hours_to_match(hours[::-1], m[::-1], 0.4) == ("=", pytest.approx(2.0))
    assert analysis.hours_to_match(hours, m, 0.1) == (">", 4.0) and analysis.hours_to_match(hours, m, 0.9) == ("<", 0.5)
    assert analysis.hours_to_match(hours, [0.2, 0.3, 0.4, 0.5], 0.35, lower_is_better=False) == ("=", pytest.approx(2**0.5))
    with pytest.raises(SaladError, match="two budgets"):
        analysis.hours_to_match([1.0], [0.5], 0.1)


def test_misalignment_that_drives_accuracy_is_found_to_do_so():
    rng = np.random.default_rng(8)
    m, f = rng.uniform(0.02, 4, 40), rng.uniform(0.01, 0.1, 40)
    rows = pd.DataFrame({"group": ALL, "seed": np.arange(40) % 3, "m": m, "f": f,
                         "speech": 0.6 - 0.1 * np.log(m) + 0.02 * rng.normal(size=40),
                         "text": 0.7 - 0.08 * np.log(f) + 0.02 * rng.normal(size=40)})  # fmt: skip
    fits = analysis.predictors(rows)
    assert fits["speech on M"].r2_loo > 0.9 and fits["text on F"].r2_loo > 0.8
    assert fits["speech on M"].coefficients[1] == pytest.approx(-0.1, abs=0.01)
    assert fits["speech on M, F"].partial["M"] > 0.9 and fits["speech on M, F"].partial["F"] < 0.2


def test_a_law_of_tokens_leaves_out_what_was_measured_in_the_decay():
    rows = pd.DataFrame({"step": [60, 480, 481, 600, 600], "steps": 600, "decay": [120, 120, 120, 120, None]})
    assert analysis.before_decay(rows).index.tolist() == [0, 1, 4]  # where no decay is told, all is taken
