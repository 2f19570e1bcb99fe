"""``onnx`` and ``pt2``: one graph from token rows to the best items, with dynamic batch size and length."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from dasearch.errors import ExportError
from dasearch.export.options import ExportOptions
from dasearch.export.plain import Part, code, plain
from dasearch.export.pytorch import headline, model_text, write_catalogue, write_json
from dasearch.training.recommender import Recommender

INPUTS = ("input_ids", "attention_mask", "history", "user", "seen")
OUTPUTS = ("items", "scores")
UNROLLED = ("gru4rec",)  # encoders whose graph is unrolled step by step, so that its histories have a fixed width
TOP = 10  # default number of items in an answer
NEEDED = ("onnx", "onnxscript")  # needed by torch.onnx; the extra `export`


class InDouble(nn.Module):
    """A part computed in float64 with float32 outputs.

    The error of ONNX Runtime's float32 sums in ID encoders is four times that of torch's, which later layers amplify to
    1.2e-5 in a score (RA-Rec with ComiRec-SA; 2.9e-6 in float64). An encoder is small, so float64 costs little.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part.double()

    def forward(self, history: Tensor, user: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The part's outputs for ``history`` ``(batch, h)`` and ``user`` ``(batch,)``, cast to float32."""
        outputs = self.part(history, user)
        return tuple(part.float() for part in outputs) if isinstance(outputs, tuple) else outputs.float()


class Graph(nn.Module):
    """Scores every item and returns the best unseen ones.

    Shapes: as the written ``Recommender.forward``, seen ``(batch, n)``, positions of items, -1 for padding -> positions of
    items and their scores, ``(batch, top)`` each; a score is -inf where no unseen item is left.
    """

    def __init__(self, recommender: nn.Module, top: int) -> None:
        super().__init__()
        self.recommender, self.top = recommender, top

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, history: Tensor, user: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Positions and scores of the ``top`` best items not in ``seen``; shapes as of the class."""
        scores = self.recommender(input_ids, attention_mask, history, user)
        best = _without(scores, seen).topk(self.top)
        return best.indices, best.values


def _without(scores: Tensor, seen: Tensor) -> Tensor:
    """The scores with -inf at the seen positions; padding goes to an extra column."""
    beyond = scores.shape[1]
    places = torch.where(seen < 0, beyond, seen)
    return F.pad(scores, (0, 1)).scatter(1, places, -torch.inf)[:, :beyond]


def write_onnx(recommender: Recommender, folder: Path, options: ExportOptions) -> None:
    """``model.onnx``, ``serve.py``, ``config.json``, ``catalogue.json``, ``layout.json``.

    Raises:
        ExportError: if torch.onnx lacks a package.
    """
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise ExportError(f'onnx needs {" and ".join(absent)}, not installed here; pip install "dasearch[export]"')
    top = _top(recommender, options)
    part, program = _program(recommender, top, exact=True)
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it warns about operators of packages that are not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(program, dynamo=True, verbose=False, output_names=list(OUTPUTS))
    assert written is not None
    written.save(folder / "model.onnx")
    _write_beside(recommender, folder, part, top, onnx=True)


def write_pt2(recommender: Recommender, folder: Path, options: ExportOptions) -> None:
    """``model.pt2`` of torch.export, ``serve.py``, ``config.json``, ``catalogue.json``, ``layout.json``."""
    top = _top(recommender, options)
    part, program = _program(recommender, top)
    torch.export.save(program, folder / "model.pt2")
    _write_beside(recommender, folder, part, top, onnx=False)


def _write_beside(recommender: Recommender, folder: Path, part: Part, top: int, *, onnx: bool) -> None:
    sizes = part.config
    said = {"onnx": onnx, "top": top, "max_tokens": sizes["max_tokens"], "width": sizes["history_width"]}
    (folder / "serve.py").write_text(code(headline(recommender), "serve.py.jinja", **said), encoding="utf-8")
    write_json(folder / "config.json", sizes)
    write_catalogue(recommender, folder)


def _top(recommender: Recommender, options: ExportOptions) -> int:
    count = len(recommender.items)
    if options.top is not None and options.top > count:
        raise ExportError(f"--top is {options.top} and the catalogue has {count} items; give a smaller --top")
    return options.top or min(TOP, count)


def _program(recommender: Recommender, top: int, *, exact: bool = False) -> tuple[Part, torch.export.ExportedProgram]:
    part = plain(recommender)
    unrolled = part.choices["encoder"] in UNROLLED
    part = part + Part({"history_width": part.config["history_items"] if unrolled else 0}, {}, {})
    model = _written_model(recommender, part)
    if exact and part.choices["encoder"] and not unrolled:  # ONNX Runtime has no GRU in float64
        model.encoder = InDouble(model.get_submodule("encoder"))
    graph = Graph(model, top).eval()
    shapes = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in INPUTS}
    shapes["user"] = {0: Dim.DYNAMIC}
    if unrolled:
        del shapes["history"][1]
    with _plain_transformers(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a GRU's private attributes
        program = torch.export.export(graph, (), kwargs=_example(part), dynamic_shapes=shapes)
    return part, program


def _written_model(recommender: Recommender, part: Part) -> nn.Module:
    """The model that the source text of `code` defines, with its weights."""
    module = ModuleType("written")
    module.__file__ = "written.py"
    program = compile(model_text(recommender, part, hf=False), "written.py", "exec")
    exec(program, vars(module))  # rendered from our own template
    model: nn.Module = module.Recommender(SimpleNamespace(**part.config))
    model.load_state_dict(part.tensors)
    return model


def _example(part: Part) -> dict[str, Tensor]:
    """Example inputs for tracing; their sizes differ from every size of a model, so that none is specialised."""
    width = part.config["history_width"] or 6
    history = torch.tensor([[0] * width, *[[1, *[-1] * (width - 1)]] * 4])
    tokens = torch.full((5, 7), int(part.config["seq_token"]))
    mask = torch.tensor([[1] * 7, *[[1] * 4 + [0] * 3] * 4])
    user, seen = torch.tensor([-1, 0, -1, 0, -1]), torch.tensor([[0] * 8, *[[1, *[-1] * 7]] * 4])
    return {"input_ids": tokens, "attention_mask": mask, "history": history, "user": user, "seen": seen}


@contextmanager
def _plain_transformers() -> Iterator[None]:
    """Without PyTorch's fused encoder layers, which no exporter supports."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
