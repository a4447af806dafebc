"""Whether the intervals of `preferences` hold what they promise: simulated studies whose true preference is known."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from workbench.arena.intervals import MARGIN, mean_interval


@dataclass(frozen=True)
class SimulatedStudy:
    """A study whose true preference is known: each vote's probability of preferring speech is a logistic of the
    overall preference, the question's and the voter's own (normal, on the logit scale); `tie` of the votes are ties."""

    preference: float = 0.0  # logit
    question_sd: float = 0.0
    voter_sd: float = 0.0
    tie: float = 0.2
    questions: int = 60
    voters: int = 20
    votes_each: int = 15

    def truth(self) -> float:
        """The mean score over all questions and voters there could be, by Gauss and Hermite."""
        x, w = np.polynomial.hermite_e.hermegauss(80)
        spread = math.hypot(self.question_sd, self.voter_sd)
        p = float((w / (1 + np.exp(-(self.preference + spread * x)))).sum() / w.sum())
        return self.tie / 2 + (1 - self.tie) * p

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """score, question, voter of each vote; a voter meets no question twice."""
        question = np.concatenate([rng.permutation(self.questions)[: self.votes_each] for _ in range(self.voters)])
        voter = np.repeat(np.arange(self.voters), self.votes_each)
        own = rng.normal(0, self.question_sd, self.questions), rng.normal(0, self.voter_sd, self.voters)
        p = 1 / (1 + np.exp(-(self.preference + own[0][question] + own[1][voter])))
        score = (rng.random(len(p)) < p).astype(float)
        score[rng.random(len(p)) < self.tie] = 0.5
        return score, question, voter


SIMULATIONS = {
    "independent votes, parity": SimulatedStudy(),
    "independent votes, speech at 0.62": SimulatedStudy(preference=0.6),
    "alike by question": SimulatedStudy(preference=-0.4, question_sd=1.0),
    "alike by voter": SimulatedStudy(preference=0.3, voter_sd=0.7),
    "alike by both": SimulatedStudy(preference=-0.3, question_sd=1.0, voter_sd=0.7),
    "alike by both, 8 voters": SimulatedStudy(question_sd=1.0, voter_sd=0.7, voters=8, votes_each=30),
}


def coverage(world: SimulatedStudy, studies: int, seed: int = 0, draws: int = 1000) -> dict:
    """Share of simulated studies whose 95 % interval holds the truth; `naive`: that of the interval for independent
    votes; `parity`: how often the equivalence test says parity."""
    rng, truth = np.random.default_rng(seed), world.truth()
    held = naive = parity = 0
    for number in range(studies):
        score, question, voter = world.draw(rng)
        mean, low, high, error, freedom = mean_interval(score, question, voter, draws=draws, seed=seed + number)
        held += low <= truth <= high
        simple = 1.96 * score.std(ddof=1) / math.sqrt(len(score))
        naive += abs(mean - truth) <= simple
        parity += min(mean - (0.5 - MARGIN), (0.5 + MARGIN) - mean) / error > stats.t.ppf(0.95, freedom)
    return {"truth": truth, "held": held / studies, "naive": naive / studies, "parity": parity / studies}
