"""Read what an image file itself says about its origin: content credentials, generator parameters, camera EXIF.

A claim is evidence separate from the network's: it never changes p_fake. Unsigned text proves nothing, since
anyone can write or remove it; valid content credentials from a trusted signer prove who said it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from fakereal.content_credentials import (
    INVALID,
    TRUSTED,
    UNCHECKED,
    UNKNOWN_SIGNER,
    ContentCredentials,
    check_content_credentials,
)
from fakereal.embedded_metadata import EmbeddedMetadata, read_embedded_metadata

AI_GENERATED, AI_EDITED, CAMERA = "ai_generated", "ai_edited", "camera"
"""What a file can claim."""

SIGNED, SIGNED_UNKNOWN_SIGNER = "signed", "signed_unknown_signer"
UNCHECKED_SIGNATURE, INVALID_SIGNATURE = "unchecked_signature", "invalid_signature"
UNSIGNED_TEXT, CAMERA_EXIF = "unsigned_text", "camera_exif"
"""What a claim rests on, the strongest first."""

SIGNED_REASON = "signed content credentials"
"""The reason of a verdict that content credentials give."""

_LONGEST_NAME = 120  # characters of a name that is shown

_CLAIM_OF_SOURCE_TYPE = {
    "trainedAlgorithmicMedia": AI_GENERATED,
    "compositeWithTrainedAlgorithmicMedia": AI_EDITED,
    "compositeSynthetic": AI_EDITED,
    "digitalCapture": CAMERA,
    "computationalCapture": CAMERA,
    "negativeFilm": CAMERA,
    "positiveFilm": CAMERA,
    "print": CAMERA,
}
"""IPTC digital source types (cv.iptc.org/newscodes/digitalsourcetype); the others say nothing that counts here."""

_TOOLS = {
    "Midjourney": r"midjourney",
    "DALL-E or ChatGPT": r"dall[·\-\s]?e\b|openai|chatgpt|gpt-4o|gpt-image",
    "Stable Diffusion": r"stable[\s_-]?diffusion|automatic1111|sd-webui|dreamstudio|stability ai",
    "ComfyUI": r"comfyui",
    "InvokeAI": r"invokeai",
    "NovelAI": r"novelai",
    "Fooocus": r"fooocus",
    "Draw Things": r"draw things",
    "Adobe Firefly": r"adobe firefly",
    "Google AI": r"made with google ai|google (?:generative|gemini|imagen)|nano banana",
    "Flux": r"black forest labs|\bflux[\s._-]?(?:1|2|dev|pro|schnell)\b",
    "Bing Image Creator": r"bing image creator|microsoft designer|image creator from",
    "Grok": r"\bgrok\b|(?-i:\bxAI\b)",
    "Leonardo": r"leonardo\.ai",
    "Ideogram": r"ideogram",
    "Recraft": r"recraft",
    "Meta AI": r"imagined with ai",
}
"""Image generators by what they write where a file names the program, the author or the credit."""

_TOOL = re.compile("|".join(f"(?P<t{place}>{each})" for place, each in enumerate(_TOOLS.values())), re.IGNORECASE)
_TOOL_KEYWORDS = {"software", "source", "author", "credit", "generator", "creator tool"}
_TOOL_TAGS = ("Software", "Make", "Model", "Artist", "HostComputer", "XPAuthor")
_TOOL_PROPERTIES = ("CreatorTool", "Credit", "softwareAgent", "AISystemUsed", "Source")

_PARAMETERS = {
    "SwarmUI": r'"sui_image_params"',
    "Fooocus": r'"?fooocus_scheme|\bVersion: Fooocus|"metadata_scheme": ?"fooocus',
    "ComfyUI": r'"class_type"\s*:|"last_node_id"\s*:',
    "InvokeAI": r'"app_version"\s*:\s*"invokeai|"invokeai_metadata"',
    "NovelAI": r'"signed_hash"\s*:\s*"|"request_type"\s*:\s*"PromptGenerateRequest"',
    "Stable Diffusion": r"\bSteps: \d+, .{0,40}?(?:Sampler|Schedule|CFG scale)\b|\bNegative prompt: |\bCFG scale: \d",
    "Midjourney": r"\bJob ID: ?[0-9a-f-]{4,36}",
    "Grok": r"\ASignature: [A-Za-z0-9+/=]{40,}",
}
"""Generators by the form of their parameters, in the order in which they are tried."""

_PARAMETER = [(name, re.compile(each, re.IGNORECASE)) for name, each in _PARAMETERS.items()]
_PARAMETER_KEYWORDS = {
    "invokeai_metadata": "InvokeAI",
    "invokeai_graph": "InvokeAI",
    "sd-metadata": "InvokeAI",
    "dream": "InvokeAI",
    "fooocus_scheme": "Fooocus",
}
"""PNG keywords, in lower case, that one generator alone writes."""

_PARAMETER_TAGS = ("UserComment", "ImageDescription", "XPComment", "Make", "Model")  # ComfyUI's WebP: Make and Model
_AI_LABEL = re.compile(r'AIGC"?\s*[:=]\s*["\'{].{0,80}?Label(?:"|&quot;)?\s*:\s*(?:"|&quot;)?[123]', re.DOTALL)
_AI_SOURCE_TYPE = re.compile(r"\b(?:compositeWithT|t)rainedAlgorithmicMedia\b|\bcompositeSynthetic\b")
_SOURCE_TYPE = re.compile(r"digitalsourcetype/([A-Za-z]{4,60})")
_MAX_OCCURRENCES = 8  # of a property's name in XMP
_XMP_VALUE = re.compile(
    r"""\s{0,8}=\s{0,8}["']([^"']{0,65536})|[^<>]{0,400}>([^<]{0,65536}(?:<[^>]{1,200}>[^<]{0,65536}){0,3})"""
)
"""What follows a property's name: an attribute's value, or an element's text, also inside of rdf:Alt and rdf:li."""

