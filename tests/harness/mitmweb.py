"""A mitmweb with the gate in it, and its HTTP API as its page uses it."""

import http.client
import json
from typing import Any
from urllib.parse import quote

from tests.harness.base import BEARER, PATIENCE, free_port, wait_until
from tests.harness.gate import Controlled, Gate
from tests.harness.wire import Response, Wire, head

PASSWORD = "letmein"
XSRF = "00112233445566778899aabbccddeeff"


class Mitmweb(Controlled):
    """A mitmweb on a port of its own."""

    def __init__(self, upstream: str, *args: str, **rest: Any) -> None:
        self.web_port = free_port()
        sets = ("web_open_browser=false", f"web_port={self.web_port}", f"web_password={PASSWORD}")
        options = [word for option in sets for word in ("--set", option)]
        super().__init__(upstream, *options, *args, program="mitmweb", **rest)
        self.find("Web server listening")

    @property
    def page(self) -> str:
        """Where its page is, for somebody who is let in."""
        return f"http://127.0.0.1:{self.web_port}/?token={PASSWORD}"

    def call(self, method: str, path: str, content: object = None) -> Response:
        """Call the API; `content` goes as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.web_port, timeout=PATIENCE)
        headers = {"Cookie": f"_mitmproxy_xsrf={XSRF}", "X-XSRFToken": XSRF, "Content-Type": "application/json"}
        body = json.dumps({} if content is None else content)
        connection.request(method, f"{path}?token={PASSWORD}", body if method != "GET" else None, headers)
        answer = connection.getresponse()
        raw = answer.read()
        connection.close()
        return Response(answer.status, {name.lower(): value for name, value in answer.getheaders()}, raw, raw)

    def flows(self) -> list[dict[str, Any]]:
        """What the list shows."""
        found: list[dict[str, Any]] = self.call("GET", "/flows").json
        return found

    def flow(self, path: str, comment: str = "") -> dict[str, Any]:
        """The newest flow, now or soon, of that path with that in its comment."""

        def look() -> dict[str, Any] | None:
            flows = reversed(self.flows())
            return next((f for f in flows if f["request"]["path"] == path and comment in f["comment"]), None)

        found: dict[str, Any] = wait_until(look, f"a flow of {path} with {comment!r}")
        return found

    def shown(self, flow: dict[str, Any], message: str = "response") -> str:
        """The text of a message as the page shows it."""
        return str(self.call("GET", f"/flows/{flow['id']}/{message}/content/auto.json").json["text"])

    def content(self, flow: dict[str, Any], message: str = "response") -> bytes:
        """The body of a message."""
        return self.call("GET", f"/flows/{flow['id']}/{message}/content.data").body

    def command(self, name: str, *arguments: str) -> Any:
        """Run a command as its command bar does; the value. The error, if there is one, raises."""
        answer = self.call("POST", f"/commands/{quote(name)}", {"arguments": arguments})
        assert answer.status == 200, f"{name}: {answer.status}"
        if "error" in answer.json:
            raise ValueError(answer.json["error"])
        return answer.json["value"]

    def replay(self, flow: dict[str, Any]) -> None:
        """Send it again, as the button does."""
        assert self.call("POST", f"/flows/{flow['id']}/replay").status == 200


def start(web: Gate, body: bytes) -> Wire:
    """A chat under way, whose client has the first token."""
    wire = Wire(web.port, head("POST", "/api/chat", BEARER, f"Content-Length: {len(body)}") + body)
    wire.read_until(b'"done":false}')
    return wire
