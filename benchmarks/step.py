"""One training step: milliseconds, operations, tokens a second, share of the device's peak, memory; one candidate and K.

Run: python benchmarks/step.py [STUDY ...] [--candidates 1,4] [--steps N] [--against REV [--theirs STUDY]] [--set KEY=VALUE].

Every line is a process that prepares the study, takes a few steps to warm up, and then times steps when it is asked to.
Operations are kernel launches on a GPU and dispatched operations on a CPU, forward, backward and optimiser. The floor is
2 · parameters · tokens · 2 operations of arithmetic (forward, and backward through frozen layers), a candidate and step;
the peak is a product of matrices measured beside it. With ``--against`` the same of another revision in a git worktree,
in turns, one candidate at a time, as ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[1]
STUDIES = ("quickstart", "idle", "ra-rec")
PEAK_SIZE = {"cuda": 8192, "cpu": 1024}  # of the square matrices whose product measures the peak
WARM_UP = 4


def steps_of(given: argparse.Namespace) -> tuple[Any, Callable[[], Iterator[Any]], Callable[[Any], int], int]:
    """Materials, an endless stream of batches, what takes one step and says how many tokens it read, and the users.

    The training loop of this revision, or of one before `dasearch.training.stack`.
    """
    import torch

    from dasearch.data import LeaveOneOut
    from dasearch.layout import Layout
    from dasearch.search.study import Study
    from dasearch.training.preparation import prepare_study

    study = Study.load(given.study, given.changes)
    settings, space, dataset = study.settings, study.space(), study.dataset()
    materials = prepare_study(settings, dataset, LeaveOneOut(dataset).development)
    generator = torch.Generator().manual_seed(0)
    layouts = [Layout.random(space.layers, len(space.sites), generator=generator) for _ in range(given.candidates)]
    every, recipe = space.file.replace_every, settings.trial
    try:
        from dasearch.training.stack import Candidate, Ground, Run, Stack
    except ImportError:
        return _before_stacks(settings, materials, layouts[0], recipe, every)
    structure = getattr(space.file, "structure", every)  # the frequency alone in earlier revisions
    ground = Ground(settings, materials, recipe, structure)
    stack = Stack(ground, [Run.begin(ground, Candidate(layout), k, {}) for k, layout in enumerate(layouts)])

    def stream() -> Iterator[Any]:
        while True:
            yield from stack.batches()

    def step(part: Any) -> int:
        batch, drawn = part
        stack.take([part])
        aligned = getattr(drawn, "segments", None)
        return batch.rows.tokens.numel() + (0 if aligned is None else aligned.numel())

    def validate() -> None:
        from dasearch.training.evaluation import held_out

        held_out(stack.model, ground.materials.catalogue, ground.validation, stack.layout)

    step.validate = validate  # type: ignore[attr-defined]
    return materials, stream, step, len(ground.validation)


def _before_stacks(settings: Any, materials: Any, layout: Any, recipe: Any, every: int) -> Any:
    import torch

    from dasearch.training.evaluation import rank_validation
    from dasearch.training.loop import _Run
    from dasearch.training.method import weighted_total

    run = _Run(settings, materials, layout, recipe, every, 0)

    def stream() -> Iterator[Any]:
        while True:
            yield from run._batches()

    def step(batch: Any) -> int:
        terms = run._terms(batch)
        run.optimizer.zero_grad(set_to_none=True)
        weighted_total(terms, materials.method.weights).backward()
        _ = [value.item() for value in terms.values()]
        torch.nn.utils.clip_grad_norm_(run.trainable.values(), recipe.clip)
        run.optimizer.step()
        return batch.rows.tokens.numel()

    step.validate = lambda: rank_validation(run.model, materials.catalogue, materials.development, run.bits)  # type: ignore[attr-defined]
    return materials, stream, step, len(materials.development.users)


def serve(given: argparse.Namespace) -> None:
    """Prepare and say so; then, for every line on standard input, time so many steps and answer in JSON."""
    import torch

    if given.threads:
        torch.set_num_threads(given.threads)
    materials, stream, step, users = steps_of(given)
    device, batches = materials.device.type, stream()
    first = {**_warmed_up(step, batches, device), "operations": _operations(step, batches, device)}
    frozen = sum(p.numel() for name, p in materials.catalogue.backbone.model.named_parameters() if "embed" not in name)
    print(json.dumps({**first, "frozen": frozen, "users": users}), flush=True)
    print(f"warm-up {first['warm_up']:.0f} s", file=sys.stderr, flush=True)
    for line in sys.stdin:
        seconds, tokens = _timed(step, batches, device, int(line))
        # whoever is cut short has this
        print(f"{1e3 * statistics.median(seconds):.1f} ms a step of {given.candidates}", file=sys.stderr, flush=True)
        profile = _profile(step, batches, device, given.profile) if given.profile else []
        began = time.perf_counter()
        if given.validate:
            step.validate()  # type: ignore[attr-defined]
        validation = time.perf_counter() - began
        # the pool of graphs, which replays fill, included
        memory = torch.cuda.max_memory_reserved() if device == "cuda" else 0
        answer = {"seconds": seconds, "tokens": tokens, "memory": memory, "validation": validation, "profile": profile}
        print(json.dumps(answer), flush=True)


def _warmed_up(step: Callable[[Any], int], batches: Iterator[Any], device: str) -> dict[str, Any]:
    """The seconds of the first steps, and the device."""
    started = time.perf_counter()
    for _ in range(WARM_UP):
        step(next(batches))
    _wait(device)
    return {"warm_up": time.perf_counter() - started, "device": device}


def _timed(step: Callable[[Any], int], batches: Iterator[Any], device: str, steps: int) -> tuple[list[float], float]:
    """The seconds of each step without its batch's making, and the tokens of a step on average."""
    seconds, tokens = [], 0
    for _ in range(steps):
        part = next(batches)
        began = time.perf_counter()
        tokens += step(part)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return seconds, tokens / len(seconds)