_EDITOR = re.compile(
    r"photoshop|lightroom|gimp|affinity|pixelmator|snapseed|picsart|facetune|canva|faceapp|remini", re.IGNORECASE
)


@dataclass(frozen=True)
class Origin:
    """What a file says about its origin; all of it unproven unless `evidence` is `signed`."""

    claim: str | None = None  # AI_GENERATED, AI_EDITED, CAMERA or None
    generator: str | None = None  # the program that is named as the maker
    evidence: str | None = None  # what the claim rests on: SIGNED, ..., CAMERA_EXIF; None: the file says nothing
    summary: str = "The file says nothing about its origin."  # one sentence
    signer: str | None = None  # of content credentials
    credentials: str | None = None  # their state: trusted, unknown_signer, invalid, unchecked; None: the file has none
    source_types: tuple[str, ...] = ()  # IPTC digital source types, from content credentials and XMP
    camera: str | None = None  # EXIF make and model
    taken: str | None = None  # EXIF date and time, as it stands there
    software: str | None = None  # the program that wrote the file
    notes: tuple[str, ...] = ()  # a sentence on each thing found

    @property
    def proves_fake(self) -> bool:
        """Whether a trusted signer states that AI generated the image: then the verdict is fake."""
        return self.claim == AI_GENERATED and self.evidence == SIGNED

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Origin:
        """Return what `as_json` gave."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


NO_ORIGIN = Origin()
"""The origin of a file that says nothing, as most do."""


def read_origin(content: bytes) -> Origin:
    """Return what a file says about its origin; what can't be read counts as not there.

    Takes some 10 microseconds for a file without metadata, and some milliseconds where a signature is checked.

    Args:
        content: the whole file.
    """
    metadata = read_embedded_metadata(content)
    if not (metadata.texts or metadata.exif or metadata.xmp or metadata.c2pa):
        return NO_ORIGIN
    credentials = check_content_credentials(content, metadata) if metadata.c2pa else None
    return _origin(metadata, credentials)


def _origin(metadata: EmbeddedMetadata, credentials: ContentCredentials | None) -> Origin:
    text_claim, text_generator = _text_claim(metadata)
    camera, software = _camera(metadata), _software(metadata)
    claim, generator, evidence = _strongest(credentials, text_claim, text_generator, camera, software)
    signer = _printable(credentials.signer) if credentials and credentials.state != INVALID else None
    found = Origin(
        claim,
        generator,
        evidence,
        signer=signer,
        credentials=credentials.state if credentials else None,
        source_types=_source_types(metadata, credentials),
        camera=camera,
        taken=_printable(metadata.exif.get("DateTimeOriginal")),
        software=software,
    )
    notes = tuple(_notes(found, metadata, credentials, text_claim, text_generator))
    return replace(found, summary=_summary(found, credentials), notes=notes)


def _strongest(
    credentials: ContentCredentials | None,
    text_claim: str | None,
    text_generator: str | None,
    camera: str | None,
    software: str | None,
) -> tuple[str | None, str | None, str | None]:
    """Return claim, generator and evidence: what is signed goes before what is not."""
    if credentials and credentials.state != INVALID:
        evidence = _EVIDENCE_OF_STATE[credentials.state]
        if evidence == SIGNED and not credentials.parents_valid:
            evidence = SIGNED_UNKNOWN_SIGNER
        claim = _signed_claim(credentials)
        if claim or not text_claim:
            return claim, _printable(credentials.generator), evidence
    if text_claim:
        return text_claim, text_generator, UNSIGNED_TEXT
    if credentials:
        return None, None, INVALID_SIGNATURE
    if camera:
        return CAMERA, None, CAMERA_EXIF
    return None, None, UNSIGNED_TEXT if software else None


_EVIDENCE_OF_STATE = {
    TRUSTED: SIGNED,
    UNKNOWN_SIGNER: SIGNED_UNKNOWN_SIGNER,
    UNCHECKED: UNCHECKED_SIGNATURE,
    INVALID: INVALID_SIGNATURE,
}


def _signed_claim(credentials: ContentCredentials) -> str | None:
    claims = {_CLAIM_OF_SOURCE_TYPE.get(term) for term in credentials.source_types}
    parts = {_CLAIM_OF_SOURCE_TYPE.get(term) for term in credentials.component_source_types}
    if AI_GENERATED in claims:
        return AI_EDITED if CAMERA in claims else AI_GENERATED
    if AI_EDITED in claims or parts & {AI_GENERATED, AI_EDITED}:
        return AI_EDITED
    return CAMERA if CAMERA in claims else None


def _text_claim(metadata: EmbeddedMetadata) -> tuple[str | None, str | None]:
    """Return claim and generator from unsigned text."""
    generator = _parameters(metadata) or _tool(metadata)
    declared = {_CLAIM_OF_SOURCE_TYPE.get(term) for term in _xmp_source_types(metadata.xmp)}
    if AI_GENERATED in declared:
        return AI_GENERATED, generator
    if AI_EDITED in declared:
        return AI_EDITED, generator
    if generator or _has_ai_label(metadata):
        return AI_GENERATED, generator
    return CAMERA if CAMERA in declared else None, None


def _parameters(metadata: EmbeddedMetadata) -> str | None:
    """Return the generator whose parameters a file holds."""
    for keyword, _ in metadata.texts:
        if name := _PARAMETER_KEYWORDS.get(keyword.lower()):
            return name
    texts = [text for _, text in metadata.texts]
    texts += [metadata.exif[tag] for tag in _PARAMETER_TAGS if tag in metadata.exif]
    texts += [found for name in ("UserComment", "description") if (found := _xmp_property(metadata.xmp, name))]
    for name, pattern in _PARAMETER:
        if any(pattern.search(text) for text in texts):
            return name
    return None


def _tool(metadata: EmbeddedMetadata) -> str | None:
    """Return the generator that a file names as its program, author or credit."""
    places = [text for keyword, text in metadata.texts if keyword.lower() in _TOOL_KEYWORDS]
    places += [metadata.exif[tag] for tag in _TOOL_TAGS if tag in metadata.exif]
    places += [found for name in _TOOL_PROPERTIES if (found := _xmp_property(metadata.xmp, name))]
    for text in places:
        if found := _TOOL.search(text[:4096]):
            return list(_TOOLS)[int(found.lastgroup[1:])]
    return None


def _has_ai_label(metadata: EmbeddedMetadata) -> bool:
    """Say whether a file has the label that China's standard GB 45438-2025 requires of generated content."""
    texts = [metadata.xmp, metadata.exif.get("UserComment", ""), *(text for _, text in metadata.texts)]
    return any("AIGC" in text and _AI_LABEL.search(text) for text in texts)


