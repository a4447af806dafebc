"""The processes that train one run together: torchrun's, or this one alone. FSDP2 shards the model over them.

torch's `fully_shard` is called here, not through accelerate, whose FSDP2 refuses the CPU: this way two processes over gloo
in the tests take the very path that GPUs take.
"""

from __future__ import annotations

import datetime
import os
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from salad.errors import SaladError

if TYPE_CHECKING:
    from salad.models.speech_lm import SpeechLM

PATIENCE = datetime.timedelta(minutes=10)  # how long a collective waits for a process that says nothing


class LostProcess(RuntimeError):
    """Another process of the run has ended: this one cannot go on alone."""


class Processes:
    """This process among those of its run. `rank` of `world`, on `device`; use as a context."""

    def __init__(self):
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if torch.cuda.is_available():
            local = int(os.environ.get("LOCAL_RANK", "0"))
            if local >= torch.cuda.device_count():
                raise SaladError(f"process {local} of this machine has no GPU: it has {torch.cuda.device_count()}; start fewer")
            self.device = torch.device("cuda", local)
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("cpu")

    def __enter__(self) -> Processes:
        if self.world > 1:
            dist.init_process_group("cuda:nccl,cpu:gloo" if self.device.type == "cuda" else "gloo", timeout=PATIENCE)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self.world > 1 and kind is None:  # after an error others may wait for what will never come
            dist.destroy_process_group()

    def _agreed(self, collective, *arguments) -> None:
        try:
            collective(*arguments)
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise LostProcess(f"another process of the run has ended; its last checkpoint stands ({last})") from None

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the processes, in place."""
        if self.world > 1:
            self._agreed(dist.all_reduce, values)
        return values

    def any(self, value: bool) -> bool:
        """Whether any process says so."""
        if self.world == 1:
            return value
        return bool(self.sum(torch.tensor([float(value)], device=self.device)).item())

    def gather(self, value: Any) -> list:
        """Everybody's value, in order of rank."""
        values = [value]
        if self.world > 1:
            values = [None] * self.world
            self._agreed(dist.all_gather_object, values, value)
        return values

    def agree(self, error: BaseException | None) -> None:
        """Raise, in every process, the first error that any of them had; nothing if none had one."""
        message = next((e for e in self.gather(None if error is None else str(error)) if e is not None), None)
        if error is not None:
            raise error
        if message is not None:
            raise SaladError(message)

    def shard(self, model: SpeechLM, dtype: torch.dtype) -> None:
        """Shard a SpeechLM over the processes, layer by layer (FSDP2): float32 shards, computed in `dtype`.

        The frozen encoder and, trained in full, the teacher's embeddings and head stay whole in each process."""
        if self.world == 1:
            return
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        mesh = dist.init_device_mesh(self.device.type, (self.world,))
        for layer in model.llm.get_decoder().layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        original = model.original
        for layer in original.get_decoder().layers if original is not None else ():
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=set(model.encoder.parameters()))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of a sharded tensor; another as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor put together (by all processes at once); another as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
