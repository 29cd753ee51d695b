"""The files for Prometheus and Grafana: every name in them is one that we or Ray show, and Prometheus itself takes them."""

import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import ray
import yaml
from promql import alerts, as_rules, dashboard, expressions, metric_names, names_in_source, panels

from medschool import gauges
from medschool.cluster import local, prometheus
from medschool.errors import ServiceError
from medschool.metrics import ALERTS, CONFIG, DASHBOARD, FOLDER
from medschool.serve.metrics import Metrics

RAY = Path(ray.__file__).parent
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")


def own_names() -> set[str]:
    """What medschool shows, as it stands on Ray's endpoint; of a histogram its buckets."""
    said = [*gauges.GAUGES.values(), gauges.SECONDS, gauges.SOURCE_LOSS, gauges.RESTARTS, gauges.TRIALS]
    made = {name for name, _ in (*said, gauges.STAGE_RECORDS, gauges.STAGE_SECONDS)}

    class Shown:
        def inc(self, *_: object) -> None: ...
        def set(self, *_: object) -> None: ...

    def note(kind: str, name: str, description: str, labels: object) -> Shown:
        made.add(name + {"histogram": "_bucket", "counter": "_total"}.get(kind, ""))
        return Shown()

    Metrics(note)  # type: ignore[arg-type]
    return {f"ray_{name}" for name in made}


def test_names_are_found_in_an_expression() -> None:
    text = 'sum by (a, b) (rate(ray_x_total{a="b", c=~"d.*"}[5m])) / max without (e) (y:z) > 0.5 and on (a) up == 0'
    assert metric_names(text) == {"ray_x_total", "y:z", "up"}


def test_each_number_of_ours_is_one_that_we_show_and_each_is_on_the_dashboard() -> None:
    used = {name for text in expressions().values() for name in metric_names(text)}
    assert {name for name in used if "medschool" in name} <= own_names()
    drawn = {name for panel in panels() for target in panel["targets"] for name in metric_names(target["expr"])}
    assert own_names() <= drawn, "a number that nobody sees"


def test_each_number_of_ray_stands_in_ray_s_source() -> None:
    used = {name for text in expressions().values() for name in metric_names(text) if "medschool" not in name}
    shown = names_in_source(RAY / "dashboard" / "modules" / "reporter" / "reporter_agent.py")
    for folder in ("serve/_private", "data/_internal/stats.py", "autoscaler/_private/prom_metrics.py"):
        shown |= names_in_source(RAY / folder)
    shown |= {f"serve_num_http_{what}" for what in ("requests", "error_requests")} | {"serve_num_ongoing_http_requests"}
    names = {name.removeprefix("ray_").removeprefix("autoscaler_") for name in used - {"up"}}
    assert {name for name in names if not {name, name.removesuffix("_total")} & shown} == set()


def test_an_alert_says_what_it_is_and_what_to_do() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names) >= 12
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning") and rule["annotations"].keys() == {"summary", "runbook"}
    wanted = {
        "ReplicaMissing",
        "ServingFails",
        "ServingRefuses",
        "TrainingStalled",
        "GoodputLow",
        "BatchesSkipped",
        "CheckpointsFail",
    }
    assert wanted <= set(names)


def test_panels_lie_side_by_side() -> None:
    found = dashboard()
    ids = [panel["id"] for panel in found["panels"]]
    assert len(set(ids)) == len(ids) and found["uid"] == "medschool"
    covered: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & covered, panel["title"]
        covered |= cells
    for panel in panels():
        references = [target["refId"] for target in panel["targets"]]
        assert references == sorted(set(references)) and panel["datasource"]["uid"] == "${datasource}" and panel["description"]
    tops = [panel["gridPos"]["y"] for panel in found["panels"]]
    assert all(above <= below for above, below in pairwise(tops))


def test_the_configuration_names_ray_s_list_and_lies_beside_the_rules(tmp_path: Path) -> None:
    path = prometheus.write_config(tmp_path / "metrics", tmp_path / "list.json")
    made, shipped = yaml.safe_load(path.read_text()), yaml.safe_load((FOLDER / CONFIG).read_text())
    assert made["scrape_configs"][0]["file_sd_configs"][0]["files"] == [str(tmp_path / "list.json")]
    assert shipped["scrape_configs"][0]["file_sd_configs"][0]["files"] == [f"/tmp/ray/{prometheus.DISCOVERY}"]
    assert made["rule_files"] == shipped["rule_files"] == [ALERTS]
    assert {each.name for each in path.parent.iterdir()} == {ALERTS, CONFIG, DASHBOARD}


@promtool
def test_prometheus_takes_all_of_it_and_refuses_what_is_wrong(tmp_path: Path) -> None:
    config = prometheus.write_config(tmp_path, tmp_path / "list.json")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "panels.yml").write_text(as_rules(expressions()))
    (tmp_path / "wrong.yml").write_text(as_rules({"wrong": "sum by (run (ray_medschool_train_step)"}))
    for words, code in ((("config", config), 0), (("rules", tmp_path / "panels.yml"), 0), (("rules", tmp_path / "wrong.yml"), 1)):
        done = subprocess.run(["promtool", "check", *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr


def test_without_a_prometheus_or_a_ray_of_one_s_own_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.delenv("MEDSCHOOL_RAY_JOBS", raising=False)
    for _ in range(2):
        with pytest.raises(ServiceError) as refused:
            local.up(tmp_path / "home", metrics=True)
        assert "prometheus" in refused.value.remedy.lower() and not (tmp_path / "home" / "state.json").exists()
        monkeypatch.setenv("MEDSCHOOL_RAY_JOBS", "http://head:8265")
    assert "elsewhere" in refused.value.problem and str(FOLDER) in refused.value.remedy