def _xmp_property(xmp: str, name: str) -> str | None:
    """Return the value of an XMP property, as an attribute or as an element; looked for, not parsed as XML."""
    position = -1
    for _ in range(_MAX_OCCURRENCES):
        position = xmp.find(f":{name}", position + 1)
        if position < 0:
            break
        if found := _XMP_VALUE.match(xmp, position + 1 + len(name)):
            text = found[1] if found[1] is not None else re.sub(r"<[^>]*>", " ", found[2])
            return html.unescape(text).strip() or None
    return None


def _xmp_source_types(xmp: str) -> list[str]:
    return list(dict.fromkeys([*_AI_SOURCE_TYPE.findall(xmp), *_SOURCE_TYPE.findall(xmp)]))


def _source_types(metadata: EmbeddedMetadata, credentials: ContentCredentials | None) -> tuple[str, ...]:
    signed = (*credentials.source_types, *credentials.component_source_types) if credentials else ()
    return tuple(dict.fromkeys(each[:60] for each in (*signed, *_xmp_source_types(metadata.xmp))))[:8]


def _camera(metadata: EmbeddedMetadata) -> str | None:
    make, model = (_printable(metadata.exif.get(tag)) or "" for tag in ("Make", "Model"))
    if _tool(metadata) or re.match(r"(?:workflow|prompt):", f"{make}\n{model}", re.IGNORECASE | re.MULTILINE):
        return None
    brand = make.split(" ")[0].lower()
    return _printable(model if model.lower().startswith(brand) else f"{make} {model}")  # NIKON CORPORATION, NIKON D750


