"""Two jobs of two people on one cluster, whose workers together would take every CPU: both end, one after the other."""

import pytest
from test_whole_run import RECIPE, User, user  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

SETTINGS = ("--set", "cluster.num_workers=2", "--set", "cluster.cpus_per_worker=2", "--set", "cluster.data_cpus=2")
"""Four of eight logical CPUs for the workers of each, and the feed's besides."""


def test_neither_of_two_jobs_takes_the_cpus_that_the_other_reads_with(user: User) -> None:  # noqa: F811
    words = ("drill", "resume", RECIPE, "--tiny", "--cluster", "--json", *SETTINGS)
    jobs = [user.start(*words), user.start(*words)]
    outputs = [job.communicate(timeout=600)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    assert all('"result": "PASS"' in output for output in outputs), outputs
    waited = [output for output in outputs if "waits in line for 6 CPUs, behind" in output]
    assert waited and all("has its turn" in output for output in waited)
