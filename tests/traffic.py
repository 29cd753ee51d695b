"""Traffic against a served echo with the tests' own key, and readers of single streams."""

import threading
from typing import Any

import httpx

from medschool.cluster import traffic

KEY = "operation-test-key"
HEADERS = {"authorization": f"Bearer {KEY}"}
CHAT = traffic.CHAT


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **fields}


class Traffic(traffic.Traffic):
    """`per_s` requests a second from `with` until its end; then `outcomes` is complete."""

    def __init__(self, url: str, per_s: float = 20) -> None:
        super().__init__(url, KEY, per_s)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        assert len(self.outcomes) > 5, "there was traffic"


class Reader(threading.Thread):
    """Reads one stream to its end, in a thread; `whole` is whether it ended as it should, `text` all that came."""

    def __init__(self, url: str, words: str, **fields: Any) -> None:
        super().__init__(daemon=True)
        self._url, self._body = url + CHAT, body(words, stream=True, **fields)
        self.text, self.problem = "", ""
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", self._url, headers=HEADERS, json=self._body, timeout=120) as answer:
                for piece in answer.iter_text():
                    self.text += piece
                    self.begun.set()
        except httpx.HTTPError as error:
            self.problem = f"{type(error).__name__}: {error}"
        self.begun.set()

    @property
    def whole(self) -> bool:
        self.join(120)
        return self.text.endswith("data: [DONE]\n\n") and '"error"' not in self.text and not self.problem
