import html
import io
import json
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from heic_images import ROTATED
from PIL import Image, PngImagePlugin
from web_apps import SIZE_PX, Brightness, client, png, predictor

from fakereal.model.calibration import DecisionRule, combine_views
from fakereal.model.resaves import STABILITY_RESAVES
from fakereal.preprocessing import Preprocessing
from fakereal.web.http import Limits, Upload
from fakereal.web.routes import range_text


def post(app, *files, url="/api/predict", **fields):
    data = {**fields, "image": [(io.BytesIO(content), name) for name, content in files]}
    return app.post(url, data=data, content_type="multipart/form-data")


@pytest.fixture(scope="module")
def app():
    with client() as made:
        yield made


# the API


def test_one_file_of_a_form_gets_a_row_as_the_details_have_it(app):
    answer = post(app, ("7.png", png(230)))
    assert answer.status_code == 200
    (row,) = answer.json["predictions"]
    assert row["index"] == 7
    assert (row["prediction"], row["verdict"]) == ("real", "real")
    assert row["p_real"] == round(230 / 255, 6)
    assert row["p_fake"] == round(1 - row["p_real"], 6)
    assert row["calibrated_p_real"] == row["confidence"] == pytest.approx(row["p_real"], abs=2e-6)
    assert (row["width"], row["height"], row["format"], row["error"]) == (40, 20, "PNG", None)
    assert (row["stability"], row["explanation"]) == (None, None)


def test_several_files_keep_their_order_and_broken_ones_their_place(app):
    files = [("b.png", png(250)), ("a.jpg", b"not an image"), ("c.gif", png(5, kind="GIF")), ("b.png", b"")]
    rows = post(app, *files).json["predictions"]
    assert [row["image"] for row in rows] == ["b.png", "a.jpg", "c.gif", "b.png"]
    assert [row["prediction"] for row in rows] == ["real", None, "fake", None]
    assert "not an image" in rows[1]["error"]
    assert "is empty" in rows[3]["error"]


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/octet-stream"])
def test_a_raw_body_is_a_image_whatever_type_it_claims(app, kind):
    answer = app.post("/api/predict?name=some/12.png", data=png(20, kind="BMP"), content_type=kind)
    (row,) = answer.json["predictions"]
    assert (row["image"], row["format"], row["prediction"]) == ("some/12.png", "BMP", "fake")


def test_a_heic_photo_gets_a_verdict_and_a_preview_and_what_is_no_image_its_name(app):
    files = [("IMG_0001.HEIC", ROTATED), ("photo.heic", b"<!doctype html>")]
    photo, page = post(app, *files).json["predictions"]
    assert (photo["format"], photo["width"], photo["height"]) == ("HEIF", 48, 36)
    assert photo["file"]["camera"] == "Phone"
    assert page["error"] == "HTML page, not an image: the download probably failed"
    shown = post(app, files[0], url="/cards").text
    assert re.search(r'class="preview" src="data:image/(png|jpeg);base64', shown)


def test_an_explanation_is_a_image_of_what_speaks_for_the_label(app):
    answer = app.post("/api/predict?explain=true", data=png(240), content_type="image/png")
    explanation = answer.json["predictions"][0]["explanation"]
    assert (explanation["method"], explanation["label"]) == ("Grad-CAM", "real")
    assert explanation["overlay"].startswith("data:image/png;base64,")


def test_stability_gives_the_label_of_every_resave(app):
    answer = app.post("/api/predict?stability=1", data=png(240), content_type="image/png")
    stability = answer.json["predictions"][0]["stability"]
    assert stability["stable"] is True
    assert [each["variant"] for each in stability["variants"]] == ["jpeg90", "jpeg70", "jpeg50", "scale0.5", "blur1"]
    assert {each["prediction"] for each in stability["variants"]} == {"real"}


