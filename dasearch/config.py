"""The study file: one model with every setting, read from YAML, overridden by ``--set``.

Each field is described; an unknown key is rejected with the nearest known one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails

from dasearch.data import DATASETS, READERS, Core, Duplicates, Rules, Ties
from dasearch.data.rows import HISTORY_ITEMS
from dasearch.errors import StudyError, spelled, suggestion
from dasearch.folders import place_of
from dasearch.layout import ModelKind
from dasearch.models.base import ParameterGroup
from dasearch.models.cost import Cost
from dasearch.models.darec import DARecSettings, ItemIDs
from dasearch.models.e4s_rec import E4SRecSettings
from dasearch.models.id_encoders import ENCODERS, EncoderSettings, InterestPool, unknown_encoder
from dasearch.models.idle import IDLESettings
from dasearch.models.named import NAMED
from dasearch.models.prefix import Refine
from dasearch.models.ra_rec import RARecSettings
from dasearch.models.tiny_opt import TinyOPTSettings
from dasearch.shipped import find_shipped, shipped_names
from dasearch.yaml_files import parse_yaml, read_yaml, written_yaml

METRICS = {"mrr": "MRR", "recall@10": "Recall@10", "ndcg@10": "NDCG@10"}  # names in studies, and names in records
SEARCHED_SECTIONS = ("trial", "model", "losses")  # sections whose settings `search.also` may name
UNSEARCHED = ("trial.epochs", "trial.patience", "trial.precision", "model.kind", "model.variation")
ADDED_TO_RECIPES = ("dropout", "average", "rates")  # absent from earlier records, whose identity must not change
KNOWN_NAMES = {  # settings with case-insensitive names, and those names
    "data.source": tuple(DATASETS),
    "data.format": tuple(READERS),
    "backbone.name": tuple(NAMED),
    "encoder.name": tuple(ENCODERS),
    "comparison.encoder.name": tuple(ENCODERS),
    "device": ("auto", "cpu", "cuda"),
}
MMD_BATCH = 16  # minimum sample size of MMD: fewer rows say little about two distributions (SPEC 3)


class Section(BaseModel):
    """A section of the study file; unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(Section):
    """The data source, its format, and its filters."""

    source: str = Field("complete-journey", description="data set by name, or a folder or file in a known format")
    format: str | None = Field(
        None, description="its format, of `dasearch data formats`; null: detected from its files"
    )
    columns: dict[str, str] = Field(
        {},
        description="for a table: columns by role, as in {user: customer, item: sku, timestamp: time, title: name}; id: an item "
        "file's own column of identifiers",
    )
    items: str | None = Field(None, description="for a table: a file of items; null: items come from the interactions")
    min_rating: float | None = Field(None, description="drop interactions rated lower; null: ratings are ignored")
    duplicates: Duplicates = Field(
        Duplicates.KEEP, description="a user's repeated events with one item: keep, or first"
    )
    ties: Ties = Field(
        Ties.SHUFFLE, description="events with equal timestamps: shuffle them, keep one, or keep file order"
    )
    min_item_interactions: int = Field(0, ge=0, description="drop items with fewer events (paper: 4)")
    max_users: int | None = Field(
        None, ge=1, description="maximum number of users, sampled by a seeded hash, with their items; null: all"
    )
    min_user_interactions: int = Field(
        0, ge=0, description="drop users with fewer events; at least 3 are always needed"
    )
    core: Core = Field(
        Core.ONE_PASS, description="drop rare items, then users with few events: once, or until both minima hold"
    )
    bo_fraction: float = Field(
        0.2, gt=0, le=1, description="fraction of users in Data_BO, on which trials train (table 3: b)"
    )
    max_items: int = Field(50, ge=1, description="number of a user's newest items in a row")
    item_tokens: int = Field(30, ge=1, description="maximum tokens of an item sentence, [SEQ] not counted")
    hard_negative_fraction: float = Field(
        0.005, gt=0, le=1, description="fraction of the catalogue that counts as near (app. A)"
    )
    mf_rank: int = Field(1000, ge=1, description="rank of the MF vectors for hard negatives (app. A)")

    def rules(self, seed: int) -> Rules:
        """The rules for reading the source; ``seed`` is that of shuffled and reduced ties."""
        return Rules(
            format=self.format,
            columns=self.columns,
            items=self.items,
            min_rating=self.min_rating,
            duplicates=self.duplicates,
            ties=self.ties,
            seed=seed,
            min_item_interactions=self.min_item_interactions,
            min_user_interactions=self.min_user_interactions,
            core=self.core,
        )


