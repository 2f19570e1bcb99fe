"""Print the final table of finished studies as Markdown, and what each training took.

Run: python benchmarks/results_table.py STUDY... [--storage runs/dasearch.db]
"""

from __future__ import annotations

import argparse
import statistics

from dasearch.search.store import FinalTraining, Result, open_store

METRICS = ("MRR", "Recall@10", "NDCG@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="+")
    parser.add_argument("--storage", default="runs/dasearch.db")
    given = parser.parse_args()
    store = open_store(given.storage, "runs", create=False)
    for name in given.studies:
        print(f"### {name}\n")
        print(table(store.results(name), store.final_trainings(name)), end="\n\n")
    store.close()


def table(results: list[Result], trainings: list[FinalTraining]) -> str:
    lines = [
        f"| | {' | '.join(METRICS)} | winner's lead in NDCG@10 [95%] | p (Holm) | trained parameters | s a training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, title in titles(results).items():
        rows = {result.metric: result for result in results if result.name == name}
        own = [training for training in trainings if training.name == name]
        seconds = f"{statistics.mean(training.seconds for training in own):.0f}" if own else ""
        cells = [*(spread(rows[metric]) for metric in METRICS), *lead(rows["NDCG@10"])]
        cells += [f"{own[0].parameters:,}" if own else "", seconds]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def titles(results: list[Result]) -> dict[str, str]:
    """What to call each row; one model under several names is one row."""
    found: dict[str, str] = {}
    layouts = {result.name: result.layout for result in results}
    for name, layout in layouts.items():
        first = next((other for other in found if layout and layouts[other] == layout), None)
        if first is None:
            found[name] = f"{name} {layout}" if layout else name
        else:
            found[first] = f"{first} = {name} {layout}"
    return found


def spread(result: Result) -> str:
    """``.1234 ± .0056``, without the sd for a single seed."""
    sd = "" if result.sd is None else f" ± {result.sd:.4f}"
    return f"{result.value:.4f}{sd}"


def lead(result: Result) -> tuple[str, str]:
    if result.lead is None or result.p is None:
        return "", ""
    shown = f"{result.lead.mean:+.4f} [{result.lead.low:+.4f}, {result.lead.high:+.4f}]"
    return shown, f"{result.p:.3f}" if result.p >= 0.001 else "< .001"


if __name__ == "__main__":
    main()