def test_a_verdict_that_a_resave_turns_is_called_unstable():
    class Sharp(Brightness):
        """Calls images with fine stripes real: a blur takes them away."""

        def explain(self, images):
            found = super().explain(images)
            found.p_real[:] = np.where(np.abs(np.diff(images.astype(int), axis=2)).mean(axis=(1, 2, 3)) > 60, 0.9, 0.1)
            return found

    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    content = io.BytesIO()
    Image.fromarray(stripes).save(content, "PNG")
    with client(Sharp()) as app:
        answer = app.post("/api/predict?stability=1", data=content.getvalue(), content_type="image/png")
        found = answer.json["predictions"][0]["stability"]
        assert found["stable"] is False
        assert "Unstable" in post(app, ("s.png", content.getvalue()), url="/cards", stability="1").text


@pytest.mark.parametrize(
    ("send", "status", "words"),
    [
        ({"data": b"x" * 10, "content_type": "image/png"}, 422, "not an image"),
        ({"data": b"", "content_type": "image/png"}, 400, "at least one"),
        ({"data": png(), "content_type": "text/plain"}, 415, "multipart/form-data"),
        ({"data": {"photo": (io.BytesIO(png()), "1.png")}}, 400, "form field 'image'"),
        ({"data": {"image": "a text, no file"}, "content_type": "multipart/form-data"}, 400, "at least one"),
        ({"data": b"--x", "content_type": "multipart/form-data"}, 400, ""),
        ({"data": b"x" * (2**20 + 1), "content_type": "image/png"}, 413, "at most 1 MB"),
        ({"data": {"image": [(io.BytesIO(png()), "1.png")] * 5}}, 400, "at most 4 images"),
        ({"data": {"image": [(io.BytesIO(b""), f"{n}.png") for n in range(200)]}}, 413, "4 images in a request"),
        (
            {"query_string": {"explain": "perhaps"}, "data": png(), "content_type": "image/png"},
            400,
            "explain: expected",
        ),
    ],
)
def test_a_bad_request_is_answered_with_problem_details_that_say_what_to_do(send, status, words):
    with client(limits=Limits(request_bytes=2**20, files=4)) as app:
        answer = app.post("/api/predict", **send)
    assert answer.status_code == status
    assert answer.content_type == "application/problem+json"
    assert answer.json["status"] == status
    assert {"type", "title", "detail"} <= answer.json.keys()
    assert words in answer.json["detail"]


def test_a_wrong_method_or_address_is_a_problem_too(app):
    assert app.get("/api/predict").status_code == 405
    assert "POST" in app.get("/api/predict").headers["Allow"]
    for path in ("/nothing", "/static/../app.py", "/static/%2e%2e/app.py", "/../../etc/passwd", "/static//etc/passwd"):
        assert app.get(path).status_code in (404, 308)
    assert app.get("/nothing").content_type == "application/problem+json"


def test_a_image_of_more_pixels_than_allowed_is_refused_by_its_header():
    with client(limits=Limits(pixels=1_000_000)) as app:
        answer = app.post("/api/predict", data=png(size=(1001, 1000)), content_type="image/png")
    assert answer.status_code == 422
    assert "megapixels" in answer.json["detail"]


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "C:\\secret\\1.png", "/etc/shadow", "a\r\nSet-Cookie: x.png", "x" * 5000, "\x00.png", ""],
)
def test_file_names_are_labels_only(app, name):
    answer = app.post("/api/predict", query_string={"name": name}, data=png(), content_type="image/png")
    found = answer.json["predictions"][0]["image"]
    assert found
    assert not found.startswith("/")
    assert ".." not in found.split("/")
    assert len(found) <= 255
    assert found.isprintable()


def test_the_model_tells_what_it_is_but_no_path(app):
    found = app.get("/api/model").json
    assert found["name"] == "brightness"
    assert found["limits"]["files"] == 32
    assert "not proof" in found["advisory"]


def test_what_a_verdict_is_worth_stands_above_the_results(app):
    page = post(app, ("1.png", png(250)), url="/").text
    assert page.index("9 of 10 verdicts were right") < page.index('id="cards"')
    assert "9 of 10 verdicts were right" in app.get("/model").text