class TinySettings(Section):
    """Sizes and training of tiny-opt; see `TinyOPTSettings`."""

    layers: int = Field(TinyOPTSettings.layers, ge=1, description="decoder layers")
    width: int = Field(TinyOPTSettings.width, ge=8, description="width of the hidden states; a multiple of heads")
    heads: int = Field(TinyOPTSettings.heads, ge=1, description="attention heads per layer")
    ffn: int = Field(TinyOPTSettings.ffn, ge=8, description="hidden width of the feed-forward network")
    vocabulary: int = Field(TinyOPTSettings.vocabulary, ge=300, description="size of the byte-pair vocabulary")
    max_tokens: int = Field(TinyOPTSettings.max_tokens, ge=64, description="longest row")
    steps: int = Field(TinyOPTSettings.steps, ge=1, description="steps of causal LM training on the catalogue's text")
    batch_size: int = Field(TinyOPTSettings.batch_size, ge=1, description="rows per training step")
    row_tokens: int = Field(TinyOPTSettings.row_tokens, ge=8, description="tokens per training row")
    pool: int = Field(TinyOPTSettings.pool, ge=1, description="distinct sentences per training row")
    lr: float = Field(TinyOPTSettings.lr, gt=0, description="peak learning rate of that training")
    seed: int = Field(TinyOPTSettings.seed, description="seed of its initial weights and its rows")

    def settings(self) -> TinyOPTSettings:
        """The same as `TinyOPTSettings`."""
        return TinyOPTSettings(**self.model_dump())


class BackboneSettings(Section):
    """The frozen language model."""

    name: str = Field(
        "tiny-opt",
        description="tiny-opt, smollm2-135m, minilm-l6, a folder, or a name on the Hugging Face hub (facebook/opt-125m)",
    )
    layers: int | None = Field(None, ge=1, description="number of layers to use, counted from the first; null: all")
    tiny: TinySettings = TinySettings()


class SpaceSettings(Section):
    """The search space."""

    name: str | None = Field(None, description="search space by shipped name or path; null: the model's own")
    replace_every: int | None = Field(None, ge=1, description="replacement frequency r; overrides the file's own")


class ExampleSettings(Section):
    """Selection of training examples (RA-Rec's data construction)."""

    per_user: int | None = Field(None, ge=1, description="maximum targets per user, sampled once; null: all")
    overlap: bool = Field(False, description="drop targets that share no title word with their history")
    diverse: float | None = Field(
        None,
        gt=0,
        le=1,
        description="fraction of examples, sampled evenly over buckets of user length and item popularity",
    )

    @property
    def all(self) -> bool:
        """Whether no selection applies."""
        return self.per_user is None and not self.overlap and self.diverse is None


class Reduction(StrEnum):
    """Reduction of a loss over its terms."""

    MEAN = "mean"
    SUM = "sum"


class LossSettings(Section):
    """DARec's."""

    align: float = Field(0.1, ge=0, description="lambda_1, weight of L_align")
    contrastive: float = Field(1e-3, ge=0, description="lambda_2, weight of L_cl")
    collaborative: float = Field(0.1, ge=0, description="lambda_3, weight of L_cf")
    anchors: int = Field(1, ge=1, description="n_s, contrastive anchors per row")
    negatives: int = Field(5, ge=1, description="n_cl, hard negatives per anchor")
    temperature: float = Field(1.0, gt=0, description="tau of L_cl")
    align_items: int | None = Field(None, ge=1, description="maximum items of a batch in L_align; null: all")
    reduction: Reduction = Field(Reduction.MEAN, description="mean per term, or sums as printed")


class IDLELosses(Section):
    """Loss weights of IDLE-Adapter: cross-entropy of the next item and lambda MMD."""

    mmd: float = Field(
        0.1, ge=0, description="lambda, weight of the MMD between prefixes and the frozen model's states"
    )


class RARecLosses(Section):
    """Loss weights of RA-Rec: BPR, l2, and lambda (L_ua + L_ia)."""

    align: float = Field(0.1, ge=0, description="lambda, weight of the contrastive alignment of both towers")
    temperature: float = Field(0.1, gt=0, description="temperature of the alignment's cosines")
    l2: float = Field(1e-6, ge=0, description="weight of the squared norm of the trained parameters")
    negatives: int = Field(16, ge=1, description="sampled items per batch, each compared with every row, in BPR")


