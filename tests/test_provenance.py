"""What a file says of its origin: texts of generators, IPTC source types, camera EXIF, content credentials."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from heic_images import ROTATED
from PIL import Image, PngImagePlugin

from fakereal import content_credentials, provenance
from fakereal.embedded_metadata import MAX_TEXT_BYTES, read_embedded_metadata
from fakereal.model.calibration import DecisionRule
from fakereal.predict import journal, run
from fakereal.predict import results as predict_results
from fakereal.predict.inputs import Item
from fakereal.predict.pipeline import RawPrediction
from fakereal.predict.results import decide, details_of
from fakereal.provenance import NO_ORIGIN, Origin, read_origin

try:
    import content_credentials_maker as maker
except ImportError as error:  # c2pa-python or cryptography
    maker, why = None, str(error)
needs_c2pa = pytest.mark.skipif(maker is None, reason="c2pa-python: pip install -r requirements-provenance.txt")

SD = "a cat, <lora:x:1>\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
COMFY = '{"3": {"class_type": "KSampler", "inputs": {"seed": 1}}}'
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MOST_S = 1.0  # of processor time, for any one file; on a slow machine too


def noise(size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def saved(kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    noise().save(content, kind, **options)
    return content.getvalue()


def png(*texts: tuple[str, str], compressed: bool = False) -> bytes:
    info = PngImagePlugin.PngInfo()
    for keyword, text in texts:
        info.add_itxt(keyword, text, zip=compressed)
    return saved("PNG", pnginfo=info)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(name: bytes, data: bytes, times: int = 1) -> bytes:
    plain = saved("PNG")
    return plain[:33] + png_chunk(name, data) * times + plain[33:]  # behind the header


def with_segment(marker: int, data: bytes, times: int = 1) -> bytes:
    plain = saved("JPEG")
    return plain[:2] + (bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data) * times + plain[2:]


def exif(tags: dict[int, object], inner: dict[int, object] | None = None) -> Image.Exif:
    block = Image.Exif()
    block.update(tags)
    block.get_ifd(0x8769).update(inner or {})
    return block


def xmp(body: str) -> bytes:
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
        f' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{body}</rdf:RDF></x:xmpmeta>'
    ).encode()


def jpeg_with_xmp(body: str) -> bytes:
    return with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(body))


# texts of generators


@pytest.mark.parametrize(
    ("texts", "generator"),
    [
        ([("parameters", SD)], "Stable Diffusion"),
        ([("parameters", "a cat\nSteps: 4, Schedule type: Simple, CFG scale: 1")], "Stable Diffusion"),
        ([("prompt", COMFY)], "ComfyUI"),
        ([("workflow", '{"last_node_id": 9, "last_link_id": 9, "nodes": []}')], "ComfyUI"),
        ([("invokeai_metadata", '{"positive_prompt": "a cat"}')], "InvokeAI"),
        ([("Dream", '"a cat" -s 50 -S 1 -W 512')], "InvokeAI"),
        ([("Software", "NovelAI"), ("Description", "a cat"), ("Source", "NovelAI Diffusion V4")], "NovelAI"),
        ([("parameters", SD + ", Version: Fooocus v2.5.5"), ("fooocus_scheme", "a1111")], "Fooocus"),
        ([("parameters", '{"sui_image_params": {"prompt": "a cat"}}')], "SwarmUI"),
        ([("Description", "a castle --v 6.1 Job ID: 0f3c6ad0-5a4e-4b5e-9d52-0f1f1a2b3c4d")], "Midjourney"),
        ([("Software", "OpenAI ChatGPT")], "DALL-E or ChatGPT"),
        ([("Software", "Adobe Firefly 3")], "Adobe Firefly"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_generators_are_named_by_their_png_texts(texts, generator, compressed):
    origin = read_origin(png(*texts, compressed=compressed))
    assert (origin.claim, origin.generator, origin.evidence) == ("ai_generated", generator, "unsigned_text")
    assert origin.summary == f"The file says it was made with {generator} (unsigned text)."


@pytest.mark.parametrize("name", [b"tEXt", b"zTXt"])
def test_old_png_texts_are_read_too_and_also_behind_the_pixels(name):
    text = SD.encode("latin-1")
    data = b"parameters\0" + (b"\0" + zlib.compress(text) if name == b"zTXt" else text)
    plain = saved("PNG")
    for content in (with_chunk(name, data), plain[:-12] + png_chunk(name, data) + plain[-12:]):
        assert read_origin(content).generator == "Stable Diffusion"


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "AVIF"])
@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le"])
def test_parameters_in_the_exif_user_comment_are_read(kind, encoding):
    comment = b"UNICODE\0" + SD.encode(encoding)
    origin = read_origin(saved(kind, exif=exif({0x010E: "a cat"}, {0x9286: comment})))
    assert (origin.claim, origin.generator) == ("ai_generated", "Stable Diffusion")


def test_the_tags_of_a_tiff_file_are_read():
    assert read_origin(saved("TIFF", tiffinfo={0x0131: "Fooocus v2.5.5"})).generator == "Fooocus"


def test_the_workflow_that_comfyui_writes_as_make_and_model_is_no_camera():
    origin = read_origin(saved("WEBP", exif=exif({0x010F: "workflow:{}", 0x0110: f"prompt:{COMFY}"})))
    assert (origin.claim, origin.generator, origin.camera) == ("ai_generated", "ComfyUI", None)


@pytest.mark.parametrize(
    ("tags", "generator"),
    [
        ({0x0131: "Fooocus v2.5.5"}, "Fooocus"),
        ({0x010F: "Black Forest Labs", 0x0110: "flux-pro-1.1"}, "Flux"),
        ({0x013B: "Imagined with AI"}, "Meta AI"),
        ({0x010E: "Signature: " + "QUJD" * 20}, "Grok"),
    ],
)
def test_generators_are_named_by_their_exif(tags, generator):
    origin = read_origin(saved("JPEG", exif=exif(tags)))
    assert (origin.claim, origin.generator, origin.camera) == ("ai_generated", generator, None)


@pytest.mark.parametrize(
    "body",
    [
        '<rdf:Description photoshop:Credit="Made with Google AI"/>',
        "<rdf:Description><photoshop:Credit>Made with Google AI</photoshop:Credit></rdf:Description>",
    ],
)
def test_a_credit_in_xmp_names_the_generator(body):
    assert read_origin(jpeg_with_xmp(body)).generator == "Google AI"


def test_a_credit_in_iptc_names_the_generator():
    credit = b"Made with Google AI"
    dataset = b"\x1c\x02\x6e" + struct.pack(">H", len(credit)) + credit
    block = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", len(dataset)) + dataset
    assert read_origin(with_segment(0xED, block)).generator == "Google AI"


def test_chinas_label_for_generated_content_is_a_claim():
    label = '{"AIGC":{"Label":"1","ContentProducer":"001191110108","ProduceID":"x"}}'
    origin = read_origin(saved("JPEG", exif=exif({}, {0x9286: b"ASCII\0\0\0" + label.encode()})))
    assert (origin.claim, origin.generator) == ("ai_generated", None)
    assert origin.summary == "The file says it was generated by AI (unsigned text)."


@pytest.mark.parametrize(
    "content",
    [
        png(("Title", "Firefly over the lake")),
        png(("Description", "my talk on Midjourney and Stable Diffusion, 20 steps to success")),
        png(("Comment", "prompt: write to me; parameters: none")),
        with_segment(0xFE, b"drawn after an image by ComfyUI"),
        saved("JPEG", exif=exif({0x013B: "Leonardo Rossi"})),
        saved("JPEG", exif=exif({0x010E: "the imagen exhibition"})),
    ],
)
def test_words_in_titles_and_captions_are_no_claim(content):
    assert read_origin(content).claim is None


def test_glasses_with_a_camera_are_no_generator():
    origin = read_origin(saved("JPEG", exif=exif({0x010F: "Meta AI", 0x0110: "Ray-Ban Meta Smart Glasses"})))
    assert (origin.claim, origin.camera) == ("camera", "Meta AI Ray-Ban Meta Smart Glasses")


# IPTC digital source type


@pytest.mark.parametrize(
    ("term", "claim", "summary"),
    [
        ("trainedAlgorithmicMedia", "ai_generated", "The file says it was generated by AI (unsigned text)."),
        ("compositeWithTrainedAlgorithmicMedia", "ai_edited", "The file says it was edited with AI (unsigned text)."),
        ("digitalCapture", "camera", "The file says it was taken with a camera (unsigned text)."),
        ("algorithmicMedia", None, None),
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        '<rdf:Description Iptc4xmpExt:DigitalSourceType="{}"/>',
        "<rdf:Description><Iptc4xmpExt:DigitalSourceType>{}</Iptc4xmpExt:DigitalSourceType></rdf:Description>",
        '<rdf:Description><Iptc4xmpExt:DigitalSourceType rdf:resource="{}"/></rdf:Description>',
    ],
)
def test_the_source_type_in_xmp_is_a_claim(term, claim, summary, form):
    origin = read_origin(jpeg_with_xmp(form.format(SOURCE_TYPES + term)))
    assert (origin.claim, origin.source_types) == (claim, (term,))
    assert summary is None or origin.summary == summary


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF"])
def test_xmp_is_read_in_every_format(kind):
    packet = xmp(f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPES}trainedAlgorithmicMedia"/>')
    if kind == "PNG":
        content = png(("XML:com.adobe.xmp", packet.decode()))
    elif kind == "TIFF":
        content = saved(kind, tiffinfo={700: packet})
    elif kind == "GIF":
        plain = saved(kind)
        content = plain[:-1] + b"!\xff\x0bXMP DataXMP" + packet + b"\x01\x00" + plain[-1:]
    else:
        content = saved(kind, xmp=packet)
    assert read_origin(content).claim == "ai_generated"


# cameras and programs


def test_camera_exif_is_a_weak_hint():
    tags = {0x010F: "Canon", 0x0110: "Canon EOS 80D", 0x0131: "Adobe Photoshop 24.0"}
    origin = read_origin(saved("JPEG", exif=exif(tags, {0x9003: "2021:05:04 10:11:12"})))
    assert (origin.claim, origin.evidence, origin.camera) == ("camera", "camera_exif", "Canon EOS 80D")
    assert (origin.taken, origin.software) == ("2021:05:04 10:11:12", "Adobe Photoshop 24.0")
    assert origin.summary == "The file names a camera, Canon EOS 80D (unsigned EXIF, which anyone can write)."
    assert "Its metadata mentions the editor Photoshop." in origin.notes


def test_a_brand_is_named_once():
    tags = {0x010F: "NIKON CORPORATION", 0x0110: "NIKON D750"}
    assert read_origin(saved("JPEG", exif=exif(tags))).camera == "NIKON D750"


def test_generator_parameters_go_before_camera_exif():
    comment = b"UNICODE\0" + SD.encode("utf-16-be")
    origin = read_origin(saved("JPEG", exif=exif({0x010F: "Canon", 0x0110: "EOS 80D"}, {0x9286: comment})))
    assert (origin.claim, origin.evidence, origin.camera) == ("ai_generated", "unsigned_text", "Canon EOS 80D")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_a_plain_image_says_nothing(kind):
    assert read_origin(saved(kind)).evidence is None


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"not an image", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"])
def test_what_is_no_image_says_nothing(content):
    assert read_origin(content) == NO_ORIGIN


def test_what_is_said_survives_json():
    origin = read_origin(saved("JPEG", exif=exif({0x010F: "Canon", 0x0110: "EOS 80D"})))
    text = json.dumps(origin.as_json(), allow_nan=False)
    assert Origin.from_json(json.loads(text)) == origin


def test_names_are_short_printable_lines():
    origin = read_origin(png(("Software", "<b>\x07a\nb\u202e" + 5000 * "x")))
    assert origin.software.startswith("<b> a b x")
    assert len(origin.software) <= 120


# hostile files


def billion_laughs() -> str:
    entities = "".join(f'<!ENTITY l{n} "{10 * f"&l{n - 1};"}">' for n in range(1, 10))
    return f'<!DOCTYPE x [<!ENTITY l0 "lol">{entities}<!ENTITY f SYSTEM "file:///etc/passwd">]><a:CreatorTool>&l9;&f;'


HOSTILE = {
    "a compressed text of 64 MB": lambda: with_chunk(b"zTXt", b"parameters\0\0" + bomb(64)),
    "a thousand compressed texts": lambda: with_chunk(b"iTXt", b"parameters\0\1\0\0\0" + bomb(4), 1000),
    "a thousand compressed texts that break": lambda: with_chunk(b"zTXt", b"a\0\0" + bomb(4)[:3000], 1000),
    "a hundred thousand texts": lambda: with_chunk(b"tEXt", b"a\0b", 100_000),
    "an XMP bomb": lambda: jpeg_with_xmp(billion_laughs()),
    "XMP nested deep": lambda: png(("XML:com.adobe.xmp", "<x:xmpmeta>" + 200_000 * "<a>")),
    "XMP of one property's name": lambda: png(("XML:com.adobe.xmp", 20_000 * "<a:CreatorTool ")),
    "XMP of open attributes": lambda: png(("XML:com.adobe.xmp", 20_000 * ':Credit="')),
    "texts that look like parameters": lambda: png(("parameters", 20_000 * "Steps: 1, AIGC: ")),
    "digits": lambda: png(("parameters", "Steps: " + 200_000 * "1")),
    "fill bytes": lambda: b"\xff\xd8" + 10_000_000 * b"\xff",
    "a hundred thousand segments": lambda: with_segment(0xFE, b"", 100_000),
    "a thousand EXIF blocks": lambda: with_segment(0xE1, b"Exif\0\0" + many_entries(), 1000),
    "empty RIFF chunks": lambda: b"RIFF\0\0\0\0WEBP" + 1_000_000 * b"EXIF\0\0\0\0",
    "boxes": lambda: b"\0\0\0\x10ftypavif\0\0\0\0" + 1_000_000 * b"\0\0\0\x08free",
}


def bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def many_entries() -> bytes:
    """A directory whose every entry claims the whole block as its text."""
    entry = struct.pack("<HHII", 0x010E, 2, 60_000, 0)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 5000) + 5000 * entry


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata_neither_crash_nor_take_long(name):
    content = HOSTILE[name]()
    before = time.process_time()
    origin = read_origin(content)
    assert time.process_time() - before < MOST_S
    assert len(json.dumps(origin.as_json())) < 5000
    assert "root:" not in origin.summary


def test_compressed_texts_are_inflated_up_to_a_limit():
    found = read_embedded_metadata(with_chunk(b"zTXt", b"parameters\0\0" + bomb(4)))
    assert [len(text) for _, text in found.texts] == [MAX_TEXT_BYTES]


def test_a_directory_that_points_at_itself_ends():
    block = struct.pack("<2sHIH", b"II", 42, 8, 1) + struct.pack("<HHII", 0x8769, 4, 1, 8) + bytes(4)
    assert read_origin(with_segment(0xE1, b"Exif\0\0" + block)) == NO_ORIGIN


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_damaged_and_cut_files_never_raise(kind):
    tags = exif({0x010F: "Canon", 0x0110: "EOS"}, {0x9286: b"UNICODE\0" + SD.encode("utf-16-be")})
    content = bytearray(saved(kind, exif=tags))
    rng = np.random.default_rng(0)
    for end in rng.integers(0, len(content), 200):
        read_origin(bytes(content[:end]))
    for _ in range(500):
        damaged = content.copy()
        for place in rng.integers(0, min(len(damaged), 700), 4):
            damaged[place] = rng.integers(256)
        read_origin(bytes(damaged))


# content credentials


@pytest.fixture(scope="module")
def signer():
    return maker.make_signer("Example AI Ltd")


@pytest.fixture
def trusted(signer, tmp_path, monkeypatch):
    (tmp_path / "trusted.pem").write_bytes(signer.authority)
    monkeypatch.setenv(content_credentials.TRUST_LIST_VARIABLE, str(tmp_path / "trusted.pem"))


@needs_c2pa
@pytest.mark.parametrize(("kind", "mime"), [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/webp")])
def test_valid_credentials_of_a_trusted_signer_are_signed_evidence(kind, mime, signer, trusted):
    content = signer.sign(saved(kind), mime, [maker.created("trainedAlgorithmicMedia")])
    origin = read_origin(content)
    assert (origin.claim, origin.evidence, origin.credentials) == ("ai_generated", "signed", "trusted")
    assert (origin.signer, origin.generator) == ("Example AI Ltd", "Test Generator")
    assert origin.source_types == ("trainedAlgorithmicMedia",)
    assert origin.summary == "Signed content credentials from Example AI Ltd say it was generated by AI."
    assert origin.proves_fake


@needs_c2pa
@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_credentials_are_found_in_less_common_formats(kind, signer, trusted):
    content = signer.sign(saved(kind), f"image/{kind.lower()}", [maker.created("trainedAlgorithmicMedia")])
    assert read_origin(content).evidence == "signed"


@needs_c2pa
def test_credentials_are_found_in_avif(signer, trusted):
    content = signer.sign(saved("AVIF"), "image/avif", [maker.created("trainedAlgorithmicMedia")])
    assert read_origin(content).evidence == "signed"


@needs_c2pa
def test_credentials_are_found_in_heic(signer, trusted):
    content = signer.sign(ROTATED, "image/heic", [maker.created("trainedAlgorithmicMedia")])
    assert read_origin(content).evidence == "signed"


def test_the_camera_of_a_heic_photo_is_read():
    assert read_origin(ROTATED).camera == "Phone"
    assert read_embedded_metadata(ROTATED).mime == "image/heic"
    general = ROTATED[:8] + b"mif1" + ROTATED[12:]
    assert read_embedded_metadata(general).mime == "image/heic"


@needs_c2pa
def test_valid_credentials_of_an_unknown_signer_prove_nothing(signer):
    origin = read_origin(signer.sign(saved("JPEG"), "image/jpeg", [maker.created("trainedAlgorithmicMedia")]))
    assert (origin.claim, origin.evidence) == ("ai_generated", "signed_unknown_signer")
    assert 'unknown signer, which calls itself "Example AI Ltd"' in origin.summary
    assert not origin.proves_fake


@needs_c2pa
def test_credentials_of_a_changed_image_are_invalid_and_claim_nothing(signer, trusted):
    content = bytearray(signer.sign(saved("JPEG"), "image/jpeg", [maker.created("trainedAlgorithmicMedia")]))
    content[-100] ^= 1
    origin = read_origin(bytes(content))
    assert (origin.claim, origin.evidence, origin.credentials) == (None, "invalid_signature", "invalid")
    assert "the file does not match what was signed" in origin.summary
    assert "prove nothing" in origin.summary


@needs_c2pa
def test_credentials_whose_statement_was_changed_are_invalid(signer, trusted):
    content = signer.sign(saved("JPEG"), "image/jpeg", [maker.created("digitalCapture")])
    origin = read_origin(content.replace(b"Test Generator", b"Best Generator"))
    assert (origin.claim, origin.evidence) == (None, "invalid_signature")


@needs_c2pa
@pytest.mark.parametrize(
    ("actions", "claim"),
    [
        ([("created", "digitalCapture")], "camera"),
        ([("created", "digitalCapture"), ("edited", "compositeWithTrainedAlgorithmicMedia")], "ai_edited"),
        ([("created", "digitalCapture"), ("edited", "trainedAlgorithmicMedia")], "ai_edited"),
        ([("created", "digitalCreation")], None),
    ],
)
def test_the_source_types_of_the_actions_make_the_claim(actions, claim, signer, trusted):
    stated = [{**maker.created(term), "action": f"c2pa.{action}"} for action, term in actions]
    origin = read_origin(signer.sign(saved("JPEG"), "image/jpeg", stated))
    assert (origin.claim, origin.evidence) == (claim, "signed")
    assert not origin.proves_fake


@needs_c2pa
def test_an_edited_image_keeps_the_claim_of_what_it_was_made_from(signer, trusted):
    generated = signer.sign(saved("JPEG"), "image/jpeg", [maker.created("trainedAlgorithmicMedia")])
    opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["xmp:iid:parent"]}}
    origin = read_origin(signer.sign(generated, "image/jpeg", [opened], [generated]))
    assert (origin.claim, origin.evidence) == ("ai_generated", "signed")


@needs_c2pa
def test_a_trusted_editor_does_not_vouch_for_the_credentials_of_a_stranger(signer, trusted):
    stranger = maker.make_signer("Stranger")
    generated = stranger.sign(saved("JPEG"), "image/jpeg", [maker.created("trainedAlgorithmicMedia")])
    opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["xmp:iid:parent"]}}
    origin = read_origin(signer.sign(generated, "image/jpeg", [opened], [generated]))
    assert origin.claim == "ai_generated"
    assert not origin.proves_fake


@needs_c2pa
def test_a_certificate_that_has_expired_vouches_for_nobody(tmp_path, monkeypatch):
    signer = maker.make_signer("Example AI Ltd", valid_s=1.5)
    content = signer.sign(saved("JPEG"), "image/jpeg", [maker.created("trainedAlgorithmicMedia")])
    (tmp_path / "trusted.pem").write_bytes(signer.authority)
    monkeypatch.setenv(content_credentials.TRUST_LIST_VARIABLE, str(tmp_path / "trusted.pem"))
    time.sleep(2.5)
    origin = read_origin(content)
    assert origin.evidence == "signed_unknown_signer"
    assert any("expired" in note for note in origin.notes)


@needs_c2pa
def test_without_the_library_credentials_are_reported_as_unchecked(signer, trusted, monkeypatch):
    content = signer.sign(saved("JPEG"), "image/jpeg", [maker.created("trainedAlgorithmicMedia")])
    monkeypatch.setattr(content_credentials, "_library", lambda: None)
    origin = read_origin(content)
    assert (origin.claim, origin.evidence, origin.credentials) == ("ai_generated", "unchecked_signature", "unchecked")
    assert "signature not checked: pip install -r requirements-provenance.txt" in origin.summary
    assert not origin.proves_fake


@needs_c2pa
def test_a_trust_list_that_is_none_leaves_signatures_unchecked(signer, tmp_path, monkeypatch, capsys):
    (tmp_path / "list.pem").write_text("no certificates")
    monkeypatch.setenv(content_credentials.TRUST_LIST_VARIABLE, str(tmp_path / "list.pem"))
    content = signer.sign(saved("JPEG"), "image/jpeg", [maker.created("trainedAlgorithmicMedia")])
    assert [read_origin(content).evidence for _ in range(2)] == ["unchecked_signature"] * 2
    assert capsys.readouterr().err.count("is no usable trust list") == 1


@needs_c2pa
def test_damaged_credentials_never_raise(signer, trusted):
    content = signer.sign(saved("PNG"), "image/png", [maker.created("trainedAlgorithmicMedia")])
    start, rng = content.index(b"caBX"), np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(content)
        for place in rng.integers(start + 4, start + 3000, 8):
            damaged[place] = rng.integers(256)
        assert read_origin(bytes(damaged)).evidence != "signed"


def test_signed_text_goes_before_unsigned_text(monkeypatch):
    state = content_credentials.ContentCredentials("trusted", "Camera Ltd", source_types=("digitalCapture",))
    monkeypatch.setattr(provenance, "check_content_credentials", lambda content, metadata: state)
    content = with_chunk(b"caBX", b"jumb").replace(b"IDAT", b"IDAT", 1)
    content = content[:33] + png_chunk(b"tEXt", b"parameters\0" + SD.encode()) + content[33:]
    origin = read_origin(content)
    assert (origin.claim, origin.evidence) == ("camera", "signed")
    assert any("Stable Diffusion" in note for note in origin.notes)


def test_an_invalid_signature_leaves_the_unsigned_text(monkeypatch):
    state = content_credentials.ContentCredentials("invalid", problem="the file does not match what was signed")
    monkeypatch.setattr(provenance, "check_content_credentials", lambda content, metadata: state)
    content = with_chunk(b"caBX", b"jumb")
    content = content[:33] + png_chunk(b"tEXt", b"parameters\0" + SD.encode()) + content[33:]
    origin = read_origin(content)
    assert (origin.claim, origin.evidence, origin.credentials) == ("ai_generated", "unsigned_text", "invalid")
    assert any("invalid" in note for note in origin.notes)


# predictions


SIGNED = Origin(provenance.AI_GENERATED, "Example", provenance.SIGNED, "Signed.", "Example AI Ltd", "trusted")


def raw(p_real: float, origin: Origin) -> RawPrediction:
    return RawPrediction(Item(Path(), "1.png", 1), p_real=p_real, origin=origin)


def test_a_signed_claim_of_generation_makes_the_verdict_fake_and_leaves_p_fake():
    row = details_of(decide([raw(0.9, SIGNED)], DecisionRule())[0])
    assert (row["prediction"], row["verdict"], row["reason"]) == ("fake", "fake", "signed content credentials")
    assert (row["p_fake"], row["p_real"], row["confidence"]) == (0.1, 0.9, 0.1)
    assert row["origin"] == SIGNED.as_json()


def test_what_the_network_says_stays_known():
    result = decide([raw(0.9, SIGNED)], DecisionRule())[0]
    assert (result.label, result.network_label) == (0, 1)


@pytest.mark.parametrize(
    "origin",
    [
        replace(SIGNED, evidence=provenance.SIGNED_UNKNOWN_SIGNER),
        replace(SIGNED, evidence=provenance.UNCHECKED_SIGNATURE),
        replace(SIGNED, evidence=provenance.UNSIGNED_TEXT),
        replace(SIGNED, claim=provenance.AI_EDITED),
        replace(SIGNED, claim=provenance.CAMERA),
        NO_ORIGIN,
    ],
)
def test_no_other_claim_changes_the_verdict(origin):
    row = details_of(decide([raw(0.9, origin)], DecisionRule())[0])
    assert (row["prediction"], row["verdict"], row["reason"], row["confidence"]) == ("real", "real", None, 0.9)


def test_the_summary_counts_signed_and_unproven_claims():
    unproven = replace(SIGNED, evidence=provenance.UNSIGNED_TEXT)
    results = decide([raw(0.9, SIGNED), raw(0.1, unproven), raw(0.9, unproven), raw(0.9, NO_ORIGIN)], DecisionRule())
    counts = predict_results.ResultCounts()
    assert len(list(counts.count(results))) == 4
    assert (counts.signed, counts.claim_ai) == (1, 2)
    text = run.summary(counts, run.PredictConfig())
    assert "1 called fake because their signed content credentials say so" in text
    assert "2 whose files claim, without proof, that AI made or edited them (see --details)" in text


def test_details_have_the_origin_in_every_format(tmp_path):
    rows = [details_of(result) for result in decide([raw(0.9, SIGNED), raw(0.9, NO_ORIGIN)], DecisionRule())]
    for suffix in (".json", ".csv"):
        predict_results.write_details(tmp_path / f"details{suffix}", rows)
    assert [row["origin"] for row in json.loads((tmp_path / "details.json").read_text())] == [SIGNED.as_json(), None]
    assert ",Signed.," in (tmp_path / "details.csv").read_text()


def test_the_journal_keeps_the_origin():
    prediction = raw(0.9, SIGNED)
    assert journal.from_json(journal.to_json(prediction), prediction.item) == prediction


def test_the_trust_list_is_read_from_the_settings_and_still_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv(content_credentials.TRUST_LIST_VARIABLE, raising=False)
    for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    assert content_credentials._trust_list() is None
    for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):  # the later one wins
        path = tmp_path / variable / "fakereal" / "C2PA-TRUST-LIST.pem"
        path.parent.mkdir(parents=True)
        path.write_text("")
        assert content_credentials._trust_list() == path
