"""The frozen model's layers shared out among the ranks of a training, for models larger than a device's memory.

FSDP2 (`torch.distributed.fsdp.fully_shard`; Zhao et al. 2023, https://arxiv.org/abs/2304.11277) over frozen parameters only. Each
rank keeps its part of every layer and gathers a layer before it computes with it, forward and backward; embeddings, the last norm
and everything trained are whole on every rank. A gathered layer has the bits it had before, so that results do not change.
Gathering is collective: all ranks call all layers in the same order, which preparation does by itself and `Peers.in_step` sees to
where ranks compute different batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dasearch.config import Sharding, StudySettings
from dasearch.errors import StudyError
from dasearch.models.backbone import FrozenBackbone
from dasearch.training.materials import compute_dtype
from dasearch.training.ranks import Peers, collective

FROZEN_SHARE = 0.7  # of a GPU's free memory that whole frozen weights may take under `auto`; not measured


def require_ranks(sharding: Sharding, peers: Peers) -> None:
    """Check that there are several ranks to share layers.

    Raises:
        StudyError: if layers are to be sharded in a single process.
    """
    if sharding is Sharding.LAYERS and peers.size == 1:
        raise StudyError(
            "shard=layers shares the frozen layers among the ranks of torchrun and this is a single process; start "
            "`torchrun --nproc-per-node N -m dasearch train`, or use --set shard=auto"
        )


def shard_frozen(backbone: FrozenBackbone, settings: StudySettings, device: torch.device, peers: Peers) -> None:
    """Share the layers of the frozen model that ``settings`` trains with, where they say so; all ranks must call this.

    Raises:
        StudyError: if there is nothing to share among, the layers are to be compiled, or trials and the final training compute
            in different precisions.
    """
    require_ranks(settings.shard, peers)
    trial, final = (compute_dtype(recipe.precision, device) for recipe in (settings.trial, settings.final))
    if peers.size == 1 or settings.shard is Sharding.NONE:
        return
    if settings.shard is Sharding.AUTO and peers.all_say(fits(backbone, final, device), device):
        return
    if settings.compile:
        raise StudyError(f"shard={settings.shard} leaves layers that cannot be compiled; use --set compile=null")
    if trial != final:
        raise StudyError(
            f"shard={settings.shard} holds one copy of the frozen model, and it is read with trial.precision="
            f"{settings.trial.precision} and trained with final.precision={settings.final.precision}; set both alike"
        )
    backbone.moved(device, final, partial(shard_layers, device=device, size=peers.size))


def fits(backbone: FrozenBackbone, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device's free memory holds the whole frozen model in this dtype; always so on a CPU, which holds it already."""
    if device.type != "cuda":
        return True
    numbers = sum(parameter.numel() for parameter in backbone.model.parameters())
    free, _ = torch.cuda.mem_get_info(device)
    return bool(numbers * dtype.itemsize <= FROZEN_SHARE * free)


def shard_layers(backbone: FrozenBackbone, *, device: torch.device, size: int) -> None:
    """Leave this rank its part of every layer, on the device, and move the rest of the model there whole; in place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (size,))
    gather: Any = _Gather()  # FSDP's interface has no public name
    for block in backbone.blocks:
        layer: FSDPModule = fully_shard(block, mesh=mesh, reshard_after_forward=True)
        layer.set_custom_all_gather(gather)
        register_fsdp_forward_method(block, "through")
    backbone.model.to(device)
    fully_shard(backbone, mesh=mesh, ignored_params=set(backbone.parameters()))  # for streams that all layers share
    backbone.sharded = True
    with torch.no_grad():  # first gathered outside of inference mode, whose tensors would not serve a backward pass
        one = torch.zeros(1, 1, dtype=torch.long, device=device)
        backbone(one, one == 0)


class _Gather:
    """FSDP's all-gather, with the error of other collective operations if a rank has ended."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer for a gathered layer: ``size`` numbers."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: torch.distributed.ProcessGroup,
        async_op: bool = False,
    ) -> torch.distributed.Work | None:
        """Gather ``input_tensor`` of every rank in ``output_tensor``."""
        distributed: Any = torch.distributed
        gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor  # torch < 2.13
        work: torch.distributed.Work | None = collective(
            lambda: gather(output_tensor, input_tensor, group=group, async_op=async_op)
        )
        return work


def whole_weights(backbone: FrozenBackbone) -> dict[str, Tensor]:
    """The Hugging Face model's weights by name; if sharded, gathered on the CPU, for which all ranks must call this."""
    weights: dict[str, Tensor] = backbone.model.state_dict()
    if not backbone.sharded:
        return weights
    from torch.distributed.tensor import DTensor

    return {n: t.full_tensor().cpu() if isinstance(t, DTensor) else t for n, t in weights.items()}


def held_bytes(backbone: FrozenBackbone) -> int:
    """Bytes of frozen layers that this process holds while it does not compute with them."""
    from torch.distributed.tensor import DTensor

    weights = (weight for block in backbone.blocks for weight in block.parameters())
    return sum((one.to_local() if isinstance(one, DTensor) else one).nbytes for one in weights)
