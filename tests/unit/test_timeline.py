"""The timeline of a run: from the autoscaler's report to moments, from moments to node-seconds, a file, a picture."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import lxml.html
import pytest
from ray.autoscaler.v2.schema import (
    ClusterStatus,
    LaunchRequest,
    NodeInfo,
    NodeUsage,
    PlacementGroupResourceDemand,
    RayTaskActorDemand,
    ResourceDemandSummary,
    ResourceRequestByCount,
    ResourceUsage,
)
from test_markdown import RECIPE
from test_page import bare

from medschool.ablate.gather import stage_spans
from medschool.ablate.markdown import markdown
from medschool.ablate.over_time import node_rows, picture
from medschool.ablate.page import render
from medschool.artifact import Artifact
from medschool.cluster import timeline
from medschool.cluster.timeline import Moment, Recorder, Span, Timeline, moment_of
from medschool.recipe import load

SHIPPED = load(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
SEEN = Timeline(
    1000.0,
    1100.0,
    (
        Moment(1000.0, {"head": 1}, {}, {}),
        Moment(1010.0, {"head": 1}, {"cpu": 2}, {"CPU": 4.0}),
        Moment(1030.0, {"cpu": 2, "head": 1}, {"gpu_train": 1}, {"CPU": 3.0, "GPU": 1.0}),
        Moment(1060.0, {"gpu_train": 1, "head": 1}, {}, {}),
    ),
    (Span("corpus/papers", 1010.0, 1050.0), Span("pretrain/control", 1055.0, 1095.0)),
)


def node(kind: str, **usage: float) -> NodeInfo:
    used = NodeUsage([ResourceUsage(name, total, 0.0) for name, total in usage.items()], 0)
    return NodeInfo("", kind, "i", "127.0.0.1", "RUNNING", "0a1b", used)


def launch(kind: str, count: int) -> LaunchRequest:
    return LaunchRequest("", kind, count, LaunchRequest.Status.PENDING, 0)


def test_the_autoscalers_report_is_a_moment() -> None:
    demands = ResourceDemandSummary(
        [PlacementGroupResourceDemand([ResourceRequestByCount({"CPU": 3.0, "GPU": 1.0}, 2)], "")],
        [RayTaskActorDemand([ResourceRequestByCount({"CPU": 0.5}, 3)]), RayTaskActorDemand([ResourceRequestByCount({"driver": 1}, 1)])],
    )  # fmt: skip
    status = ClusterStatus(
        active_nodes=[node("cpu"), node("cpu")], idle_nodes=[node("head")], pending_launches=[launch("cpu", 1), launch("cpu", 2)],
        pending_nodes=[node("gpu_train")], resource_demands=demands,
    )  # fmt: skip
    moment = moment_of(status)
    assert (moment.nodes, moment.coming) == ({"cpu": 2, "head": 1}, {"cpu": 3, "gpu_train": 1})
    assert moment.waiting == {"CPU": 7.5, "GPU": 2.0}


def test_nodes_that_were_started_by_hand_have_no_id_for_a_type() -> None:
    named = [node("node_0a1b"), node("node_0a1b", **{"node:__internal_head__": 1.0})]
    assert moment_of(ClusterStatus(active_nodes=named)).nodes == {"head": 1, "node": 1}


def test_node_seconds_are_nodes_times_the_time_they_ran() -> None:
    assert SEEN.node_seconds() == {"head": 100.0, "cpu": 60.0, "gpu_train": 40.0}
    assert SEEN.types == ["cpu", "gpu_train"] and SEEN.counts("cpu") == [0, 0, 2, 0]
    assert node_rows(SEEN) == [
        ["node type", "most at once", "first after, s", "node-seconds"],
        ["head", "1", "0", "100"], ["cpu", "2", "30", "60"], ["gpu_train", "1", "60", "40"],
    ]  # fmt: skip
    assert node_rows(None) == []


def test_spans_before_the_first_look_are_left_out() -> None:
    more = SEEN.with_spans([Span("exams/a", 900.0, 1000.0), Span("serve", 990.0, 1001.0)])
    assert [span.name for span in more.spans] == ["serve", "corpus/papers", "pretrain/control"]


def test_a_timeline_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert timeline.read(str(tmp_path)) is None
    timeline.write(str(tmp_path), SEEN)
    assert timeline.read(str(tmp_path)) == SEEN
    (tmp_path / timeline.FILE).write_text('{"began_s": 1}')
    assert timeline.read(str(tmp_path)) is None


def test_a_recorder_keeps_changes_alone_and_outlives_a_head_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "LOOK_EVERY_S", 0.001)
    counts, looked = iter([0, 0, None, 1, 1, None, 0, 0]), []

    def look() -> Moment:
        count = next(counts, 0)
        looked.append(count)
        if count is None:
            raise ConnectionError
        return Moment(time.time(), {"cpu": count}, {}, {})

    with Recorder(look) as recorder:
        while len(looked) < 8:
            time.sleep(0.001)
    assert [moment.nodes["cpu"] for moment in recorder.so_far().moments] == [0, 1, 0]


def test_a_recorder_that_never_got_an_answer_has_an_empty_timeline() -> None:
    def look() -> Moment:
        raise ConnectionError

    with Recorder(look) as recorder:
        pass
    seen = recorder.so_far()
    assert seen.types == [] and seen.node_seconds() == {}
    assert ElementTree.fromstring(picture(seen)) is not None


def drawn(seen: Timeline) -> str:
    svg = picture(seen)
    ElementTree.fromstring(svg)
    return svg


def test_the_picture_names_every_row_and_draws_every_stage() -> None:
    svg = drawn(SEEN)
    for name in ("cpu", "gpu_train", "corpus", "pretrain", "waiting", "seconds since the beginning", "on their way"):
        assert f">{name}" in svg or f"{name}<" in svg, name
    assert "cpu at most 2, gpu_train at most 1" in svg
    assert drawn(SEEN) == svg
    assert "minutes since" in drawn(replace(SEEN, ended_s=2000.0)) and ">corpus" not in drawn(replace(SEEN, spans=()))


@pytest.mark.parametrize("hostile", ["<script>", "$x^2$", "a&b"])
def test_names_from_outside_cannot_act(hostile: str) -> None:
    changed: dict[str, Any] = {
        "moments": (Moment(1000.0, {hostile: 1}, {}, {}),),
        "spans": (Span(f"{hostile}/x", 1001.0, 1002.0),),
    }
    assert "<script>" not in drawn(replace(SEEN, **changed))


def test_the_report_has_it_where_there_is_one() -> None:
    with_it, without = (replace(bare(), timeline=seen) for seen in (SEEN, None))
    headings = [heading.text for heading in lxml.html.document_fromstring(render(with_it)).iter("h2")]
    assert headings == ["Variants", "Nodes, stages and requests", "How to reproduce", "Terms"]
    assert "Nodes, stages" not in render(without)
    text = markdown(RECIPE, with_it)
    assert "## Nodes by type" in text and "| gpu\\_train | 1 | 60 | 40 |" in text
    assert "Nodes by type" not in markdown(RECIPE, without)


def test_stages_that_this_run_made_have_their_time() -> None:
    made = {
        name: Artifact(name, "f", uri, "", (), {}, {}, 30.0, created)
        for name, uri, created in (
            ("exams/mmlu_clinical", "a", "2031-02-03T10:20:30+00:00"),
            ("corpus/papers", "b", "2031-02-03T10:21:30+00:00"),
            ("corpus/books", "b", "2031-02-03T10:21:30+00:00"),  # shares the one before
            ("corpus/general", "c", ""),
        )
    }
    spans = stage_spans(SHIPPED, made.__getitem__, {"corpus/papers", "corpus/books", "corpus/general"})
    assert len(spans) == 1 and spans[0].name.startswith("corpus/")
    assert spans[0].ended_s - spans[0].began_s == 30.0
    assert datetime.fromtimestamp(spans[0].ended_s, UTC).isoformat() == "2031-02-03T10:21:30+00:00"
