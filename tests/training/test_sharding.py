"""When the frozen layers are shared among ranks; that training with shared layers is the same stands in `test_ranks`."""

from __future__ import annotations

import pytest
import torch

from dasearch.errors import StudyError
from dasearch.models.backbone import FrozenBackbone
from dasearch.training.ranks import ALONE, Peers
from dasearch.training.sharding import FROZEN_SHARE, fits, held_bytes, shard_frozen
from tests.conftest import tiny_model
from tests.training.studies import small_settings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def backbone() -> FrozenBackbone:
    return FrozenBackbone(tiny_model("opt"))


def test_a_single_process_has_nobody_to_share_with(backbone: FrozenBackbone) -> None:
    with pytest.raises(StudyError, match=r"shard=layers .* single process; start `torchrun .* use --set shard=auto"):
        shard_frozen(backbone, small_settings(shard="layers"), CPU, ALONE)


@pytest.mark.parametrize("shard", ["none", "auto"])
def test_a_single_process_holds_all_layers(backbone: FrozenBackbone, shard: str) -> None:
    shard_frozen(backbone, small_settings(shard=shard), CPU, ALONE)
    assert not backbone.sharded
    assert held_bytes(backbone) == sum(4 * weight.numel() for weight in backbone.blocks.parameters())


def test_one_copy_has_one_precision(backbone: FrozenBackbone) -> None:
    study = small_settings(shard="layers", final={"precision": "bfloat16"})
    with pytest.raises(StudyError, match=r"trial\.precision=auto .* final\.precision=bfloat16; set both alike"):
        shard_frozen(backbone, study, CPU, Peers(0, 2))


def test_shared_layers_are_not_compiled(backbone: FrozenBackbone) -> None:
    with pytest.raises(StudyError, match="shard=layers leaves layers that cannot be compiled; use --set compile=null"):
        shard_frozen(backbone, small_settings(shard="layers", compile=True), CPU, Peers(0, 2))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_model_fits_beside_the_activations(
    backbone: FrozenBackbone, dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = size * sum(weight.numel() for weight in backbone.model.parameters()) / FROZEN_SHARE
    for free, fitting in ((needed + 1, True), (needed - 2, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (int(free), 2**40))
        assert fits(backbone, dtype, CUDA) is fitting
        assert fits(backbone, dtype, CPU)
