"""How the workers of a group meet: with on_ray.py and oversight.py, the part of training that knows Ray.

    ranks by machine --network.prepare--> the interface of each worker    so that gloo and NCCL take the network that Ray takes
    one worker a machine --reach--> who does not answer whom               or the start fails, with their names
                         --Ray's own--> torch's process group

Ray Train 2.60 sorts the workers of one node together before it numbers them (WorkerGroup._assign_worker_ranks), so ranks are
contiguous by machine. A start that fails here counts as a failure of the training: the group is started again, on other machines
where there are any, and after cluster.max_failures the reason is the error of the run. On one machine nothing is looked at.
"""

import secrets
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

from medschool.errors import StageError
from medschool.train.layout import Layout
from medschool.train.network import prepare
from medschool.train.reach import call, listen, missing

ANSWER_S = 30.0
"""For one worker to answer the controller. Ray itself would wait until it knows that the node is gone."""


class OnNetwork(TorchConfig):  # type: ignore[misc]
    """torch's process group, over the network that is known to be there."""

    @property
    def backend_cls(self) -> type:
        return _Meeting


class _Meeting(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Raises WorkerGroupStartupFailedError, which Ray answers with another start, where machines do not reach each other."""
        try:
            _check(worker_group)
            super().on_start(worker_group, backend_config)
        except Exception:
            worker_group.get_worker_group_state().shutdown()  # Ray 2.60 forgets them here, and they would keep their places
            raise


def _check(worker_group: Any) -> None:
    layout = Layout(tuple(worker.metadata.node_ip for worker in worker_group.get_workers()))
    if len(layout.machines) > 1 and (told := _unreached(worker_group, layout)):
        remedy = "open all ports between the nodes of the cluster to each other, or take the node out of it"
        raise WorkerGroupStartupFailedError(str(StageError(told, remedy, "network")))


def _unreached(worker_group: Any, layout: Layout) -> str:
    """Who does not reach whom; empty where all do. Every worker has its variables then."""
    begin, word = worker_group.execute_single_async, secrets.token_hex(16)
    first = {machine: layout.ranks[machine][0] for machine in layout.machines}
    prepared = {rank: begin(rank, prepare, address) for rank, address in enumerate(layout.addresses)}
    ports = _answers({machine: begin(rank, listen, machine, word) for machine, rank in first.items()})
    if None in ports.values():
        return missing(layout, {machine: {} if port is not None else None for machine, port in ports.items()})
    calls = {
        machine: begin(rank, call, {other: port for other, port in ports.items() if other != machine}, word)
        for machine, rank in first.items()
    }
    _answers(prepared)
    return missing(layout, _answers(calls))


def _answers(asked: dict[Any, Any]) -> dict[Any, Any]:
    """What was answered within ANSWER_S, None where nothing was. Raises what a worker raised; RayActorError for a dead one."""
    ready = set(ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S)[0])
    return {key: ray.get(answer) if answer in ready else None for key, answer in asked.items()}