class Precision(StrEnum):
    """Number format of forward passes."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Recipe(Section):
    """Hyperparameters of one training."""

    epochs: int = Field(40, ge=1, description="maximum passes over the training examples")
    batch_size: int = Field(8, ge=1, description="rows per forward pass")
    accumulate: int = Field(1, ge=1, description="forward passes per optimiser step")
    lr: float = Field(5e-5, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    warmup: float = Field(0.06, ge=0, lt=1, description="warm-up fraction of steps; cosine decay after it")
    clip: float = Field(1.0, gt=0, description="maximum gradient norm (clipping)")
    patience: int | None = Field(None, ge=1, description="early stopping: epochs without a better validation NDCG@10")
    precision: Precision = Field(Precision.AUTO, description="auto: bfloat16 autocast on CUDA, float32 on CPU")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="replaces model.dropout, as short trainings need less; null: model.dropout"
    )
    average: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay per step of an exponential moving average of the trained parameters, which is validated and "
        "saved in their place; null: no averaging",
    )
    rates: dict[ParameterGroup, Annotated[float, Field(gt=0)]] = Field(
        {}, description="factors of lr by group of parameters, as in {adapters: 4}: adapters, ids, cf, head; else 1"
    )
    minutes: float | None = Field(None, gt=0, description="time limit of a training in minutes; null: none")

    @field_validator("rates", mode="before")
    @classmethod
    def _known_groups(cls, rates: Any) -> Any:
        if not isinstance(rates, Mapping):
            return rates
        return {_known_name(name, list(ParameterGroup), "group"): factor for name, factor in rates.items()}

    def record(self) -> dict[str, Any]:
        """The recipe as JSON values; later fields appear only where they are set, so that older records stay equal."""
        unset = {name for name in ADDED_TO_RECIPES if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude={*unset, "minutes"})


class CollaborativeTraining(Section):
    """Pre-training of the CF model, once per study."""

    epochs: int = Field(
        10, ge=0, description="passes over the training interactions; 0 keeps the random initialisation"
    )
    batch_size: int = Field(1024, ge=1, description="interactions per step, each with one sampled negative item")
    lr: float = Field(5e-3, gt=0, description="learning rate")
    weight_decay: float = Field(1e-6, ge=0, description="width of the CF model's vectors and layers")


class Pareto(Section):
    """A metric and a cost, for a search of their Pareto front."""

    pareto: tuple[str, Cost] = Field(description="[METRIC, COST]")


class Pick(StrEnum):
    """The choice of a layout on a confirmed front."""

    KNEE = "knee"
    BEST = "best"
    CHEAPEST = "cheapest-within-noise"


class Range(Section):
    """The range of a searched number, uniform on a linear or a logarithmic scale."""

    log: tuple[int | float, int | float] | None = Field(None, description="from, to; uniform in the logarithm")
    linear: tuple[int | float, int | float] | None = Field(None, description="from, to")

    @model_validator(mode="after")
    def _one_that_rises(self) -> Self:
        if (self.log is None) == (self.linear is None):
            raise ValueError("a range is {log: [FROM, TO]} or {linear: [FROM, TO]}")
        low, high = self.ends
        if not low < high or (self.log and low <= 0):
            raise ValueError(f"a range is ascending, and positive if logarithmic (got [{low}, {high}])")
        return self

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """Lower and upper end, on whichever scale is set."""
        chosen = self.log or self.linear
        assert chosen is not None
        return chosen

    def distribution(self, *, whole: bool) -> BaseDistribution:
        """The distribution of the range, of whole numbers or of floats."""
        low, high = self.ends
        if whole and (low % 1 or high % 1):
            raise ValueError(f"a range of whole numbers needs whole ends (got [{low}, {high}])")
        if whole:
            return IntDistribution(int(low), int(high), log=self.log is not None)
        return FloatDistribution(float(low), float(high), log=self.log is not None)


def _is_range(given: Any) -> bool:
    """Whether a value has the format of a `Range`: one scale, the other absent or null, with two numbers."""
    if not isinstance(given, Mapping) or not set(given) <= {"log", "linear"}:
        return False
    ends = [pair for pair in given.values() if pair is not None]
    return all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(end, int | float) for end in pair)
        for pair in ends
    )


class SearchSettings(Section):
    """Objective, budget and options of the search."""

    objective: str | Pareto = Field(
        "mrr",
        description="validation metric to select layouts by: mrr, ndcg@10 or recall@10; or one of them and a cost, "
        "{pareto: [ndcg@10, parameters]}: trained parameters, or madds, multiply-adds per token on top of the frozen model's",
    )
    pick: Pick | None = Field(
        None,
        description="with a cost, the winning layout: knee of the confirmed front (also null), best as without a cost, or "
        "cheapest-within-noise: the cheapest that is at most `worth` behind all-serial",
    )
    also: dict[str, Range | tuple[str | int | float | bool | None, ...]] = Field(
        {},
        description="settings searched besides the layout: {trial.lr: {log: [0.001, 0.01]}}, linear, or a list of values; "
        "trial.KEY also sets final.KEY where both have the same value. Numbers are searched on a grid of 9",
    )
    budget: int = Field(30, ge=1, description="completed evaluations")
    batch: int | Literal["auto"] = Field(
        "auto",
        description="layouts proposed at a time and trained side by side; 1: sequentially; auto: as many as fit on the device",
    )
    pending: int | Literal["auto"] = Field(
        "auto",
        description="submitted batches when the next is proposed, itself included; auto: the number of workers",
    )
    startup: int | None = Field(
        None, ge=1, description="evaluations before the surrogate proposes; null: a third of the free sites, 2 to 10"
    )
    worth: float = Field(0.02, ge=0, description="smallest relevant relative gain over all-serial")
    stop_when_flat: bool = Field(
        True,
        description="stop after the startup when the probability that any layout gains more than `worth` falls below 5%; "
        "ignored with a cost, as a cheaper layout may be preferable even without a gain",
    )
    candidates: int = Field(
        3,
        ge=1,
        description="number of layouts to confirm, by posterior mean; with a cost, on the front, the knee first",
    )
    confirm_seeds: int = Field(3, ge=2, description="number of fresh seeds, shared by all confirmed layouts")

    @field_validator("objective", mode="before")
    @classmethod
    def _known_objective(cls, objective: Any) -> Any:
        if isinstance(objective, Pareto):
            return objective
        both = objective.get("pareto") if isinstance(objective, Mapping) and len(objective) == 1 else None
        if isinstance(objective, str):
            return _known_name(objective, METRICS, "metric")
        if isinstance(both, list | tuple) and len(both) == 2:
            metric, cost = _known_name(both[0], METRICS, "metric"), _known_name(both[1], list(Cost), "cost")
            return {"pareto": [metric, cost]}
        raise ValueError(
            f"an objective is a metric ({', '.join(METRICS)}) or {{pareto: [METRIC, COST]}}, as in "
            f"{{pareto: [ndcg@10, parameters]}} (got {objective!r:.200})"
        )

    @field_validator("also", mode="before")
    @classmethod
    def _something_to_choose(cls, also: Any) -> Any:
        form = "{log: [FROM, TO]}, {linear: [FROM, TO]} or a list of values"
        if not isinstance(also, Mapping):
            raise ValueError(f"give settings by key, as in {{trial.lr: {form}}} (got {also!r:.200})")
        for key, able in also.items():
            if isinstance(able, list | tuple):
                if len(set(able)) < max(2, len(able)):
                    raise ValueError(f"{key} takes two or more distinct values (got {list(able)})")
            elif not isinstance(able, Range) and not _is_range(able):
                raise ValueError(f"{key} takes {form} (got {able!r:.200})")
        return also

    @model_validator(mode="after")
    def _picks_from_a_front(self) -> Self:
        if self.pick is not None and self.cost is None:
            raise ValueError(
                f"pick={self.pick} chooses from a front; set objective to {{pareto: [METRIC, COST]}}, or remove pick"
            )
        return self

    @property
    def metric(self) -> str:
        """The selection metric, by its name in records."""
        name = self.objective.pareto[0] if isinstance(self.objective, Pareto) else self.objective
        return METRICS[name]

    @property
    def cost(self) -> Cost | None:
        """The cost of the objective, if any."""
        return self.objective.pareto[1] if isinstance(self.objective, Pareto) else None

    @field_validator("batch", "pending", mode="before")
    @classmethod
    def _at_least_one(cls, number: Any, info: ValidationInfo) -> Any:
        if number != "auto" and (type(number) is not int or number < 1):
            what = "a batch" if info.field_name == "batch" else "pending"
            raise ValueError(f"{what} is auto or a number of at least 1 (got {number!r:.200})")
        return number


def _known_name(name: Any, known: Iterable[str], what: str) -> str:
    """A known name in lower case.

    Raises:
        ValueError: for an unknown name.
    """
    able = list(known)
    lowered = str(name).lower()
    if lowered not in able:
        raise ValueError(f"there is no {what} {name!r:.200}{suggestion(lowered, able)}; choose {', '.join(able)}")
    return lowered


class ComparisonSettings(Section):
    """The comparisons in the results table."""

    seeds: int = Field(3, ge=1, description="final trainings per row, with common seeds")
    random: bool = Field(False, description="also train the random control in full")
    variations: tuple[str, ...] | None = Field(
        None, description="variations of the model to train, by name; null: those of its paper"
    )
    encoders: tuple[str, ...] = Field(
        ("sasrec", "gru4rec", "bert4rec", "fdsa"), description="ID models to evaluate on their own"
    )
    encoder: EncoderSettings = Field(EncoderSettings(), description="their training; name and file are ignored")

    @field_validator("encoders", "variations", mode="before")
    @classmethod
    def _in_small_letters(cls, names: Any) -> Any:
        listed = isinstance(names, list | tuple)
        return [name.lower() if isinstance(name, str) else name for name in names] if listed else names

    @field_validator("encoders")
    @classmethod
    def _known_encoders(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in ENCODERS:
                raise ValueError(unknown_encoder(name))
        return names


class Sharding(StrEnum):
    """Whether the ranks of a training hold the frozen model whole, or a part of each layer."""

    NONE = "none"
    AUTO = "auto"
    LAYERS = "layers"


class StudySettings(Section):
    """Settings shared by studies of all models; `load_study` reads one."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the study in its database and its folder"
    )
    seed: int = Field(0, ge=0, description="seed of samples, initial weights, batches and proposals")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a GPU if available")
    threads: int | None = Field(
        None, ge=1, description="CPU threads, shared by candidates side by side; null: one per core"
    )
    compile: bool | None = Field(
        None, description="compile the adapted layers with torch.compile; null: on a GPU, where it is faster"
    )
    graphs: bool | None = Field(
        None,
        description="replay a step's kernels as a CUDA graph where its shapes recur; null: where possible",
    )
    recompute: bool = Field(
        False, description="activation checkpointing: recompute activations in the backward pass to save memory"
    )
    shard: Sharding = Field(
        Sharding.NONE,
        description="of a training under torchrun: layers leaves each rank a part of every frozen layer, which are gathered (and "
        "not compiled) as they compute; auto: only where the frozen model does not fit in a GPU's memory; none: all is whole",
    )
    output: str = Field("runs", description="folder with one subfolder per study")
    data: DataSettings = DataSettings()
    backbone: BackboneSettings = BackboneSettings()
    space: SpaceSettings = SpaceSettings()
    model: DARecSettings | IDLESettings | RARecSettings | E4SRecSettings = DARecSettings()
    encoder: EncoderSettings = EncoderSettings()
    examples: ExampleSettings = ExampleSettings()
    trial: Recipe = Recipe(epochs=3)
    final: Recipe = Recipe()
    search: SearchSettings = SearchSettings()
    comparison: ComparisonSettings = ComparisonSettings()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}: {self.model.label} over {self.backbone.name}, budget {self.search.budget})"

    @model_validator(mode="after")
    def _known_variations(self) -> Self:
        known = [variation.value for variation in type(self.model.variation)]
        for name in self.compared_variations:
            if name not in known:
                raise ValueError(
                    f"comparison.variations: {self.model.kind} has no variation {name!r}; choose among {', '.join(known)}"
                )
        return self

    @model_validator(mode="after")
    def _encoder_scores_by_products(self) -> Self:
        entry = ENCODERS.get(self.encoder.name)
        if self.model.encoder_scores and entry is not None and not entry.by_product:
            raise ValueError(
                f"model.encoder_scores needs an ID encoder that scores only by dot products, which {entry.title} does not; "
                "set another encoder.name"
            )
        return self

    @model_validator(mode="after")
    def _dropout_of_the_model(self) -> Self:
        if not hasattr(self.model, "dropout"):
            for name, recipe in (("trial", self.trial), ("final", self.final)):
                if recipe.dropout is not None:
                    raise ValueError(f"{self.model.kind} has no dropout; remove {name}.dropout")
        return self

    @model_validator(mode="after")
    def _rates_of_the_model(self) -> Self:
        for name, recipe in (("trial", self.trial), ("final", self.final)):
            for group in recipe.rates:
                if group not in self.model.groups:
                    raise ValueError(
                        f"{name}.rates: {self.model.kind} as set here trains no {group}; remove {name}.rates.{group} or use "
                        f"one of {', '.join(self.model.groups)}"
                    )
        return self

    @model_validator(mode="after")
    def _searches_own_settings(self) -> Self:
        for key in self.search.also:
            for value in extremes(self.searched[key]):
                self._require_searchable(key, value)
        return self

    def _require_searchable(self, key: str, value: Any) -> None:
        """Check that a setting is searchable, at one of its values.

        Raises:
            ValueError: if it is not, or for an invalid value.
        """
        section = key.partition(".")[0]
        if section not in SEARCHED_SECTIONS or key in UNSEARCHED:
            raise ValueError(
                f"search.also: {key} cannot be searched; use settings of {', '.join(SEARCHED_SECTIONS)}, without "
                f"{', '.join(UNSEARCHED)}"
            )
        content = self.model_dump(mode="json")
        content["search"]["also"] = {}
        try:
            _put(content, key, value, source="search.also")
            type(self).model_validate(content)
        except ValidationError as error:
            raise ValueError(f"search.also: {_sentence(error.errors()[0], type(self))}") from None

    @property
    def searched(self) -> dict[str, BaseDistribution]:
        """The distribution of each searched setting, by key."""
        content = self.model_dump()
        distributions: dict[str, BaseDistribution] = {}
        for key, able in self.search.also.items():
            if isinstance(able, Range):
                now = value_at(content, key)
                ends = able.ends if now is None else (now,)
                distributions[key] = able.distribution(whole=all(isinstance(value, int) for value in ends))
            else:
                distributions[key] = CategoricalDistribution(able)
        return distributions

    def by(self, recipe: Recipe) -> Self:
        """The study with the settings of a recipe."""
        if recipe.dropout is None:
            return self
        return self.model_copy(update={"model": self.model.model_copy(update={"dropout": recipe.dropout})})

    @property
    def reads_encoder(self) -> bool:
        """Whether a trained ID encoder is needed."""
        return self.model.holds_encoder

    @property
    def compared_variations(self) -> tuple[str, ...]:
        """The variations in the results table; all-serial DARec is the paper's variation 2 and always included."""
        named = self.comparison.variations
        return self.model.compared if named is None else named

    def varied(self, variation: str) -> Self:
        """The same study with one of its model's variations."""
        model = self.model.model_copy(update={"variation": type(self.model.variation)(variation)})
        return self.model_copy(update={"model": model})

    def yaml(self) -> str:
        """The resolved study as the text of a study file."""
        return written_yaml(self.model_dump(mode="json"))

    @property
    def space_name(self) -> str:
        """Name or path of the search space; by default the model's own."""
        return self.space.name or self.model.kind.value

    @property
    def history_items(self) -> int:
        """Number of a user's newest items that the model may read besides those in its rows."""
        return self.encoder.history if self.model.holds_encoder else HISTORY_ITEMS

    @property
    def selects_examples(self) -> bool:
        """Whether training reads selected examples, rather than all."""
        return not self.examples.all

    def without_pretraining(self) -> Self:
        """The study with untrained ID vectors, for estimates, which exclude their training."""
        return self.model_copy(update={"encoder": self.encoder.model_copy(update={"epochs": 0, "file": None})})

    @property
    def inert_sites(self) -> dict[str, str]:
        """Sites without effect under these settings, and the setting that causes it."""
        return {}


