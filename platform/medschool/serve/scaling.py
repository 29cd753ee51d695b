"""How many copies of the model run: a fixed number, or as many as the requests ask for, through Ray Serve's own autoscaler.

    wanted = requests in flight (running and waiting, at proxies and replicas, mean of LOOK_BACK_S) / target_requests
             rounded up, between min_replicas and max_replicas

More replicas start when that held for UPSCALE_DELAY_S, fewer after `downscale_delay_s`; from none, the first request starts one
at once and waits for it in the proxy's queue. A replica that is taken away gets no more requests, finishes those that it has,
and only then ends. Ray adds nodes for replicas that find no room, where the cluster has an autoscaler.

The bounds on waiting are those of one replica and of one proxy, whatever the number of replicas: the proxy sends to the less
loaded of two replicas, holds `max_queued_requests` that no replica takes, and refuses the rest with 429.

Not known here: how long a replica takes to load. A target near `max_concurrent_requests` reacts late for large models; lower it.
Source of the formula: Ray Serve's autoscaling guide, "Autoscaling policy" (ongoing requests over `target_ongoing_requests`).
"""

from typing import Any

from ray.serve.config import AutoscalingConfig

LOOK_BACK_S = 10.0
REPORT_S = 2.0
"""Seconds between the reports of proxies and replicas to the autoscaler."""
UPSCALE_DELAY_S = 5.0


def replicas(fewest: int, most: int, target_requests: float, downscale_delay_s: float) -> dict[str, Any]:
    """The deployment's options for so many replicas. target_requests: running and waiting, of one replica."""
    if fewest == most:
        return {"num_replicas": most}
    config = AutoscalingConfig(
        min_replicas=fewest,
        initial_replicas=max(fewest, 1),  # even where none may stay: one loads now, so that a bad version is found now
        max_replicas=most,
        target_ongoing_requests=target_requests,
        metrics_interval_s=REPORT_S,
        look_back_period_s=LOOK_BACK_S,
        upscale_delay_s=UPSCALE_DELAY_S,
        downscale_delay_s=downscale_delay_s,
    )
    return {"autoscaling_config": config}
