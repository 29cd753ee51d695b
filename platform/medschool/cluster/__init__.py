"""The machines a run stands on. Today: the services that one laptop needs, started and stopped by `medschool up | down | doctor`.

    state          what was started, on which ports, with which secrets      .medschool/state.json, .medschool/secrets/
    ports          free ports, chosen once and remembered
    process        start, recognise and stop processes; never a stranger's
    object_store   SeaweedFS: the S3 store                                   ┐
    mlflow_server  MLflow: tracking and registry                             ├ one Service each
    ray_head       Ray: one node, with dashboard and jobs API                ┘
    wiring         ours or the user's own, and the variables that lead there
    local          up, down
    doctor         what is wrong here, and the one line that mends it

Whoever has a store, a cluster or an MLflow already sets its variables (`AWS_ENDPOINT_URL`, `MEDSCHOOL_RAY_JOBS`,
`MLFLOW_TRACKING_URI`) and `up` leaves that service alone:

    >>> from medschool.cluster import local, state
    >>> local.up(state.home(), say=print)                     # doctest: +SKIP
    >>> os.environ.update(local.environment(state.home()))    # doctest: +SKIP
"""
