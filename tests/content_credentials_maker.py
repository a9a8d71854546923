"""What the tests of content credentials share: a certificate authority of their own, and images signed by it."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"


@dataclass(frozen=True)
class Signer:
    """A certificate with its authority and its key, all as PEM."""

    certificates: bytes
    authority: bytes
    key: bytes

    def sign(self, content: bytes, mime: str, actions: Sequence[dict], parents: Sequence[bytes] = ()) -> bytes:
        """Return an image file with content credentials that state the actions."""
        manifest = {
            "claim_generator_info": [{"name": "Test Generator", "version": "1"}],
            "assertions": [{"label": "c2pa.actions", "data": {"actions": list(actions)}}],
        }
        builder = c2pa.Builder.from_json(json.dumps(manifest))
        for parent in parents:
            ingredient = {"title": "parent", "relationship": "parentOf", "instance_id": "xmp:iid:parent"}
            builder.add_ingredient(json.dumps(ingredient), mime, io.BytesIO(parent))
        info = c2pa.C2paSignerInfo(alg=b"es256", sign_cert=self.certificates, private_key=self.key, ta_url=None)
        signed = io.BytesIO()
        builder.sign(c2pa.Signer.from_info(info), mime, io.BytesIO(content), signed)
        return signed.getvalue()


def make_signer(organization: str, valid_s: float = 86_400.0) -> Signer:
    """Return a signer with an authority of its own; its certificate expires after `valid_s` seconds."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name, name = _name("Test Authority", "Test Authority"), _name("Signer", organization)
    authority = _certificate(authority_name, authority_key, authority_name, authority_key, 86_400.0, authority=True)
    certificate = _certificate(name, key, authority_name, authority_key, valid_s, authority=False)
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    authority_pem = authority.public_bytes(serialization.Encoding.PEM)
    no_encryption = serialization.NoEncryption()
    key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_encryption)
    return Signer(pem + authority_pem, authority_pem, key_pem)


def created(source_type: str, **more: object) -> dict:
    """Return the action that states how an image came to be."""
    return {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPES + source_type, **more}


def _name(common: str, organization: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, common), x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)]
    )


def _certificate(
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    valid_s: float,
    authority: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    unused = "content_commitment key_encipherment data_encipherment key_agreement encipher_only decipher_only"
    usage = dict.fromkeys(unused.split(), False)
    builder = (
        x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(seconds=valid_s))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **usage),
            critical=True,
        )
    )
    if not authority:  # as the C2PA specification asks of signers
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
