"""Keeps an elastic training off the CPUs that its feed reads with.

    data_cpus x {CPU: 1} --told to Ray's coordinator of resources, before the training's own request--> counted as taken

An elastic group takes as many workers as there is room for, and Ray 2.60 leaves none for Ray Data: on a cluster whose CPUs divide
by `cpus_per_worker` its readers would wait for ever. Who asked first is served first among requests of one priority, so this one
is there before the training starts; Ray forgets it EXPIRE_S after it was last heard of, as when the driver was killed. A group of
a fixed size needs nothing of this: the recipe says what it leaves.

Price: an autoscaler counts these CPUs twice, here and in Ray Data's own request. The coordinator is internal to Ray (Data and
Train tell it what they need), so a new version of Ray is tried with tests/faults/test_two_trainings.py.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data._internal.cluster_autoscaler import ResourceRequestPriority, get_or_create_autoscaling_coordinator

from medschool.recipe.cluster import Cluster
from medschool.repeated import repeated

TELL_EVERY_S, EXPIRE_S = 10.0, 45.0


@contextmanager
def kept_for_the_feed(spec: Cluster) -> Iterator[None]:
    """While it lasts, `spec.data_cpus` logical CPUs are out of reach of elastic groups; nothing for a group of a fixed size."""
    if spec.fewest_workers == spec.most_workers:
        yield
        return
    name, coordinator = f"feed-{uuid.uuid4().hex[:8]}", get_or_create_autoscaling_coordinator()

    def tell() -> ray.ObjectRef:
        return coordinator.request_resources.remote(
            requester_id=name,
            resources=[{"CPU": 1.0}] * spec.data_cpus,
            expire_after_s=EXPIRE_S,
            priority=ResourceRequestPriority.HIGH,
        )

    ray.get(tell())
    try:
        with repeated(tell, TELL_EVERY_S, "feed-room"):
            yield
    finally:
        coordinator.cancel_request.remote(name)
