"""A replica of the chat API whose echo takes its time, so that a client can leave in the middle of an answer."""

from starlette.types import ASGIApp

from medschool.serve.admission import Limits
from medschool.serve.api import ModelInfo, build_api
from medschool.serve.audit import AuditLog
from medschool.serve.engine import EchoEngine
from medschool.serve.keys import Key, KeyRing


class Paced:
    """For `serve.ingress`. delay_s: before each token."""

    def __init__(self, key_sha256: str, audit_uri: str, delay_s: float, places: int) -> None:
        self._ring, self._audit = KeyRing([Key("test", key_sha256)]), AuditLog(audit_uri)
        self._delay_s, self._places = delay_s, places

    def __serve_build_asgi_app__(self) -> ASGIApp:
        from medschool.serve.template import BytesText

        info, limits = ModelInfo("echo", "paced", 0), Limits(2048, self._places)
        return build_api(EchoEngine(self._delay_s), BytesText(), info, self._ring, limits, self._audit)
