"""Everything that taugrid takes from Ray's private modules, each with the reason why nothing public will do.

An upgrade of Ray can break only this file. Ray is imported when a function is called: its environment is set before.
"""

import math
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from taugrid.errors import UserError

HEAD_SECONDS = 10.0  # how long a head may take to answer a request

Header = tuple[str, str]  # the name and the value of the header that carries a token


def recorded_address() -> str | None:
    """HOST:PORT that `ray start` last recorded here. `ray.init("auto")` joins at once, before a check of the token."""
    from ray._private import utils

    address: str | None = utils.read_ray_address()
    return address


def running_heads() -> Collection[str]:
    """HOST:PORT of the heads of this machine's processes: `ray start --temp-dir` records it where only Ray finds it."""
    from ray._private import services

    addresses: Collection[str] = services.find_gcs_addresses()
    return addresses


def node_ids_here() -> set[str]:
    """The ids of the nodes on this machine: Ray would search it for one of the cluster for a minute before it fails."""
    from ray._private import services

    return set(services.find_node_ids())


def accepts_token(head: str, token: Header | None) -> bool:
    """Whether the head at HOST:PORT accepts this token, or a request without one if it is None; `UserError` if there is
    no answer. Ray's client retries for minutes, and sends the token to clusters that demand none."""
    from ray.core.generated import gcs_service_pb2

    return _call_head(head, token, "CheckAlive", gcs_service_pb2.CheckAliveRequest()) is not None


def nodes_of(head: str, token: Header | None) -> set[str]:
    """The ids of the cluster's living nodes before it is joined: `ray.nodes()` needs a connection."""
    from ray.core.generated import gcs_pb2, gcs_service_pb2

    request = gcs_service_pb2.GetAllNodeInfoRequest(state_filter=gcs_pb2.GcsNodeInfo.ALIVE)
    reply = _call_head(head, token, "GetAllNodeInfo", request)
    return set() if reply is None else {node.node_id.hex() for node in reply.node_info_list}


def _call_head(head: str, token: Header | None, method: str, request: Any) -> Any:
    """The head's reply; None if it does not accept the token."""
    import grpc  # type: ignore[import-untyped]
    from ray.core.generated import gcs_service_pb2_grpc

    metadata = None if token is None else (token,)
    with grpc.insecure_channel(head, options=[("grpc.enable_http_proxy", 0)]) as channel:  # as Ray's own channels
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            return getattr(stub, method)(request, timeout=HEAD_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                return None
            raise UserError(f"--address {head}: no Ray head answers there ({error.code().name})") from None


def draining_nodes() -> dict[str, float]:
    """The ids of nodes with a notice of pre-emption, or that are drained, with the seconds until each is taken away;
    infinity if nobody said when. Ray has no public call for it; Ray Train and Ray Data use this one."""
    from ray._private.state import state

    deadlines: dict[str, int] = state.get_draining_nodes()  # in ms since the epoch, or 0
    return {node: at / 1000 - time.time() if at else math.inf for node, at in deadlines.items()}


def trainer_without_process_group() -> Any:
    """Ray Train's trainer without a process group: that of the public `TorchTrainer` listens on all interfaces."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return DataParallelTrainer


def kill_train_controllers() -> None:
    """Kill the controllers of Ray Train that this process has started: whoever waits for one gets an error. Its own
    `abort` is only for a SIGINT in the main thread."""
    import ray
    from ray._private.state import actors
    from ray._private.worker import global_worker

    if not ray.is_initialized():
        return
    for actor_id, actor in actors(job_id=global_worker.current_job_id).items():
        if actor["ActorClassName"] == "TrainController" and actor["State"] != "DEAD":
            with suppress(ray.exceptions.ActorHandleNotFoundError):  # it has ended by itself since
                global_worker.core_worker.kill_actor(ray.ActorID.from_hex(actor_id), True)


def is_placement_timeout(failure: object) -> bool:
    """Whether a controller failed because no node had room for its workers: `ControllerError` has it only as text."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(failure, WorkerGroupStartupTimeoutError)


def failed_to_start(failure: object) -> bool:
    """Whether a controller failed because a worker died before it began: Ray's text has neither cause nor fix."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

    return isinstance(failure, WorkerGroupStartupFailedError)
