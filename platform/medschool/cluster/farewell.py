"""Before `medschool down` stops Ray, answers that a served model is writing are finished.

The replica says on /metrics how many there are; with none, which is nearly always so, nothing is waited for. Otherwise the
application is drained in a process of its own (`medschool.serve.drain`), since that needs Ray. Ctrl-C gives up waiting.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping

import httpx

from medschool.cluster.state import Services

TIMEOUT_S = 5.0
LONGEST_S = 330.0
"""Above the deadline that an answer has by default, after which it ends anyhow."""
IN_FLIGHT = re.compile(r"^medschool_serve_answers_in_flight (\S+)$", re.MULTILINE)


def finish_answers(services: Services, environment: Callable[[], Mapping[str, str]], say: Callable[[str], None]) -> None:
    """Wait until no answer is written any more, at most LONGEST_S. environment: what a client of Ray needs."""
    if not (running := answers_in_flight(services)):
        return
    say(f"served model: {running} answers are finished first (Ctrl-C does not wait)")
    variables = {**os.environ, **environment()}
    try:
        subprocess.run([sys.executable, "-m", "medschool.serve.drain"], env=variables, timeout=LONGEST_S, check=False)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        say("served model: answers are cut off")


def answers_in_flight(services: Services) -> int:
    """How many answers the served model writes now; 0 when none is served here."""
    file = services.home / "secrets" / "api_key"
    if "serve" not in services.ports or not file.is_file():
        return 0
    headers = {"authorization": f"Bearer {file.read_text(encoding='utf-8').strip()}"}
    for scheme in ("http", "https"):
        try:  # unverified: a certificate names the outside, and the key goes to 127.0.0.1 alone
            url = f"{scheme}://127.0.0.1:{services.ports['serve']}/metrics"
            found = IN_FLIGHT.search(httpx.get(url, headers=headers, timeout=TIMEOUT_S, verify=False).text)
            return int(float(found[1])) if found else 0
        except httpx.HTTPError:
            continue
    return 0
