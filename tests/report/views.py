"""Studies made by hand, whose every number is known."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from dasearch.bayes import Proposal
from dasearch.config import parse_study
from dasearch.layout import Layout, as_record
from dasearch.report.view import State, StudyView, Trial
from dasearch.search.confirmation import ALL_PARALLEL, ALL_SERIAL, CANDIDATE
from dasearch.search.store import Artifact, Confirmation, FinalTraining, PostSearchTraining, Result
from dasearch.search_space import SearchSpace, load_search_space
from dasearch.training.metrics import Interval
from dasearch.training.progress import Epoch

DIVERGED = "loss <b>nan</b>"
BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
LAYOUTS = ("SSS-SSS", "PPP-PPP", "SPS-PPS", "SPP-PPS", "SPS-SPS")
SCORES = (0.10, 0.08, 0.13, 0.14, 0.12)


def space(layers: int = 2) -> SearchSpace:
    return load_search_space("darec", backbone_layers=layers)


def complete(number: int, layout: Layout, score: float, **changes: Any) -> Trial:
    """Trial k starts k x 10 s after the study, and trains 8 s in two epochs."""
    curve = {0: score - 0.02, 1: score}
    facts: dict[str, Any] = {
        "number": number,
        "state": State.COMPLETE,
        "layout": layout,
        "score": score,
        "curve": curve,
        "epochs": tuple(Epoch(k, {"total": 5.0 - k}, {"MRR": value}, 4.0) for k, value in curve.items()),
        "seconds": 8.0 + number,
        "parameters": 1000 + number,
        "peak_memory": 2**20,
        "started": BEGUN + timedelta(seconds=10 * number),
        "ended": BEGUN + timedelta(seconds=10 * number + 8),
    }
    return Trial(**{**facts, **changes})


def view(trials: Sequence[Trial] = (), *, layers: int = 2, **changes: Any) -> StudyView:
    """A study that has begun, with nothing but these trials."""
    facts: dict[str, Any] = {
        "name": "toy",
        "phase": "search",
        "settings": parse_study({"name": "toy", "search": {"budget": 5}}),
        "space": space(layers),
        "dataset": {"name": "toy data", "fingerprint": "ab12"},
        "versions": {"dasearch": "0.1.0", "torch": "2.13.0"},
        "created": BEGUN,
        "read": BEGUN + timedelta(hours=1),
        "trials": tuple(trials),
    }
    return StudyView(**{**facts, **changes})


def finished(**changes: Any) -> StudyView:
    """Five complete trials, one failed and its retry's place taken by one pruned, one running; confirmed and tested."""
    layouts = [Layout.parse(text) for text in LAYOUTS]
    trials = [complete(n, layout, score) for n, (layout, score) in enumerate(zip(layouts, SCORES, strict=True))]
    lost = Layout.parse("PSS-SSS")
    trials += [
        Trial(5, State.FAIL, lost, curve={0: 0.05}, started=_at(50), ended=_at(55), reason="it was interrupted"),
        Trial(
            6,
            State.PRUNED,
            lost,
            curve={0: 0.05, 1: 0.01},
            started=_at(55),
            ended=_at(63),
            retry_of=5,
            reason=DIVERGED,
        ),
        Trial(7, State.RUNNING, Layout.parse("SSS-SSP"), curve={0: 0.07}, started=_at(60)),
    ]
    facts = {
        "phase": "done",
        "proposals": proposals(layouts),
        "confirmations": confirmations(layouts),
        "results": results(str(layouts[3])),
        "final_trainings": (FinalTraining("winner", str(layouts[3]), 0, {"MRR": 0.2}, 1003, 60.0, 2**21),),
        "artifacts": (Artifact("model", "runs/toy/model", "f" * 64),),
    }
    return view(trials, **{**facts, **changes})


def _at(seconds: int) -> datetime:
    return BEGUN + timedelta(seconds=seconds)


def proposals(layouts: Sequence[Layout]) -> tuple[Proposal, ...]:
    """Two of the initial design, then three of the surrogate: predicted .10 ± .01, .12 ± .01 and .30 ± .01."""
    names = space().free
    startup = [Proposal(n, "startup", as_record(layouts[n], names), None, None, None, None, 0.1) for n in (0, 1)]
    predicted = {2: 0.10, 3: 0.12, 4: 0.30}
    return (
        *startup,
        *(
            Proposal(n, "reparameterization", as_record(layouts[n], names), _likely(layouts[n]), -2.0, mean, 0.01, 0.2)
            for n, mean in predicted.items()
        ),
    )


def _likely(layout: Layout) -> dict[str, list[float]]:
    return {name: [0.95 if bit else 0.15] for name, bit in zip(space().names, layout.z, strict=True)}


def confirmations(layouts: Sequence[Layout]) -> tuple[Confirmation, ...]:
    """Over seeds 1 and 2: all-serial .10 and .12, all-parallel .08 and .09, the candidate .15 and .16."""
    scored = (
        (layouts[0], ALL_SERIAL, (0.10, 0.12)),
        (layouts[1], ALL_PARALLEL, (0.08, 0.09)),
        (layouts[3], CANDIDATE, (0.15, 0.16)),
    )
    return tuple(
        Confirmation(layout, role, seed, {"MRR": score}, 8.0)
        for layout, role, scores in scored
        for seed, score in enumerate(scores, start=1)
    )


def later_trainings() -> tuple[PostSearchTraining, ...]:
    """Two of six confirmations, each of 8 s, then the first of four final trainings, which runs."""
    layout = Layout.parse(LAYOUTS[0])
    confirmed = [
        PostSearchTraining(
            f"confirm/{seed}/{layout}",
            "confirmation",
            f"all-serial, seed {seed}",
            layout,
            seed,
            6,
            began,
            _after(began),
        )
        for seed, began in ((1, _at(100)), (2, _at(110)))
    ]
    return (*confirmed, PostSearchTraining(f"final/{layout}", "final", "winner <b>, seed 0", layout, 1, 4, _at(120)))


def _after(began: datetime) -> datetime:
    return began + timedelta(seconds=8)


def results(winner: str) -> tuple[Result, ...]:
    return (
        Result("winner", winner, "NDCG@10", 0.2, 0.18, 0.22, seeds=2, sd=0.01),
        Result("popularity", None, "NDCG@10", 0.1, 0.09, 0.11, lead=Interval(0.1, 0.08, 0.12), p=0.0001),
    )
