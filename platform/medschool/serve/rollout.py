"""One version takes over from another on Ray Serve, or does not.

    new replica starts beside the old -> loads, answers its probe -> takes requests -> old one finishes its streams and ends
                                      -> fails ATTEMPTS times     -> the old version is made the deployed one again

Serve starts the new replicas first (`max_surge_percent`), and stops an update whose replicas fail, so requests are answered
throughout. What it does not do is go back: the version that failed stays the one that is wanted, and an old replica that dies
then is not replaced. So the version before is deployed again, under the very version name that its replicas run under; they are
not touched.

Price: while an update runs there must be room for one replica more. Without room the old version serves on until `timeout_s`, and
the update is given up.
"""

import time

from ray import serve

from medschool.errors import MedschoolError, ServiceError, from_text

ATTEMPTS = 2
"""Starts of a version's replicas that may fail: one for a store that hiccups."""
POLL_S = 0.2


def options() -> dict[str, int]:
    """What a deployment must be given for this."""
    return {"max_surge_percent": 100, "max_constructor_retry_count": ATTEMPTS}


def roll_out(name: str, new: serve.Application, before: serve.Application | None, timeout_s: float) -> None:
    """Run `new` under `name` in place of `before`, and wait until it answers its probe.

    Raises the error that the new version failed with, after `before` is the deployed one again.
    """
    serve.run_many([serve.RunTarget(new, name=name, route_prefix="/")], wait_for_applications_running=False)
    cause = _cause(name, timeout_s)
    if cause is None:
        return
    if before is None:
        raise cause
    try:
        serve.run(before, name=name, route_prefix="/")
    except RuntimeError as error:
        raise type(cause)(f"{cause.problem}; the version before does not serve either", cause.remedy, cause.where) from error
    raise type(cause)(f"{cause.problem}; the version before goes on serving", cause.remedy, cause.where)


def _cause(name: str, timeout_s: float) -> MedschoolError | None:
    """Why the application does not run, None once it does."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        app = serve.status().applications.get(name)
        if app is not None and app.status == "RUNNING":
            return None
        if app is None or app.status == "DEPLOY_FAILED":
            messages = [deployment.message for deployment in app.deployments.values()] if app else ["it was deleted"]
            return _told("\n".join(messages), name)
        time.sleep(POLL_S)
    remedy = "free CPUs or memory for one replica more"
    return ServiceError(f"the chat application did not start within {timeout_s:g} s", remedy, name)


def _told(text: str, name: str) -> MedschoolError:
    """The replica's own error where it has a remedy, else a ServiceError with the last line that the replica wrote."""
    lines = [line for line in text.splitlines() if line.strip()] or ["no reason given"]
    return from_text(text) or ServiceError(f"the chat application did not start: {lines[-1].strip()}", "see its log", name)