def test_an_image_with_several_views_gets_the_verdict_of_prediction():
    rng = np.random.default_rng(0)
    content = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(content, "PNG")
    preprocessing = Preprocessing(SIZE_PX, square=True, crops=3)
    network = Brightness()
    with predictor(network, preprocessing=preprocessing) as found:
        found.worker.wait_until_warm()
        (analysis,) = found.analyzer.analyze([Upload("a.png", content.getvalue())], explain=True, stability=True)
    views = np.stack(preprocessing.views(Image.open(content).convert("RGB")))
    assert len(views) == 4
    assert analysis.result.raw.p_real == pytest.approx(combine_views(network.p_real(views)), abs=1e-6)
    assert len(analysis.variants) == len(STABILITY_RESAVES)
    assert analysis.evidence.shape == (4, 4)


def test_health_readiness_and_figures():
    with predictor() as found:
        from fakereal.web.app import create_app

        found.worker.wait_until_warm()
        app = create_app(found).test_client()
        assert app.get("/healthz").json == {"status": "ok"}
        assert app.get("/readyz").status_code == 200
        post(app, ("1.png", png(250)), ("2.png", b"broken"))
        figures = app.get("/metrics").text
        assert 'fakereal_images_total{verdict="real"} 1.0' in figures
        assert 'fakereal_images_total{verdict="refused"} 1.0' in figures
        assert 'fakereal_requests_total{route="/api/predict",status="200"} 1.0' in figures
        assert "fakereal_queue_images 0.0" in figures
        found.draining.set()
        assert app.get("/readyz").status_code == 503
        assert app.get("/readyz").headers["Retry-After"]
        assert app.get("/healthz").status_code == 200
    assert app.get("/healthz").status_code == 503


# security


def test_every_answer_has_the_security_headers(app):
    for answer in (app.get("/"), app.get("/api/model"), app.get("/nothing"), app.get("/static/app.js"), post(app)):
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert app.get("/").headers["Cache-Control"] == "no-store"


def test_pages_hold_nothing_inline_and_nothing_from_elsewhere(app):
    for text in (app.get("/").text, app.get("/model").text, post(app, ("1.png", png()), url="/").text):
        assert not re.search(r"<script(?! src=\"/static/)|<style|\sstyle=|\son\w+=", text)
        assert not re.search(r"(?:src|href|action)=\"(?!/|#|data:)", text)


def test_a_token_keeps_strangers_out_but_not_the_load_balancer():
    token = "a-token-of-some-length"
    with client(token=token) as app:
        for path in ("/", "/api/model", "/metrics", "/model", "/api/openapi.json"):
            answer = app.get(path)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Basic")
            assert app.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert app.get(path, auth=("me", "wrong")).status_code == 401
            assert app.get(path, headers={"Authorization": f"Bearer {token}"}).status_code == 200
            assert app.get(path, auth=("me", token)).status_code == 200
        assert app.post("/api/predict", data=png(), content_type="image/png").status_code == 401
        for path in ("/healthz", "/readyz", "/static/app.css"):
            assert app.get(path).status_code == 200
        for odd in ("Bearer", "Basic", "Basic !!!", "Digest x=y", "Bearer ä"):
            assert app.get("/", headers={"Authorization": odd}).status_code == 401


# the page


def test_the_page_works_without_scripts(app):
    answer = post(app, ("7.png", png(250)), ("x<script>.png", b"broken"), url="/")
    assert answer.status_code == 200
    assert ">Very likely real</span>" in answer.text
    assert "text, not an image" in answer.text
    assert "x&lt;script&gt;.png" in answer.text
    assert "<script>.png" not in answer.text
    assert 'src="data:image/jpeg;base64,' in answer.text
    assert 'src="data:image/png;base64,' in answer.text
    assert 'download="predictions.json"' in answer.text


def test_a_form_that_fails_shows_the_page_with_the_reason(app):
    answer = app.post("/", data={"image": (io.BytesIO(b""), "")}, content_type="multipart/form-data")
    assert answer.status_code == 400
    assert 'role="alert"' in answer.text
    assert "at least one" in answer.text


def test_cards_carry_the_entry_of_predictions_json(app):
    for name, expected in (
        ("7.png", {"index": 7, "prediction": "real"}),
        ("a'<&>ä.png", {"image": "a'<&>ä.png", "prediction": "real"}),
    ):
        text = post(app, (name, png(250)), url="/cards").text
        assert json.loads(html.unescape(re.search(r'data-entry="([^"]*)"', text)[1])) == expected


