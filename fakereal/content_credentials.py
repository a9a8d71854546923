"""Check the content credentials (C2PA manifest store) of an image file, with the optional package `c2pa-python`.

What is read: who signed, which program made the claim, and the digital source types of its actions. Nothing is fetched
from the network: neither remote manifests nor revocation lists, so that an upload can't make this machine call others.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fakereal.embedded_metadata import MAX_C2PA_BYTES, EmbeddedMetadata
from fakereal.files import cache_folder, config_folder
from fakereal.runtime import log, one_line

TRUSTED, UNKNOWN_SIGNER, INVALID, UNCHECKED = "trusted", "unknown_signer", "invalid", "unchecked"
"""States of content credentials; `unknown_signer`: the signature is valid, its signer is not on the trust list."""

TRUST_LIST_VARIABLE = "FAKEREAL_TRUST_LIST"
"""Environment variable that names the trust list: a PEM file of certificate authorities."""

_TRUST_LIST = "C2PA-TRUST-LIST.pem"

INSTALL_COMMAND = "pip install -r requirements-provenance.txt"

_SIGNER_ONLY = {"signingCredential.untrusted", "signingCredential.expired"}
"""C2PA failure codes that leave the signature and the image's hash valid."""

_PROBLEMS = (
    ("dataHash.mismatch", "the file does not match what was signed"),
    ("bmffHash.mismatch", "the file does not match what was signed"),
    ("boxesHash.mismatch", "the file does not match what was signed"),
    ("claimSignature.mismatch", "the signed statement was changed"),
    ("hashedURI.mismatch", "the signed statement was changed"),
    ("signingCredential.revoked", "the signer's certificate was revoked"),
    ("signingCredential.expired", "the signer's certificate has expired"),
)
_MAX_PARENTS = 16
_SOURCE_TYPE = re.compile(rb"digitalsourcetype/([A-Za-z]{4,60})")


@dataclass(frozen=True)
class ContentCredentials:
    """What content credentials state, and what that is worth."""

    state: str  # TRUSTED, UNKNOWN_SIGNER, INVALID or UNCHECKED
    signer: str | None = None  # the organization in the signer's certificate
    generator: str | None = None  # the program that made the claim
    source_types: tuple[str, ...] = ()  # IPTC terms of the actions, of the image and of what it was made from
    component_source_types: tuple[str, ...] = ()  # of images that were placed in it
    problem: str | None = None  # why they are invalid or were not checked
    parents_valid: bool = True  # whether the credentials of what the image was made from are valid, too


def check_content_credentials(content: bytes, metadata: EmbeddedMetadata) -> ContentCredentials:
    """Return what the content credentials of a file state and whether their signature is valid.

    Args:
        content: the whole file.
        metadata: its metadata blocks, with a C2PA block.
    """
    library = _library()
    if library is None:
        return _unchecked(metadata, INSTALL_COMMAND)
    if len(metadata.c2pa) >= MAX_C2PA_BYTES:
        return _unchecked(metadata, f"larger than {MAX_C2PA_BYTES // 2**20} MB")
    context = _context(_trust_list())
    if context is None:
        return _unchecked(metadata, "the trust list can't be used")
    try:
        with library.Reader(metadata.mime, io.BytesIO(content), context=context) as reader:
            return _credentials(json.loads(reader.json()))
    except Exception:  # noqa: BLE001 - the library raises nearly anything on damaged credentials
        return ContentCredentials(INVALID, problem="damaged, they can't be read")


@functools.cache
def _library() -> ModuleType | None:
    try:
        import c2pa
    except (ImportError, OSError):  # OSError: its native library does not fit this system
        return None
    return c2pa


def _unchecked(metadata: EmbeddedMetadata, problem: str) -> ContentCredentials:
    terms = dict.fromkeys(term.decode() for term in _SOURCE_TYPE.findall(metadata.c2pa))
    return ContentCredentials(UNCHECKED, source_types=tuple(terms)[:8], problem=problem)


def _trust_list() -> Path | None:
    """Return the trust list that applies: the one named by the environment, else the one in the user's settings.

    Earlier versions read it from the cache folder, which may be deleted at any time; one that lies there still counts.
    """
    if named := os.environ.get(TRUST_LIST_VARIABLE):
        return Path(named)
    paths = (folder / _TRUST_LIST for folder in (config_folder(), cache_folder()))
    return next((path for path in paths if path.is_file()), None)