class DARecStudy(StudySettings):
    """A study of DARec's layouts."""

    model: DARecSettings = DARecSettings()
    losses: LossSettings = LossSettings()
    cf: CollaborativeTraining = CollaborativeTraining()

    @property
    def reads_encoder(self) -> bool:
        """Whether a trained ID encoder is needed."""
        return self.model.item_ids is ItemIDs.ENCODER or super().reads_encoder

    def without_pretraining(self) -> Self:
        """The study with an untrained CF model and untrained ID vectors, for estimates."""
        cf = self.cf.model_copy(update={"epochs": 0})
        return super().without_pretraining().model_copy(update={"cf": cf})


class EncoderStudy(StudySettings):
    """A study of a model that reads the vectors of an ID encoder."""

    model: IDLESettings | RARecSettings

    @property
    def selects_examples(self) -> bool:
        """True: rows have a single target."""
        return True


class IDLEStudy(EncoderStudy):
    """A study of IDLE-Adapter's layouts."""

    model: IDLESettings
    losses: IDLELosses = IDLELosses()

    @property
    def aligns(self) -> bool:
        """Whether a loss aligns prefixes with the frozen model's own states."""
        return self.model.searchable and self.losses.mmd > 0

    @model_validator(mode="after")
    def _fits(self) -> IDLEStudy:
        if self.encoder.pool is InterestPool.AS_TOKENS and self.model.refine not in (Refine.CONCAT, Refine.NONE):
            raise ValueError("encoder.pool=as_tokens gives several ID vectors; set model.refine=concat or none")
        for name, recipe in (("trial", self.trial), ("final", self.final)):
            if self.aligns and recipe.batch_size < MMD_BATCH:
                raise ValueError(
                    f"{name}.batch_size is {recipe.batch_size} and MMD compares samples of at least {MMD_BATCH} rows; "
                    "raise it, or set losses.mmd=0"
                )
        return self

    @property
    def inert_sites(self) -> dict[str, str]:
        """Sites without effect under these settings, and the setting that causes it."""
        causes = {}
        if self.model.refine in (Refine.NONE, Refine.CONCAT):
            causes["refinement"] = f"model.refine={self.model.refine}"
        if not self.losses.mmd:
            causes["alignment"] = "losses.mmd=0"
        return causes