@pytest.mark.parametrize(
    ("gray", "badge"),
    [
        (0, '<span class="badge fake strong">Very likely fake</span>'),
        (20, '<span class="badge fake strong">Likely fake</span>'),
        (60, '<span class="badge fake weak">Probably fake</span>'),
        (100, '<span class="badge fake weak">Leans fake</span>'),
        (120, '<span class="badge uncertain strong">Uncertain</span>'),
        (156, '<span class="badge real weak">Leans real</span>'),
        (254, '<span class="badge real strong">Very likely real</span>'),
    ],
)
def test_the_badge_says_how_strong_the_verdict_is(app, gray, badge):
    assert badge in post(app, ("1.png", png(gray)), url="/cards").text


def test_an_uncertain_verdict_says_why(app):
    text = html.unescape(post(app, ("1.png", png(120)), url="/cards").text)
    assert "wrong too often where the probability of fake is between 40 % and 60 %" in text


@pytest.mark.parametrize(
    ("band", "text"),
    [((0.4, 0.6), "between 40 % and 60 %"), ((0.0, 0.649), "below 65 %"), ((0.3, 1.0), "above 30 %")],
)
def test_a_band_that_reaches_the_end_has_one_limit(band, text):
    assert range_text(band) == text


def test_a_label_below_even_chance_names_the_threshold():
    with client() as app:
        found = app.application.extensions["fakereal"]
        decision = DecisionRule(threshold=0.3, band=(0.3, 0.3))
        found.model["decision"] = {"threshold": 0.3, "temperature": 1.0, "band": [0.3, 0.3]}
        changed = replace(found, analyzer=replace(found.analyzer, decision=decision))
        app.application.extensions["fakereal"] = changed
        text = post(app, ("1.png", png(160)), url="/cards").text
    assert "Leans fake" in text
    assert "Called fake although less likely: this model calls an image fake at 30 % or more." in text


def test_words_fit_the_verdict(app):
    assert "Too close to call: it leans toward fake" in post(app, ("1.png", png(120)), url="/cards").text
    assert ">Very likely fake</span>" in post(app, ("1.png", png(1)), url="/cards").text
    text = html.unescape(post(app, ("1.png", png(0)), url="/cards").text)
    assert ">99 % fake, <1 % real" in text


def test_the_model_page_shows_the_card_and_runs_none_of_it(app):
    text = app.get("/model").text
    assert "<em>card</em>" in text
    assert "&lt;b&gt;" in text
    assert "calibrated probability of 50 % or more" in text


# what the file says


def test_facts_and_hints_come_from_the_metadata(app):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0131] = "Canon", "Canon EOS 80D", "Adobe Photoshop 24.0"
    exif.get_ifd(0x8769)[0x9003] = "2021:05:04 10:11:12"
    row = post(app, ("1.jpg", png(kind="JPEG", exif=exif))).json["predictions"][0]
    assert row["file"]["camera"] == "Canon EOS 80D"
    assert row["file"]["taken"] == "2021:05:04 10:11:12"
    assert row["file"]["software"] == "Adobe Photoshop 24.0"
    assert "Its metadata mentions the editor Photoshop." in row["file"]["hints"]


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("parameters", "a cat\nNegative prompt: bad\nSteps: 20, Sampler: Euler a, CFG scale: 7", "Stable Diffusion"),
        ("prompt", '{"3": {"class_type": "KSampler"}}', "ComfyUI"),
        ("Description", "a castle --v 6 Job ID: 1234 Midjourney", "Midjourney"),
        ("XML:com.adobe.xmp", "<x:xmpmeta>...trainedAlgorithmicMedia</x:xmpmeta>", "made by AI"),
        ("XML:com.adobe.xmp", "<x:xmpmeta>...compositeWithTrainedAlgorithmicMedia</x:xmpmeta>", "partly made by AI"),
    ],
)
def test_generators_that_sign_their_images_are_named_as_a_hint(app, key, text, words):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, text)
    hints = post(app, ("1.png", png(pnginfo=info))).json["predictions"][0]["file"]["hints"]
    assert any(words in hint for hint in hints)
    assert not any("made by AI" in hint for hint in hints) or "AI" in words


