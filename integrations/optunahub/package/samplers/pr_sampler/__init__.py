"""dasearch's sampler as OptunaHub loads it."""

from dasearch.bayes import Observation, Proposal, PRSampler, SpaceExhausted, curve_mean

__all__ = ["Observation", "PRSampler", "Proposal", "SpaceExhausted", "curve_mean"]