class RARecStudy(EncoderStudy):
    """A study of RA-Rec's layouts."""

    model: RARecSettings
    losses: RARecLosses = RARecLosses()

    @property
    def aligns(self) -> bool:
        """Whether a loss aligns prefixes with the frozen model's own states."""
        return self.model.searchable and self.losses.align > 0

    @property
    def inert_sites(self) -> dict[str, str]:
        """Sites without effect under these settings, and the setting that causes it."""
        return {} if self.model.instruction else {"instruction": "model.instruction=false"}


class E4SRecStudy(StudySettings):
    """A study of E4SRec's layouts."""

    model: E4SRecSettings


STUDIES: dict[ModelKind, type[StudySettings]] = {
    ModelKind.DAREC: DARecStudy,
    ModelKind.IDLE: IDLEStudy,
    ModelKind.RA_REC: RARecStudy,
    ModelKind.E4S_REC: E4SRecStudy,
}


class Override(NamedTuple):
    """A setting that overrides the study file.

    Attributes:
        setting: ``section.key=value``, the value as YAML.
        typed: the command-line option that set it, for messages.
    """

    setting: str
    typed: str

    @classmethod
    def option(cls, flag: str, key: str, value: Any) -> Self:
        """The override of a command-line option; ``value`` is not parsed."""
        return cls(f"{key}={json.dumps(value, ensure_ascii=False)}", f"{flag} {value}")

    @classmethod
    def of(cls, given: str | Override) -> Override:
        """The override of a ``key=value`` text; an `Override` unchanged."""
        return given if isinstance(given, Override) else cls(given, f"--set {given}")

    @property
    def key(self) -> str:
        """The dotted key of the setting."""
        return self.setting.partition("=")[0].strip()