def _wait(device: str) -> None:
    """Until a GPU has done what it was given."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _profile(
    step: Callable[[Any], int], batches: Iterator[Any], device: str, most: int
) -> list[tuple[float, int, str]]:
    """Milliseconds, calls and names of the kernels (on a CPU, operations) that a step spends most in; first their sum."""
    tokens, events = _profiled(step, batches, device, "cpu" if device == "cpu" else "cuda")
    on = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    found = sorted(((getattr(e, on) / 1e3, e.count, e.key) for e in events), reverse=True)
    total = (sum(ms for ms, _, _ in found), sum(count for _, count, _ in found), f"in all, of {tokens} tokens")
    return [total, *found[:most]]


def _operations(step: Callable[[Any], int], batches: Iterator[Any], device: str) -> float:
    """Kernel launches of a step on a GPU; on a CPU, dispatched operations of one that compute (a view is none)."""
    if device == "cuda":
        _, events = _profiled(step, batches, device, "cpu", "cuda")
        return sum(event.count for event in events if "LaunchKernel" in event.key)
    part = next(batches)
    with _Counting() as counting:
        step(part)
    return counting.n


class _Counting(TorchDispatchMode):
    """Counts what reaches the CPU's kernels, backward and optimiser included."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        free = func.is_view or func.overloadpacket.__name__ in ("detach", "_unsafe_view", "empty", "empty_like")
        self.n += not free
        return func(*args, **(kwargs or {}))


