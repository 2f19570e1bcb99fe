"""Three stages of a pipeline, a method and a switch each: 216 combinations, 20 trials."""

from itertools import pairwise

import optuna
import optunahub

METHODS = {"fast": 0.0, "exact": 0.6, "learned": 1.0}


def objective(trial: optuna.Trial) -> float:
    """Neighbouring stages of one method are in each other's way. The best there is: 2.6."""
    methods = [trial.suggest_categorical(f"layer{stage}.method", list(METHODS)) for stage in (1, 2, 3)]
    cached = [trial.suggest_categorical(f"layer{stage}.cached", ["no", "yes"]) for stage in (1, 2, 3)]
    clashes = sum(one == other for one, other in pairwise(methods))
    return sum(METHODS[method] for method in methods) - 0.8 * clashes - 0.2 * cached.count("yes")


if __name__ == "__main__":
    sampler = optunahub.load_module("samplers/pr_sampler").PRSampler(seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=20)
    print(study.best_value, study.best_params)
