"""What is watched: files for a Prometheus and a Grafana, made for the numbers that a cluster with medschool on it shows.

    each node's endpoint --scrape, found through Ray's file--> Prometheus --alerts.yml--> alerts
                                                                    |
                                                                    +--dashboard.json--> Grafana

    prometheus.yml    for a Prometheus on the head of a cluster; `medschool up --metrics` starts one here
    alerts.yml        when somebody should look, and what to do: each alert has a summary and a runbook line
    dashboard.json    one page: training, study, data, serving, nodes. Import it into Grafana and choose the Prometheus

Numbers of medschool, with `ray_` before each name; Ray adds labels of its own (SessionName, WorkerId, NodeAddress...):

    medschool_train_*{run, phase, trial}           medschool.gauges: a training's steps, loss, speed, goodput, restarts
    medschool_study_trials{run, state}             medschool.gauges: trials that wait, run, are done or failed
    medschool_stage_records_total{run, stage, counted}, medschool_stage_seconds_total{run, stage}
                                                   medschool.gauges: what a data stage read, kept and dropped, by step
    medschool_serve_*                              medschool.serve.metrics: requests, tokens, times, the engine's batch

The names of Ray's own numbers that are used beside them: node, cluster, Serve's proxies and replicas, Ray Data's operators.

Price: a Prometheus for one node takes 0.1 GiB of memory, and a few MB of disk a day. It has no login and listens on loopback.
Not watched: the store and MLflow, which have endpoints of their own where they are run by their own teams.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
CONFIG, ALERTS, DASHBOARD = "prometheus.yml", "alerts.yml", "dashboard.json"
