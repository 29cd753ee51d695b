"""The shipped alerts and dashboard as expressions of Prometheus, and the names of the metrics in them."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from medschool.metrics import ALERTS, DASHBOARD, FOLDER

WORDS = {"and", "bool", "by", "group_left", "group_right", "ignoring", "offset", "on", "or", "unless", "without"}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / ALERTS).read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / DASHBOARD).read_text(encoding="utf-8"))
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """Where it stands -> expression, with every recipe chosen, as Grafana does it."""
    found = {f"alert {rule['alert']}": rule["expr"] for rule in alerts()}
    for panel in panels():
        for target in panel["targets"]:
            found[f"panel {panel['id']} {panel['title']} {target['refId']}"] = target["expr"].replace("$run", ".*")
    return found


def metric_names(expression: str) -> set[str]:
    """Names that are no function, no word of the language and no label."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", expression)
    bare = re.sub(r"\{[^}]*\}|\b(by|without|on|ignoring)\s*\([^)]*\)", " ", bare)
    return {name for name in re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", bare) if name not in WORDS}


def as_rules(some: dict[str, str]) -> str:
    """Expressions as a file that promtool checks."""
    rules = [{"record": f"checked:{number}", "expr": text} for number, text in enumerate(some.values())]
    return yaml.safe_dump({"groups": [{"name": "checked", "rules": rules}]})


def names_in_source(source: Path) -> set[str]:
    """Words in quotes in the Python files of a folder, or in one file."""
    files = sorted(source.rglob("*.py")) if source.is_dir() else [source]
    return {word for file in files for word in re.findall(r'"([a-z][a-z0-9_]{5,})"', file.read_text(encoding="utf-8"))}
