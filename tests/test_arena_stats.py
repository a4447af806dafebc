"""The votes' statistics against closed forms, and against studies whose preference is known."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from workbench.arena import coverage as simulated
from workbench.arena import preferences as s


def table(rows) -> pd.DataFrame:
    """Votes from (question, voter, left, right, choice[, tokens left, tokens right]); a side: (contender, modality)."""
    made = []
    for question, voter, left, right, choice, *lengths in rows:
        result = dict(zip(("left", "right"), ({"tokens": n} for n in lengths), strict=False)) if lengths else None
        made.append({
            "question_id": question, "voter": voter, "choice": choice,
            "left_contender": left[0], "left_modality": left[1], "right_contender": right[0],
            "right_modality": right[1], "latencies": json.dumps(result) if result else None,
        })  # fmt: skip
    return pd.DataFrame(made)


TEXT, SPEECH, OTHER = ("teacher", "text"), ("stage2", "speech"), ("stage1", "speech")


def many(points: int, n: int, **how) -> pd.DataFrame:
    """n votes on n questions by n voters, `points` of them for speech, sides alternating."""
    rows = []
    for i in range(n):
        left, right = (SPEECH, TEXT) if i % 2 else (TEXT, SPEECH)
        for_left = (i < points) == (left == SPEECH)
        rows.append((f"q{i}", f"v{i}", left, right, "left" if for_left else "right"))
    return s.games(table(rows))


def test_points_go_to_speech_whatever_side_it_was_on():
    rows = s.games(table([
        ("q", "v", TEXT, SPEECH, "right"), ("q", "v", SPEECH, TEXT, "left"), ("q", "v", TEXT, SPEECH, "left"),
        ("q", "v", TEXT, SPEECH, "tie"), ("q", "v", SPEECH, TEXT, "both_bad"), ("q", "v", TEXT, TEXT, "left"),
    ]))  # fmt: skip
    assert rows.a.unique().tolist() == ["stage2 · speech"] and rows.b.unique().tolist() == ["teacher · text"]
    assert rows.score.tolist() == [1, 1, 0, 0.5, 0.5]  # the vote between equals tells nothing


def test_with_one_vote_a_question_and_voter_the_interval_is_the_t_interval():
    rows = many(33, 60)
    result = s.preference(rows, draws=6000)
    p = 33 / 60
    error = math.sqrt(p * (1 - p) / 59)
    assert result.mean == pytest.approx(p) and (result.wins, result.losses, result.ties) == (33, 27, 0)
    assert result.se == pytest.approx(error, rel=0.05)
    assert result.high - result.mean == pytest.approx(error * stats.t.ppf(0.975, 59), rel=0.05)
    assert result.p_left == pytest.approx(stats.binomtest(round(result.left * 60), 60).pvalue)


def test_votes_of_one_voter_do_not_count_as_many():
    """Ten voters who each say the same twenty times are ten, not two hundred."""
    score = np.repeat([1, 1, 1, 1, 1, 1, 0, 0, 0, 0], 20).astype(float)
    voter, question = np.repeat(np.arange(10), 20), np.arange(200)
    mean, low, high, error, freedom = s.mean_interval(score, question, voter, draws=6000)
    assert freedom == 9 and mean == 0.6
    assert error == pytest.approx(math.sqrt(0.24 / 9), rel=0.05)
    assert high - low > 3 * 2 * 1.96 * math.sqrt(0.24 / 200)


@pytest.mark.parametrize("constant", [0.0, 0.5, 1.0])
def test_votes_that_all_agree_leave_doubt_and_the_doubt_shrinks(constant):
    widths = []
    for n in (5, 50):
        mean, low, high, error, _ = s.mean_interval(np.full(n, constant), np.arange(n), np.arange(n))
        assert low <= mean == constant <= high and 0 <= low and high <= 1
        widths.append(high - low)
    assert widths[0] > 3 * widths[1] > 0
    if constant == 1.0:
        exact = stats.binomtest(50, 50).proportion_ci(0.95)
        assert low == pytest.approx(exact.low) and high == 1


def test_parity_is_shown_only_by_the_equivalence_test():
    for n, points, verdict in (
        (20, 10, "too few votes"),
        (40, 20, "undecided"),
        (400, 200, "parity"),
        (400, 300, "speech is preferred"),
        (400, 100, "text is preferred"),
    ):
        result = s.preference(many(points, n))
        assert verdict in result.verdict, (n, points, result.verdict)
    result = s.preference(many(200, 400), draws=6000)
    t = 0.1 / math.sqrt(0.25 / 399)
    assert result.p_parity == pytest.approx(stats.t.sf(t, 399), rel=0.3)
    assert s.preference(many(200, 400), margin=0.02).p_parity > 0.05  # a stricter margin is not met


def test_side_bias_and_answer_length_stand_beside():
    rows = [(f"q{i}", f"v{i}", SPEECH, TEXT, "left", 3, 9) for i in range(15)]
    rows += [(f"p{i}", f"w{i}", TEXT, SPEECH, "left", 9, 3) for i in range(15)]
    result = s.preference(s.games(table(rows)))
    assert result.left == 1.0 and result.p_left < 1e-6 and result.mean == 0.5
    assert result.longer == 0.5 and (result.tokens_a, result.tokens_b) == (3, 9)


def test_no_votes_is_an_answer_too():
    rows = s.games(table([]))
    assert rows.empty and s.speech_against_text(rows).n == 0 and s.pairs(rows) == []
    assert "too few votes: 0 of 30" in s.speech_against_text(rows).verdict
    assert "no votes yet" in s.lines(table([]))[0]


def test_bradley_terry_of_two_is_the_log_odds_and_of_three_recovers_the_truth():
    rows = many(45, 60)
    both = s.strengths(rows, prior=0.0)
    assert both["stage2 · speech"] - both["teacher · text"] == pytest.approx(math.log(45 / 15), abs=1e-4)
    assert s.bradley_terry(rows) is None  # two competitors have a preference, not a ranking
    rng, true = np.random.default_rng(0), {TEXT: 1.0, SPEECH: 0.3, OTHER: -1.3}
    names, votes = list(true), []
    for i in range(1500):
        left, right = (names[k] for k in rng.permutation(3)[:2])
        wins = rng.random() < 1 / (1 + math.exp(true[right] - true[left]))
        votes.append((f"q{i % 100}", f"v{i % 30}", left, right, "left" if wins else "right"))
    ranked = s.bradley_terry(s.games(table(votes)), draws=60)
    assert ranked.competitor.tolist() == ["teacher · text", "stage2 · speech", "stage1 · speech"]
    for row, value in zip(ranked.itertuples(), true.values(), strict=True):
        assert row.strength == pytest.approx(value, abs=0.2) and 0.1 < row.high - row.low < 0.6
    assert ranked.n.sum() == 3000


def test_bradley_terry_says_nothing_across_a_gap():
    rows = s.games(table([("q", "v", TEXT, SPEECH, "left"), ("q", "v", OTHER, ("x", "text"), "left")]))
    assert s.strengths(rows).isna().sum() == 2
    never_lost = s.games(table([("q", "v", TEXT, SPEECH, "left")] * 9))
    assert np.isfinite(s.strengths(never_lost)).all()


@pytest.mark.parametrize("name", ["independent votes, speech at 0.62", "alike by both"])
def test_intervals_cover_the_truth_of_simulated_studies(name):
    """200 studies here; the 1,000 of docs/arena.md were run once."""
    result = simulated.coverage(simulated.SIMULATIONS[name], 200, seed=1, draws=400)
    assert 0.90 <= result["held"] <= 0.99
    if name == "alike by both":
        assert result["naive"] < 0.88  # what independent votes would have claimed


def test_the_simulation_knows_its_own_truth():
    world = simulated.SimulatedStudy(
        preference=0.8,
        question_sd=1.0,
        voter_sd=0.5,
        tie=0.3,
        questions=4000,
        voters=400,
        votes_each=500,
    )
    score, _, _ = world.draw(np.random.default_rng(0))
    assert score.mean() == pytest.approx(world.truth(), abs=0.02)
    assert (score == 0.5).mean() == pytest.approx(0.3, abs=0.01)
