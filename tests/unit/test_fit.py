"""How many trials a cluster holds: what they need at their largest, never more than there is room for."""

import pytest

from medschool.cluster.fit import concurrent_trials, trial_needs
from medschool.recipe.schema import Cluster


@pytest.mark.parametrize(
    ("spec", "room", "at_once"),
    [
        ({"num_workers": 2}, {"CPU": 8}, 2),
        ({"num_workers": 2}, {"CPU": 11}, 2),
        ({"num_workers": 2}, {"CPU": 12}, 3),
        ({"num_workers": 2, "max_concurrent_trials": 1}, {"CPU": 64}, 1),
        ({"num_workers": 2, "score_workers": 6}, {"CPU": 15}, 1),
        ({"num_workers": 8, "cpus_per_worker": 4, "gpus_per_worker": 1}, {"CPU": 1000, "GPU": 24}, 3),
        ({"num_workers": 8, "cpus_per_worker": 4, "gpus_per_worker": 1}, {"CPU": 70, "GPU": 64}, 2),
        ({"num_workers": 8}, {"CPU": 4}, 1),
    ],
)
def test_trials_at_once(spec: dict[str, int], room: dict[str, float], at_once: int) -> None:
    cluster = Cluster(**spec)
    assert concurrent_trials(cluster, room) == at_once
    for name, need in trial_needs(cluster).items():
        assert at_once == 1 or at_once * need <= room.get(name, 0)