def load_study(name: str, overrides: Iterable[str | Override] = ()) -> StudySettings:
    """Read a study by path or shipped name, apply ``key=value`` overrides, and check it.

    Raises:
        StudyError: for a missing or malformed file, an unknown key, or a value out of range.
    """
    path = find_shipped(name, "studies")
    if path is None:
        known = shipped_names("studies")
        raise StudyError(
            f"there is no study file {name!r}{suggestion(name, known)}; give a YAML file or one of {', '.join(known)}"
        )
    content = read_yaml(path, StudyError)
    if not isinstance(content, dict):
        raise StudyError(f"{path} has no settings; start with name: and see studies/quickstart.yaml")
    return overridden(content, overrides, source=str(path))


def last_given(overrides: Iterable[Override], key: str) -> Any:
    """The value of a key after overrides; None where none of them sets it."""
    content: dict[str, Any] = {}
    for override in overrides:
        if override.key == key:
            _set(content, override)
    return value_at(content, key)


def overridden(content: Mapping[str, Any], overrides: Iterable[str | Override], *, source: str) -> StudySettings:
    """Settings with ``key=value`` overrides, checked.

    Args:
        content: nested settings.
        overrides: ``key=value``, applied in order.
        source: of the settings, for messages.

    Raises:
        StudyError: for an unknown key or a value out of range; it names the override that caused it, or ``source``.
    """
    given = [Override.of(override) for override in overrides]
    changed_content = deepcopy(dict(content))
    for override in given:
        _set(changed_content, override)
    try:
        return _checked(changed_content)
    except StudyError as error:
        where = _at_fault(content, given, str(error)) or source
        raise StudyError(f"{where:.200}: {error}") from None


