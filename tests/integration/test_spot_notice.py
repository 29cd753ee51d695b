"""The cloud's notice reaches Ray: a metadata service that answers as Amazon's does, and a real cluster whose node it names."""

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import common_pb2, gcs_pb2

from medschool.cluster import spot_notice

LEFT_S = 600


class Metadata(ThreadingHTTPServer):
    """404 for the first two questions with a token, then a notice; 401 without a token."""

    asked = 0
    token = "a-token-of-two-minutes"
    at = datetime.now(UTC) + timedelta(seconds=LEFT_S)


class Answers(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.reply(200 if known else 400, self.server.token)

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != self.server.token:
            return self.reply(401, "")
        self.server.asked += 1
        if self.server.asked < 3 or self.path != "/latest/meta-data/spot/instance-action":
            return self.reply(404, "")
        self.reply(200, json.dumps({"action": "terminate", "time": self.server.at.strftime("%Y-%m-%dT%H:%M:%SZ")}))

    def reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_there_is_none_until_there_is_one(metadata: Metadata) -> None:
    address = f"http://127.0.0.1:{metadata.server_port}"
    assert [spot_notice.notice(address) for _ in range(2)] == [None, None]
    assert spot_notice.notice(address) == metadata.at.replace(microsecond=0)
    metadata.token = "another"
    assert spot_notice.notice(address) is not None, "a new token is asked for each time"


def test_a_service_that_does_not_answer_is_an_error() -> None:
    with pytest.raises(httpx.ConnectError):
        spot_notice.notice("http://127.0.0.1:9")


def known(gcs: GcsClient, node_id: str) -> Any:
    """What Ray knows of a node."""
    return next(node for node in gcs.get_all_node_info(timeout=10).values() if node.node_id.hex() == node_id)


def test_ray_drains_the_node_for_the_notice_s_reason(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(spot_notice, "ASK_EVERY_S", 0.1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}, shutdown_at_exit=False)
    try:
        gcs = GcsClient(address=cluster.address)
        with pytest.raises(LookupError, match="no node at 203"):
            spot_notice.drain(cluster.address, "203.0.113.9", metadata.at)
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        spot_notice.watch(cluster.address, node.node_ip_address, f"http://127.0.0.1:{metadata.server_port}")
        assert f"node {node.node_id} is gone in " in capsys.readouterr().out
        until = time.monotonic() + 60
        while (info := known(gcs, node.node_id)).state != gcs_pb2.GcsNodeInfo.DEAD and time.monotonic() < until:
            time.sleep(0.2)  # nothing runs on it, so its drain ends at once
        assert info.death_info.reason == common_pb2.NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED
        assert "spot interruption notice" in info.death_info.reason_message
    finally:
        cluster.shutdown()
