"""Several processes under torchrun: shards of images, work that fails or succeeds together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from fid_errors import ScoreError

Result = TypeVar("Result")
PATIENCE = timedelta(days=1)  # with rank 0, which reads caches and compares sets alone


@dataclass(frozen=True)
class Ranks:
    """This process's number and how many there are."""

    rank: int = 0
    world: int = 1

    @classmethod
    def start(cls) -> Ranks:
        """Join the processes torchrun started; alone without it.

        gloo carries the little that is exchanged (statistics, once), for CPUs and GPUs alike.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        dist.init_process_group("gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    def stop(self) -> None:
        """Leave the group."""
        if self.world > 1:
            dist.destroy_process_group()

    def shard(self, count: int) -> range:
        """This rank's part of `count` images: a run, so that parts in rank order keep the order."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def together(self, work: Callable[[], Result]) -> list[Result]:
        """Do `work` on every rank; every rank gets all results, in rank order.

        Raises:
            ScoreError: on every rank, the first rank's error, so that none waits for a dead one.
        """
        outcome: Result | ScoreError
        try:
            outcome = work()
        except ScoreError as error:
            outcome = error
        outcomes = [outcome]
        if self.world > 1:
            outcomes = [outcome] * self.world
            dist.all_gather_object(outcomes, outcome)
        for found in outcomes:
            if isinstance(found, ScoreError):
                raise found
        return outcomes

    def on_first(self, work: Callable[[], Result]) -> Result:
        """Do `work` on rank 0 only; every rank gets its result or its error."""
        return self.together(lambda: work() if self.rank == 0 else None)[0]


def choose_device(asked: str, ranks: Ranks) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that exists; each torchrun process its own GPU.

    Raises:
        ScoreError: an unknown name or a GPU that is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "cpu" or (asked == "auto" and gpus == 0):
        return torch.device("cpu")
    kind, _, number = asked.partition(":")
    if asked != "auto" and (kind != "cuda" or (":" in asked and not number.isdigit())):
        raise ScoreError(f"--device {asked}: expected auto, cpu or cuda:N")
    index = int(number or 0)
    if gpus == 0:
        raise ScoreError(f"--device {asked}: {asked} was asked and none is there, use --device cpu")
    if index >= gpus:
        raise ScoreError(
            f"--device {asked}: {asked} was asked and only cuda:0 to cuda:{gpus - 1} are there"
        )
    if ranks.world > 1:
        index = int(os.environ.get("LOCAL_RANK", "0")) % gpus
    return torch.device("cuda", index)