def _at_fault(content: Mapping[str, Any], overrides: Sequence[Override], complaint: str) -> str | None:
    """The first override that causes this error; None where it occurs without any."""
    tried = deepcopy(dict(content))
    if _complaint(tried) == complaint:
        return None
    for override in overrides:
        _set(tried, override)
        if _complaint(tried) == complaint:
            return override.typed
    return None


def _complaint(content: Mapping[str, Any]) -> str | None:
    try:
        _checked(content)
    except StudyError as error:
        return str(error)
    return None


def parse_study(content: Mapping[str, Any], *, source: str = "the study") -> StudySettings:
    """Check settings given as a mapping; ``model.kind`` selects the study class (default DARec).

    Raises:
        StudyError: for an unknown key or a value out of range; it names ``source``.
    """
    try:
        return _checked(content)
    except StudyError as error:
        raise StudyError(f"{source}: {error}") from None


def _checked(content: Mapping[str, Any]) -> StudySettings:
    """As `parse_study`, with errors that name no source."""
    if not isinstance(content, Mapping):  # of a damaged record
        raise StudyError("the settings of a study are sections, as in search: {budget: 30}; restore them")
    model = content.get("model")
    kind = str(model.get("kind", ModelKind.DAREC)) if isinstance(model, Mapping) else ModelKind.DAREC.value
    kind = spelled(kind, ModelKind)
    if kind not in STUDIES:
        raise StudyError(
            f"model.kind is {kind!r:.200}{suggestion(kind, list(ModelKind))}; choose {', '.join(ModelKind)}"
        )
    study = STUDIES[ModelKind(kind)]
    try:
        return study.model_validate(_spelled(_spelled_names(content), study))
    except ValidationError as error:
        raise StudyError(_sentence(error.errors()[0], study)) from None