def _software(metadata: EmbeddedMetadata) -> str | None:
    named = dict(reversed([(keyword.lower(), text) for keyword, text in metadata.texts]))
    found = metadata.exif.get("Software") or named.get("software") or _xmp_property(metadata.xmp, "CreatorTool")
    return _printable(found)


def _printable(text: str | None) -> str | None:
    """Return a metadata value as one short line of printable text; None where nothing is left."""
    letters = "".join(letter if letter.isprintable() else " " for letter in (text or "")[: 4 * _LONGEST_NAME])
    return " ".join(letters.split())[:_LONGEST_NAME] or None


_CLAIM_TEXTS = {
    AI_GENERATED: "it was generated by AI",
    AI_EDITED: "it was edited with AI",
    CAMERA: "it was taken with a camera",
    None: "nothing about how it was made",
}


def _summary(found: Origin, credentials: ContentCredentials | None) -> str:
    """Return the sentence that is shown above a verdict."""
    says = f"say {_CLAIM_TEXTS[found.claim]}"
    if found.evidence == SIGNED:
        return f"Signed content credentials from {found.signer or 'a trusted signer'} {says}."
    if found.evidence == SIGNED_UNKNOWN_SIGNER:
        named = f', which calls itself "{found.signer}",' if found.signer else ""
        return f"Content credentials signed by an unknown signer{named} {says}."
    if found.evidence == UNCHECKED_SIGNATURE:
        return f"Content credentials {says} (signature not checked: {credentials.problem})."
    if found.evidence == INVALID_SIGNATURE:
        return f"Its content credentials are invalid ({credentials.problem}): they prove nothing."
    if found.evidence == CAMERA_EXIF:
        return f"The file names a camera, {found.camera} (unsigned EXIF, which anyone can write)."
    return _unsigned_summary(found)


def _unsigned_summary(found: Origin) -> str:
    if found.claim == AI_GENERATED:
        made = f"made with {found.generator}" if found.generator else "generated by AI"
        return f"The file says it was {made} (unsigned text)."
    if found.claim == AI_EDITED:
        return f"The file says it was edited with {found.generator or 'AI'} (unsigned text)."
    if found.claim == CAMERA:
        return "The file says it was taken with a camera (unsigned text)."
    if found.software:
        return f"The file says it was written by {found.software} (unsigned text)."
    return Origin.summary


def _notes(
    found: Origin,
    metadata: EmbeddedMetadata,
    credentials: ContentCredentials | None,
    text_claim: str | None,
    text_generator: str | None,
) -> Iterator[str]:
    if credentials:
        yield _credentials_note(found, credentials)
    if text_generator:
        yield f"Its metadata names {text_generator}, which makes images (unsigned text)."
    if text_claim == AI_GENERATED and AI_GENERATED in map(_CLAIM_OF_SOURCE_TYPE.get, _xmp_source_types(metadata.xmp)):
        yield "Its metadata declares it as made by AI (IPTC digital source type, unsigned)."
    if text_claim == AI_EDITED:
        yield "Its metadata declares it as partly made by AI (IPTC digital source type, unsigned)."
    if _has_ai_label(metadata):
        yield "Its metadata has China's label for AI content (AIGC, unsigned)."
    if editor := _EDITOR.search(found.software or ""):
        yield f"Its metadata mentions the editor {editor[0].title()}."
    if found.camera:
        yield f"It names a camera ({found.camera}), as photographs do; copied EXIF does so too."


def _credentials_note(found: Origin, credentials: ContentCredentials) -> str:
    if credentials.state == UNCHECKED:
        return f"It carries Content Credentials (C2PA); their signature is not checked ({credentials.problem})."
    if credentials.state == INVALID:
        return f"It carries Content Credentials (C2PA) that are invalid: {credentials.problem}."
    signer = found.signer or "a signer without a name"
    if credentials.state == TRUSTED:
        return f"It carries valid Content Credentials (C2PA), signed by {signer}, who is on the trust list."
    why = f": {credentials.problem}" if credentials.problem else ", who is not on the trust list"
    return f"It carries Content Credentials (C2PA) with a valid signature of {signer}{why}."