def _profiled(
    step: Callable[[Any], int], batches: Iterator[Any], device: str, *activities: str
) -> tuple[int, list[Any]]:
    """The tokens of one step, and what the profiler saw of it, by name."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    part = next(batches)
    with profile(activities=[getattr(ProfilerActivity, name.upper()) for name in activities]) as seen:
        tokens = step(part)
        if device == "cuda":
            torch.cuda.synchronize()
    return tokens, list(seen.key_averages())


def measured_peak(device: str) -> float:
    """Operations of arithmetic a second of a product of large matrices: bfloat16 on a GPU, float32 on a CPU."""
    import torch

    n, kind = PEAK_SIZE[device], torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=kind) for _ in range(2))
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * n**3 / statistics.median(seconds[3:])


class Served:
    """A process that answers; see `serve`."""

    def __init__(self, root: Path, study: str, candidates: int, given: argparse.Namespace) -> None:
        changes = [part for change in given.changes for part in ("--set", change)]
        numbers = ["--threads", str(given.threads), "--profile", str(given.profile)]
        options = [*changes, *numbers, *(["--validate"] if given.validate else [])]
        command = [sys.executable, __file__, study, "--candidates", str(candidates), *options, "--serve"]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if given.verbose else subprocess.DEVNULL,
            text=True,
        )
        self.facts = self._answer()
        self.seconds: list[float] = []

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a step did not come to its end; --verbose shows why")
        return json.loads(line)

    def measure(self, steps: int) -> None:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        found = self._answer()
        self.seconds += found.pop("seconds")
        self.facts |= found

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def line(name: str, k: int, served: Served, peak: float) -> str:
    """What a person reads of one process."""
    facts, seconds = served.facts, statistics.median(served.seconds)
    floor = 2 * facts["frozen"] * facts["tokens"] * 2  # of all candidates' tokens
    parts = [
        f"{name:<34} K={k}",
        f"{1e3 * seconds:8.1f} ms a step, {1e3 * seconds / k:7.1f} a candidate",
        f"{facts['operations'] / k:8.0f} operations a candidate",
        f"{facts['tokens'] / seconds:10.0f} tokens/s",
        f"{floor / seconds / peak:6.1%} of peak",
    ]
    if facts["memory"]:
        parts.append(f"{facts['memory'] / 2**30:.1f} GiB")
    if facts["validation"] > 0.001:
        parts.append(f"validation of {facts['users']}: {facts['validation']:.2f} s")
    first = "  ".join([*parts, f"warm-up {facts['warm_up']:.0f} s"])
    return "\n".join([first, *(f"    {ms:9.3f} ms {count:6d} x  {name[:110]}" for ms, count, name in facts["profile"])])


def against(revision: str, study: str, given: argparse.Namespace) -> None:
    """One candidate in this revision and another, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder) / "against"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", there, revision], check=True)
        try:
            sides = {"this": Served(ROOT, study, 1, given), revision: Served(there, given.theirs or study, 1, given)}
            for _ in range(given.rounds):
                for served in sides.values():
                    served.measure(given.steps)
            this, other = (statistics.median(served.seconds) for served in sides.values())
            counts = [served.facts["operations"] for served in sides.values()]
            print(
                f"{study:<34} {1e3 * this:.1f} ms against {1e3 * other:.1f} ms in {revision}: {this / other:.2f} x; "
                f"operations {counts[0]:.0f} against {counts[1]:.0f}: {counts[0] / counts[1]:.2f} x",
                flush=True,
            )
            for served in sides.values():
                served.close()
        finally:
            subprocess.run([*git, "remove", "--force", there], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=list(STUDIES))
    parser.add_argument("--candidates", default="1,4", metavar="K,K")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; 0: a core each")
    parser.add_argument("--against", metavar="REV")
    parser.add_argument("--theirs", metavar="STUDY", help="the study's name in REV, where it has another there")
    parser.add_argument("--validate", action="store_true", help="time a validation of all users too")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="the N kernels that a step spends most in")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--verbose", action="store_true", help="show what the processes say on standard error")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        given.study, given.candidates = given.studies[0], int(given.candidates)
        serve(given)
        return
    for study in given.studies:
        if given.against:
            against(given.against, study, given)
        for k in map(int, given.candidates.split(",")):
            served = Served(ROOT, study, k, given)
            for _ in range(given.rounds):
                served.measure(given.steps)
            print(line(study, k, served, measured_peak(served.facts["device"])), flush=True)
            served.close()


if __name__ == "__main__":
    main()
