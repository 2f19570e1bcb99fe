"""Is a trial of several seeds worth their trainings? On planted landscapes, equal numbers of trainings, one process.

Run: python benchmarks/seeds.py [--seeds 10] [--noise 1] [--trainings 30]. A search of 30 trials of one training each is set
beside 15 of two and 10 of three, whose scores are means, so that their noise is smaller by the root of their number. Noise
is a share of the landscape's own standard deviation over random layouts: about 1 on the tables of really trained layouts
(benchmarks/README.md), .2 in the races of samplers. Printed: the noise-free value of the layout that would be confirmed
first, that of the best posterior mean among those evaluated, as a share of the optimum; and the lead of one seed a trial,
paired by landscape and seed, with its standard error.
"""

from __future__ import annotations

import argparse

import torch

from dasearch.bayes import Surrogate, propose
from dasearch.bayes.choices import Choices
from dasearch.bench.landscapes import FAMILIES
from dasearch.bench.samplers import mean_and_error

LAYERS = 12
SEEDS_A_TRIAL = (1, 2, 3)


def confirmed(family: str, seed: int, repeats: int, trainings: int, noise: float) -> float:
    """The share of the optimum at the layout that a search of so many trainings confirms first."""
    landscape = FAMILIES[family](LAYERS, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    choices = Choices.named(landscape.sizes)
    codes = torch.cat([torch.zeros(1, choices.d), torch.ones(1, choices.d), choices.uniform(8, generator)]).double()
    trials = trainings // repeats
    codes = codes[:trials]
    sd = noise * landscape.spread / repeats**0.5

    def observe(points: torch.Tensor) -> torch.Tensor:
        luck = torch.randn(len(points), generator=generator, dtype=torch.float64)
        return landscape.value(points.long()) + sd * luck

    values = observe(codes)
    nothing = codes[:0]
    while len(codes) < trials:
        found = propose(Surrogate.fit(codes, values, choices), nothing, codes, generator=generator).codes[None]
        codes, values = torch.cat([codes, found]), torch.cat([values, observe(found)])
    best = Surrogate.fit(codes, values, choices).posterior(codes).mean.argmax()
    return landscape.truth(tuple(codes[best].long().tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--trainings", type=int, default=30)
    given = parser.parse_args()
    print(f"{LAYERS} layers of three sites, {given.trainings} trainings, noise {given.noise:g} x the landscape's sd")
    for family in FAMILIES:
        reached = {
            repeats: [confirmed(family, seed, repeats, given.trainings, given.noise) for seed in range(given.seeds)]
            for repeats in SEEDS_A_TRIAL
        }
        parts = [f"{repeats}: {sum(found) / len(found):.3f}" for repeats, found in reached.items()]
        for repeats in SEEDS_A_TRIAL[1:]:
            pairs = zip(reached[1], reached[repeats], strict=True)
            lead, error = mean_and_error([one - several for one, several in pairs])
            parts.append(f"lead of 1 over {repeats} {lead:+.3f} ± {error:.3f}")
        print(f"{family:<12} " + "  ".join(parts), flush=True)


if __name__ == "__main__":
    main()