def _spelled(content: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """A section with enumerated values normalised to their known case."""
    fields = section.model_fields
    return {
        key: _spelled_value(value, fields[key].annotation) if key in fields else value for key, value in content.items()
    }


def _spelled_value(value: Any, annotation: Any) -> Any:
    if isinstance(value, str):
        return spelled(value, _names_of(annotation))
    if isinstance(value, list | tuple):
        return [_spelled_value(one, annotation) for one in value]
    if isinstance(value, Mapping) and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _spelled(value, annotation)
    return value


def _names_of(annotation: Any) -> list[str]:
    """The allowed names of a field, as of a `StrEnum`; empty where any text is allowed."""
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return [one.value for one in annotation]
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [part for part in parts if isinstance(part, str)]
    return [name for part in parts for name in _names_of(part)]


def _spelled_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """The section with shipped names normalised, where other names and existing paths are allowed too."""
    spelled_content = deepcopy(dict(content))
    for key, known in KNOWN_NAMES.items():
        name = value_at(spelled_content, key)
        if isinstance(name, str) and not os.path.exists(name):
            _put(spelled_content, key, spelled(name, known), source=key)
    return spelled_content


def changed(settings: StudySettings, changes: Mapping[str, Any], *, source: str) -> StudySettings:
    """The study with ``{"section.key": value}`` changed.

    Raises:
        StudyError: for an unknown key or a value out of range.
    """
    content = settings.model_dump(mode="json")
    for key, value in changes.items():
        _put(content, key, value, source=source)
    return parse_study(content, source=source)


def with_found(settings: StudySettings, values: Mapping[str, Any]) -> StudySettings:
    """The study with the values found for `search.also`; a setting that both recipes share is set in the final one too."""
    if not values:
        return settings
    content, found = settings.model_dump(), dict(values)
    for key, value in values.items():
        section, _, name = key.partition(".")
        if section == "trial" and value_at(content, key) == value_at(content, f"final.{name}"):
            found[f"final.{name}"] = value
    return changed(settings, found, source="search.also")


def parse_data(source: str, overrides: Iterable[str | Override] = ()) -> DataSettings:
    """Data settings of a source without a study, with ``data.KEY=VALUE`` overrides."""
    return overridden({"name": "data", "data": {"source": source}}, overrides, source=source).data


def _set(content: dict[str, Any], override: Override) -> None:
    _, separator, value = override.setting.partition("=")
    if not separator or not override.key:
        raise StudyError(f"--set takes key=value, as in --set trial.epochs=2; got {override.setting!r:.200}")
    try:
        parsed = parse_yaml(value)
    except ValueError:
        raise StudyError(f"{override.typed:.200}: {value!r:.200} is not a YAML value; quote it") from None
    _put(content, override.key, parsed, source=f"{override.typed:.200}")


def _put(content: dict[str, Any], key: str, value: Any, *, source: str) -> None:
    """Set the value of a dotted key in place."""
    *path, last = key.split(".")
    holder: Any = content
    for part in path:
        holder = holder.setdefault(part, {})
        if not isinstance(holder, dict):
            raise StudyError(f"{source}: {part} is a value and not a section; name a key such as trial.epochs")
    holder[last] = value


def value_at(content: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    value: Any = content
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def flattened(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        flat |= flattened(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def extremes(distribution: BaseDistribution) -> tuple[Any, ...]:
    """Values that are sufficient to validate a whole distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return (distribution.low, distribution.high)


def _sentence(error: ErrorDetails, study: type[StudySettings]) -> str:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}" if where else str(error["ctx"]["error"])
    if error["type"] == "extra_forbidden":
        known = _fields(error["loc"][:-1], study)
        last = str(error["loc"][-1])
        hint = suggestion(last, known) or (f"; known here: {', '.join(known)}" if known else "; remove it")
        return f"unknown key {where}{hint}"
    if error["type"] == "missing":
        return f"{where} is missing; add it"
    return f"{where}: {error['msg'][:1].lower()}{error['msg'][1:]} (got {error['input']!r:.200})"


def _fields(path: Iterable[int | str], study: type[StudySettings]) -> list[str]:
    """The known keys of a section of the study file."""
    section: Any = study
    for part in path:
        held = getattr(section, "model_fields", {}).get(str(part))
        section = None if held is None else held.annotation
    return list(getattr(section, "model_fields", {}))


def resolve_output(settings: StudySettings) -> Path:
    """The folder of this study's database, checkpoints and models."""
    return place_of(settings.output, StudyError) / settings.name
