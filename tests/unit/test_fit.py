"""How many trials a cluster holds: what they need at their largest, never more than there is room for."""

import pytest

from medschool.cluster.fit import concurrent_trials, trial_needs
from medschool.recipe.cluster import Cluster


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


def test_an_elastic_training_needs_room_for_its_fewest_workers_and_counts_with_its_most() -> None:
    cluster = Cluster(num_workers=(2, 6), cpus_per_worker=2, gpus_per_worker=1, data_cpus=2)
    assert trial_needs(cluster, workers=cluster.fewest_workers) == {"CPU": 6, "GPU": 2}
    assert trial_needs(cluster) == {"CPU": 14, "GPU": 6}
    assert concurrent_trials(cluster, {"CPU": 20, "GPU": 8}) == 1
    assert concurrent_trials(cluster, {"CPU": 28, "GPU": 12}) == 2
    assert concurrent_trials(cluster, {"CPU": 6, "GPU": 2}) == 1
