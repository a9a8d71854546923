import importlib.util
import subprocess
import sys

import pytest
from PIL import Image
from web_apps import client, light_server, png

from fakereal.decoding import FORMATS, MEDIA_TYPES
from fakereal.web import routes


@pytest.fixture(scope="module")
def app():
    with client() as made:
        yield made


def test_the_document_names_every_address_for_programs_and_no_other(app):
    served = {
        (rule.rule, method.lower())
        for rule in app.application.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if rule.endpoint.startswith("api.")
    }
    document = app.get("/api/openapi.json").json
    assert {(path, method) for path, methods in document["paths"].items() for method in methods} == served


def test_the_document_says_as_many_files_as_are_taken(app):
    body = routes.document()["paths"]["/api/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert body["schema"]["properties"]["image"]["maxItems"] == app.get("/api/model").json["limits"]["files"]


def test_the_document_and_the_page_name_every_format(app):
    operation = routes.document()["paths"]["/api/predict"]["post"]
    assert f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}, recognized by content" in operation["description"]
    assert "{" not in str([operation["description"], [each["description"] for each in operation["parameters"]]])
    Image.init()
    assert [*(Image.MIME[name] for name in FORMATS), "image/heic"] == list(MEDIA_TYPES)
    assert f'accept="{",".join(MEDIA_TYPES)},.heic,.heif"' in app.get("/").text


def test_answers_have_exactly_the_members_that_the_document_names(app):
    schemas = routes.document()["components"]["schemas"]
    answer = app.post("/api/predict?explain=1&stability=1", data=png(), content_type="image/png").json
    assert set(answer) == set(schemas["Predictions"]["required"])
    assert set(answer["predictions"][0]) == set(schemas["Prediction"]["required"])
    assert set(app.get("/api/model").json) == set(schemas["Model"]["required"])


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("schemathesis"), reason="needs schemathesis (requirements-dev.txt)")
def test_schemathesis_finds_no_answer_that_the_document_does_not_tell_of(tmp_path):
    # Any bytes are a body by the document, but no image: their refusal is right.
    left_out = "--exclude-checks=positive_data_acceptance"
    with light_server() as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/api/openapi.json"]
        command += ["--checks=all", left_out, "--max-examples=100", "--seed=1", "--generation-database=none"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        print(done.stdout)
        assert done.returncode == 0, done.stdout[-5000:]
        assert server.process.poll() is None
