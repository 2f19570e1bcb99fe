"""``snippet``: code that builds the layout in your own training loop, and with a folder its trained weights."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from dasearch.export.inserted import (
    ADAPTERS_NAME,
    BACKBONE_FOLDER,
    ITEMS_NAME,
    PARTS_NAME,
    USER_KEYS,
    USERS_NAME,
    AdapterWeights,
    adapter_weights,
    row_in_words,
    write_model_files,
)
from dasearch.export.options import ExportOptions
from dasearch.layout import Layout
from dasearch.models.insertion import CONTEXT
from dasearch.models.named import NAMED
from dasearch.models.tiny_opt import TINY_OPT
from dasearch.training.checkpoints import copied
from dasearch.training.recommender import Recommender

FORM = "snippet"
SNIPPET_NAME = "snippet.py"
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "layerdrop")  # of a frozen model, where it has them

OPENING = '''"""{model} with {layout} as the study {study} trained it: `model` gives states, `head` the items' scores."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel

import dasearch

here = Path(__file__).parent
parts = load_file(here / "{parts}")
model = AutoModel.from_pretrained({backbone})
model.resize_token_embeddings({tokens}, mean_resizing=False)
model.get_input_embeddings().weight.data[{vocabulary}:] = parts["special"]  # [SEQ] and [ALIGN]
'''
HEAD = """head = torch.nn.Linear({width}, {items})  # in the order of {items_name}
head.load_state_dict({{"weight": parts["head.weight"], "bias": parts["head.bias"]}})
"""
USE = """# a row: {row}
# hidden = model(tokens{context}).last_hidden_state
# scores = head(hidden), to be read at each [SEQ]
"""
CONTEXT_USE = ", segment_ids=segments"
KEYS_USE = f', collaborative_keys=parts["{USER_KEYS}"][users]'
KEYS_NOTE = f"# users are places in {USERS_NAME}; users that came later have no key here; `dasearch.load` computes it\n"
SKETCH = '''"""{model} with {layout}, untrained; --out adds the weights that the study {study} trained."""

from transformers import AutoModel

import dasearch

model = AutoModel.from_pretrained({backbone})  # {where}
'''


def write_snippet(recommender: Recommender, folder: Path, options: ExportOptions) -> None:
    """``snippet.py``, ``layout.json``, ``backbone/``, and the trained tensors as safetensors."""
    weights = adapter_weights(recommender, FORM, options.sites)
    write_model_files(recommender, weights, folder)
    save_file(copied(weights.adapters), folder / ADAPTERS_NAME)
    (folder / SNIPPET_NAME).write_text(trained_snippet(recommender, weights), encoding="utf-8")


def trained_snippet(recommender: Recommender, found: AdapterWeights) -> str:
    """Code that opens the folder it is in."""
    vocabulary = recommender.model.backbone.vocabulary
    n_items, width = found.parts["head.weight"].shape
    opening = OPENING.format(
        **_titles(recommender, found),
        parts=PARTS_NAME,
        backbone=_arguments(f'here / "{BACKBONE_FOLDER}"', recommender),
        tokens=vocabulary + len(found.parts["special"]),
        vocabulary=vocabulary,
    )
    keyed = USER_KEYS in found.parts
    context = (CONTEXT_USE if CONTEXT in found.sites else "") + (KEYS_USE if keyed else "")
    use = USE.format(row=row_in_words(recommender), context=context)
    call = _call(found, f'load_file(here / "{ADAPTERS_NAME}")')
    return (
        opening
        + call
        + HEAD.format(width=width, items=n_items, items_name=ITEMS_NAME)
        + use
        + (KEYS_NOTE if keyed else "")
    )


def untrained_snippet(recommender: Recommender, options: ExportOptions) -> str:
    """Code that inserts the layout, untrained, into the named backbone."""
    weights = adapter_weights(recommender, FORM, options.sites)
    name, layers = recommender.settings.backbone.name, len(recommender.model.backbone.blocks)
    known = NAMED.get(name)
    here_alone = known is not None and (known.package is not None or name == TINY_OPT)
    place = [_written(BACKBONE_FOLDER if here_alone else name)]
    if recommender.settings.backbone.layers is not None and not here_alone:
        place.append(f"num_hidden_layers={layers}")
    where = f"{name}: `backbone` in the trained model's folder" if here_alone else f"or any decoder of {layers} layers"
    opening = SKETCH.format(
        **_titles(recommender, weights), backbone=_arguments(", ".join(place), recommender), where=where
    )
    return opening + _call(weights, None)


def _titles(recommender: Recommender, found: AdapterWeights) -> dict[str, str]:
    return {"model": found.settings.label, "layout": str(found.layout), "study": recommender.settings.name}


def _arguments(place: str, recommender: Recommender) -> str:
    """Where the backbone is, and dasearch's own training without the frozen model's dropout."""
    config = recommender.model.backbone.config
    return ", ".join([place, *(f"{name}=0.0" for name in DROPOUTS if getattr(config, name, 0))])


def _call(found: AdapterWeights, weights: str | None) -> str:
    settings = found.settings
    choices = {
        "sites": found.sites,
        "replaced": found.replaced,
        "bottleneck": settings.bottleneck,
        "activation": settings.activation.value,
        "parallel_reduce": settings.parallel_reduce.value,
        "parallel_residual": settings.parallel_residual,
        "rec_adapter_site": settings.rec_adapter_site.value,
    }
    if found.layout.has_lora:
        choices |= {"lora_rank": settings.lora_rank, "lora_alpha": settings.lora_alpha}
    lines = [f"    {name}={_written(value)}," for name, value in choices.items()]
    if weights is not None:
        lines.append(f"    weights={weights},")
    start = ["dasearch.apply_layout(", "    model,", f"    {_parsed(found.layout)},"]
    return "\n".join([*start, *lines, ")"]) + "\n"


def _parsed(layout: Layout) -> str:
    """The call that builds the layout, with the choices that dasearch does not ship."""
    own = layout.own_choices
    if not own:
        return f'dasearch.Layout.parse("{layout}")'
    made = [
        f'dasearch.Choice("{c.name}", "{c.letter}", {c.active}, {c.parallel}, {c.width}, dasearch.Join("{c.join}")'
        f"{', lora=True' if c.lora else ''})"
        for c in own
    ]
    shipped = [f'dasearch.CHOICES["{choice.name}"]' for choice in layout.choices if choice not in own]
    return f'dasearch.Layout.parse("{layout}", [{", ".join([*shipped, *made])}])'


def _written(value: object) -> str:
    return repr(value).replace("'", '"')  # quotes as formatters write them