@functools.cache
def _context(trust_list: Path | None) -> Any | None:
    """Return the library's settings, kept for all files; None, logged once, where the trust list can't be used."""
    settings: dict[str, Any] = {
        "verify": {"verify_trust": True, "remote_manifest_fetch": False, "ocsp_fetch": False},
        "core": {"allowed_network_hosts": [], "max_decompressed_manifest_size_in_mb": MAX_C2PA_BYTES // 2**20},
    }
    try:
        if trust_list is not None:
            settings["trust"] = {"trust_anchors": trust_list.read_text(encoding="ascii")}
        return _library().Context.from_dict(settings)
    except Exception as error:  # noqa: BLE001 - no file, no PEM, or one that the library refuses
        log(f"content credentials are not checked: {trust_list} is no usable trust list ({one_line(error)})")
        return None


def _credentials(document: dict[str, Any]) -> ContentCredentials:
    """Return what a manifest store states, from the library's JSON."""
    manifests = document.get("manifests") or {}
    active = manifests.get(document.get("active_manifest")) or {}
    results = document.get("validation_results") or {}
    state, problem = _state(document.get("validation_state"), _failure_codes(results.get("activeManifest")))
    deltas = [delta.get("validationDeltas") or {} for delta in results.get("ingredientDeltas") or ()]
    parents, components, failures = _ingredients(active, manifests)
    signature = active.get("signature_info") or {}
    return ContentCredentials(
        state,
        signer=signature.get("issuer") or signature.get("common_name"),
        generator=_generator([active, *parents]),
        source_types=_source_types([active, *parents]),
        component_source_types=_source_types(components),
        problem=problem,
        parents_valid=not any(map(_failure_codes, deltas)) and _are_resolved(failures, deltas),
    )


def _state(state: str | None, failures: list[str]) -> tuple[str, str | None]:
    problem = next((text for code, text in _PROBLEMS for failure in failures if failure.endswith(code)), None)
    if state == "Trusted":
        return TRUSTED, None
    if state == "Valid" or (failures and set(failures) <= _SIGNER_ONLY):
        return UNKNOWN_SIGNER, problem
    return INVALID, problem or "they fail validation"


def _failure_codes(results: dict[str, Any] | None) -> list[str]:
    return [str(failure.get("code")) for failure in (results or {}).get("failure") or ()]


def _ingredients(
    active: dict[str, Any], manifests: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the manifests of what an image was made from, of what was placed in it, and all recorded failures."""
    parents: list[dict[str, Any]] = []
    components: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    manifest, seen = active, {id(active)}
    for _ in range(_MAX_PARENTS):
        following = None
        for ingredient in manifest.get("ingredients") or ():
            found = manifests.get(ingredient.get("active_manifest"))
            if found is None or id(found) in seen:
                continue
            seen.add(id(found))
            recorded = (ingredient.get("validation_results") or {}).get("activeManifest") or {}
            failures += recorded.get("failure") or ()
            if ingredient.get("relationship") == "parentOf":
                following = found
            elif ingredient.get("relationship") == "componentOf":
                components.append(found)
        if following is None:
            break
        parents.append(following)
        manifest = following
    return parents, components, failures


def _are_resolved(failures: list[dict[str, Any]], deltas: list[dict[str, Any]]) -> bool:
    """Say whether what failed for the program that used an image holds now: its signer is on our trust list."""
    trusted = {
        success.get("url")
        for delta in deltas
        for success in delta.get("success") or ()
        if success.get("code") == "signingCredential.trusted"
    }
    return all(each.get("code") == "signingCredential.untrusted" and each.get("url") in trusted for each in failures)


def _actions(manifests: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each action with the manifest that contains it."""
    for manifest in manifests:
        for assertion in manifest.get("assertions") or ():
            if str(assertion.get("label", "")).startswith("c2pa.actions"):
                for action in (assertion.get("data") or {}).get("actions") or ():
                    yield manifest, action


def _source_types(manifests: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    types = (action.get("digitalSourceType") for _, action in _actions(manifests))
    return tuple(dict.fromkeys(str(each).rsplit("/", 1)[-1] for each in types if each))


def _generator(manifests: list[dict[str, Any]]) -> str | None:
    """Return the program behind the action with an AI source type, else the one that wrote the active manifest."""
    for manifest, action in _actions(manifests):
        if "AlgorithmicMedia" in str(action.get("digitalSourceType")):
            agent = action.get("softwareAgent")
            name = agent.get("name") if isinstance(agent, dict) else agent
            return str(name) if name else _claim_generator(manifest)
    return _claim_generator(manifests[0])


def _claim_generator(manifest: dict[str, Any]) -> str | None:
    for info in manifest.get("claim_generator_info") or ():
        if info.get("name"):
            return str(info["name"])
    name = manifest.get("claim_generator")
    return str(name).split("/")[0].replace("_", " ") if name else None