def test_damaged_content_credentials_are_mentioned_but_not_believed(app):
    box = b"\x00\x00\x00\x40jumb\x00\x00\x00\x1ejumdc2pa\x00\x11\x00\x10\x80\x00\x00\xaa\x008\x9bq\x03c2pa\x00"
    content = png(kind="JPEG")
    content = (
        content[:2]
        + b"\xff\xeb"
        + (len(box) + 10).to_bytes(2, "big")
        + b"JP\x00\x01\x00\x00\x00\x01"
        + box
        + content[2:]
    )
    row = post(app, ("1.jpg", content)).json["predictions"][0]
    assert any("Content Credentials" in hint for hint in row["file"]["hints"])
    assert row["origin"]["credentials"] in ("invalid", "unchecked")  # unchecked: without c2pa-python
    assert row["origin"]["claim"] is None


def test_a_plain_image_has_no_hints(app):
    row = post(app, ("1.png", png())).json["predictions"][0]
    assert row["file"]["hints"] == []
    assert row["origin"] is None


def test_the_card_says_what_the_file_claims_above_the_verdict(app):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7")
    text = post(app, ("1.png", png(230, pnginfo=info)), url="/cards").text
    claim = text.index("The file says it was made with Stable Diffusion (unsigned text).")
    assert claim < text.index('<span class="badge')
    assert 'data-verdict="real"' in text  # unsigned text changes no verdict


def test_a_signed_claim_of_generation_makes_the_verdict_fake_whatever_the_network_says(app, tmp_path, monkeypatch):
    maker = pytest.importorskip("content_credentials_maker", reason="pip install -r requirements-provenance.txt")
    signer = maker.make_signer("Example AI Ltd")
    (tmp_path / "trusted.pem").write_bytes(signer.authority)
    monkeypatch.setenv("FAKEREAL_TRUST_LIST", str(tmp_path / "trusted.pem"))
    content = signer.sign(png(230), "image/png", [maker.created("trainedAlgorithmicMedia")])
    row = post(app, ("1.png", content)).json["predictions"][0]
    assert (row["prediction"], row["verdict"], row["reason"]) == ("fake", "fake", "signed content credentials")
    assert row["p_real"] == round(230 / 255, 6)
    assert (row["origin"]["evidence"], row["origin"]["signer"]) == ("signed", "Example AI Ltd")
    text = post(app, ("1.png", content), url="/cards", stability="on").text
    assert "Signed content credentials from Example AI Ltd say it was generated by AI." in text
    assert "Stable: the label stays the same" in text  # compared with what the network says


# load


def test_a_full_queue_is_answered_with_503_and_when_to_come_again():
    free, entered = threading.Event(), threading.Event()
    network = Brightness()
    with client(network, Limits(queue=2)) as app:
        network.wait = lambda: (entered.set(), free.wait(30))
        answers = []
        first = threading.Thread(target=lambda: answers.append(post(app, ("1.png", png()), ("2.png", png()))))
        first.start()
        assert entered.wait(10)
        for url in ("/api/predict", "/cards", "/"):
            refused = post(app, ("3.png", png()), url=url)
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) >= 1
        assert app.get("/healthz").status_code == 200
        free.set()
        first.join()
        assert answers[0].status_code == 200
        assert post(app, ("3.png", png())).status_code == 200


def test_a_request_that_takes_too_long_is_answered_all_the_same():
    free = threading.Event()
    network = Brightness()
    with client(network, Limits(timeout_s=0.3)) as app:
        network.wait = lambda: free.wait(30)
        started = time.monotonic()
        refused = post(app, ("1.png", png()))
        free.set()
        assert time.monotonic() - started < 5
        assert refused.status_code == 503
        assert refused.json["title"] == "Too slow"
        assert post(app, ("1.png", png())).status_code == 200


def test_a_network_that_fails_once_answers_500_and_goes_on():
    network = Brightness()
    with client(network) as app:

        def fail():
            raise RuntimeError("out of memory")

        network.wait = fail
        assert post(app, ("1.png", png())).status_code == 500
        assert "out of memory" not in post(app, ("1.png", png())).text
        network.wait = lambda: None
        assert post(app, ("1.png", png())).status_code == 200
