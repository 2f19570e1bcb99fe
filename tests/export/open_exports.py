"""Run in a separate process: open exported folders as their users would, and print the scores as JSON.

Usage: python open_exports.py FORM=FOLDER ... < questions.json. A form's own packages are all it may import: dasearch never,
transformers for ``hf`` alone.
"""

import functools
import importlib.util
import json
import sys
from pathlib import Path

FORBIDDEN = ("dasearch", "pydantic", "optuna", "botorch")
for name in FORBIDDEN:
    sys.modules[name] = None  # an import of it fails


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem + path.parent.name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def require_ranked(ask, scores, names, history):
    """The best items, without the history's or with them."""
    for include_seen in (False, True):
        allowed = [score for name, score in zip(names, scores, strict=True) if include_seen or name not in history]
        told = ask(k=3, include_seen=include_seen)
        assert [score for _, _, score in told] == sorted(allowed, reverse=True)[:3]
    everything = ask(k=len(names))
    assert {name for name, _, _ in everything} == set(names) - set(history)


def torch_scores(folder, questions):
    import torch

    module = module_at(folder / "recommender.py")
    model, catalogue = module.load()
    with torch.inference_mode():
        found = [model(**module.batch_of(model.c, catalogue, [h], [u]))[0].tolist() for h, u in questions]
    for (history, user), scores in zip(questions, found, strict=True):
        ask = functools.partial(module.recommend, model, catalogue, history, user=user)
        require_ranked(ask, scores, [item["id"] for item in catalogue["items"]], history)
    return found


def hf_scores(folder, questions):
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("w5 w6")["input_ids"]
    with torch.inference_mode():
        found = [model(**model.batch_of([h], [u])).logits[0].tolist() for h, u in questions]
    for (history, user), scores in zip(questions, found, strict=True):
        ask = functools.partial(model.recommend, history, user=user)
        require_ranked(ask, scores, [item["id"] for item in model.catalogue["items"]], history)
    told = model.recommend(questions[0][0], k=3)
    again = folder.parent / (folder.name + "-again")
    model.save_pretrained(again)
    assert AutoModel.from_pretrained(again, trust_remote_code=True).recommend(questions[0][0], k=3) == told
    return found


def served_scores(folder, questions):
    server = module_at(folder / "serve.py").Server()
    place = {item["id"]: k for k, item in enumerate(server.items)}
    answers = [server.answer([history], [user], include_seen=True)[0] for history, user in questions]
    unseen = server.answer([history for history, _ in questions], [user for _, user in questions])
    for (history, _), answer, left in zip(questions, answers, unseen, strict=True):
        wanted = {name: score for name, _, score in answer if name not in history}
        assert wanted.keys() == {name for name, _, _ in left}
        assert all(abs(score - wanted[name]) < 1e-5 for name, _, score in left)
    together = server.answer([h for h, _ in questions], [u for _, u in questions], include_seen=True)
    for alone, beside in zip(answers, together, strict=True):
        ours, theirs = ({name: score for name, _, score in answer} for answer in (alone, beside))
        assert all(abs(ours[name] - theirs[name]) < 1e-5 for name in ours)
    found = []
    for answer in answers:
        scores = [None] * len(place)
        for name, _, score in answer:
            scores[place[name]] = score
        found.append(scores)
    return found


OPEN = {"torch": torch_scores, "hf": hf_scores, "onnx": served_scores, "pt2": served_scores}


def main():
    questions = json.load(sys.stdin)
    found = []
    for argument in sys.argv[1:]:
        form, folder = argument.split("=", 1)
        found.append(OPEN[form](Path(folder), questions))
        if form in ("torch", "pt2"):
            assert "transformers" not in sys.modules
        if form == "onnx":
            assert "torch" not in sys.modules
    json.dump({"scores": found, "modules": sorted(sys.modules)}, sys.stdout)


if __name__ == "__main__":
    main()
