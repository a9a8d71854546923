"""What pages of other sites may do, asked of a running server."""

import http.client
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from web_apps import Server, light_server, png

ALLOWED, OTHER = "https://example.org", "https://example.com"
TOKEN = "a token of enough characters"


@pytest.fixture(scope="module")
def served():
    with light_server(token=TOKEN, origins=("http://localhost:3000", ALLOWED), request_bytes=2**20) as found:
        yield found


def answer(server: Server, method: str, path: str, origin: str | None, body: bytes | None = None, **fields: str):
    """Status and header fields, names in lower case; `_` in the name of a field stands for `-`."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    try:
        connection.request(method, path, body, headers | ({"Origin": origin} if origin else {}))
        found = connection.getresponse()
        found.read()
        return found.status, {name.lower(): value for name, value in found.getheaders()}
    finally:
        connection.close()


def preflight(server: Server, origin: str, path="/api/predict"):
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,content-type"}
    return answer(server, "OPTIONS", path, origin, **asked)


def test_a_preflight_is_answered_without_the_token(served):
    status, fields = preflight(served, ALLOWED)
    assert status == 204
    assert fields["access-control-allow-origin"] == ALLOWED
    assert fields["access-control-allow-methods"] == "GET, POST"
    assert fields["access-control-allow-headers"] == "Authorization, Content-Type"
    assert fields["access-control-max-age"] == "600"
    assert fields["vary"] == "Origin"


def test_answers_name_the_origin_that_asked_and_never_allow_credentials(served):
    fields = {"Content_Type": "image/png", "Authorization": f"Bearer {TOKEN}"}
    status, found = answer(served, "POST", "/api/predict", ALLOWED, png(240), **fields)
    assert (status, found["access-control-allow-origin"], found["vary"]) == (200, ALLOWED, "Origin")
    assert "access-control-allow-credentials" not in found
    status, found = answer(served, "GET", "/api/model", "http://localhost:3000", Authorization=f"Bearer {TOKEN}")
    assert (status, found["access-control-allow-origin"]) == (200, "http://localhost:3000")


@pytest.mark.parametrize("origin", [OTHER, "null", "*", f"{ALLOWED}.example.com", "http://example.org", None])
def test_other_origins_may_read_nothing(served, origin):
    for _, fields in (preflight(served, origin), answer(served, "GET", "/api/model", origin)):
        assert "access-control-allow-origin" not in fields
        assert fields["vary"] == "Origin"  # a cache must not give them what an allowed origin got


def test_refusals_can_be_read_too(served):
    status, fields = answer(served, "POST", "/api/predict", ALLOWED, png(), Content_Type="image/png")
    assert (status, fields["access-control-allow-origin"]) == (401, ALLOWED)
    status, fields = answer(served, "POST", "/api/predict", ALLOWED, b"x" * 2**21, Content_Type="image/png")
    assert (status, fields["access-control-allow-origin"], fields["vary"]) == (413, ALLOWED, "Origin")


def test_the_page_itself_is_for_no_other_site(served):
    _, fields = answer(served, "GET", "/", ALLOWED, Authorization=f"Bearer {TOKEN}")
    assert "access-control-allow-origin" not in fields


def test_without_the_option_nothing_is_allowed():
    with light_server() as server:
        for status, fields in (preflight(server, ALLOWED), answer(server, "GET", "/api/model", ALLOWED)):
            assert status == 200
            assert not {name for name in fields if name.startswith("access-control")} | ({"vary"} & set(fields))


class EmptyPage(BaseHTTPRequestHandler):
    """A page of another site."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *ignored):
        pass


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium (apt-get install chromium)")
def test_a_browser_lets_the_page_of_an_allowed_site_use_the_api_and_no_other():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (requirements-dev.txt)")
    other = ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    allowed, refused = (f"http://{host}:{other.server_port}" for host in ("127.0.0.1", "localhost"))
    ask = """([url, token]) => fetch(url + '/api/model', {headers: {Authorization: 'Bearer ' + token}})
        .then(answer => answer.json()).then(model => model.name, error => String(error))"""
    with light_server(token=TOKEN, origins=(allowed,)) as server, playwright.sync_playwright() as found:
        browser = found.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        told = []
        for site in (allowed, refused):
            page = browser.new_page()
            page.goto(site)
            told.append(page.evaluate(ask, [server.url, TOKEN]))
        browser.close()
    other.shutdown()
    other.server_close()
    assert told == ["brightness", "TypeError: Failed to fetch"]
