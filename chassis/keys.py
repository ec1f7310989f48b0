"""Ed25519 keys and the tokens that they sign: the wall around the JOSE library."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from chassis.refusals import Invalid, Unauthenticated, Violation

ALGORITHM: Final = "Ed25519"
ISSUER: Final = "fermion"
# Verified tokens are remembered, because one check costs as much as the rest of a call's way in.
VERIFIED_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says: who, what kind of caller, which token, from when until when."""

    subject: str
    kind: str
    uid: str
    kid: str
    issued_time: datetime
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that tokens are checked with."""

    kid: str
    raw: bytes

    def jwk(self) -> dict[str, str | list[str]]:
        """The key as a JSON Web Key (RFC 8037)."""
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "kid": self.kid,
            "use": "sig",
            "x": _base64(self.raw),
        }


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The private key of the platform; whoever holds it can be anybody."""

    kid: str
    _key: OKPKey = field(repr=False)

    @classmethod
    def create(cls) -> SigningKey:
        """Make a new one; its kid is the thumbprint's first 16 characters (RFC 7638)."""
        key = OKPKey.generate_key("Ed25519", private=True)
        return cls(key.thumbprint()[:16], key)

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a private JWK; a file that holds none is `Invalid` (SIGNING_KEY_UNREADABLE)."""
        try:
            found = json.loads(path.read_text())
            key = OKPKey.import_key(found)
            if found["crv"] != ALGORITHM or not key.is_private:
                raise ValueError("it is another kind of key")
            return cls(str(found["kid"]), key)
        except (OSError, ValueError, KeyError, TypeError, JoseError) as error:
            raise Invalid(
                "SIGNING_KEY_UNREADABLE",
                f"FERMION_SIGNING_KEY is {str(path)!r}, which holds no private Ed25519 JWK with a kid "
                f"({type(error).__name__}: {error}).",
                violations=(Violation("FERMION_SIGNING_KEY", "must name a private Ed25519 JWK"),),
                next_step="Name the file that the platform's key was written to.",
                path=str(path),
            ) from error

    def save(self, path: Path) -> None:
        """Write the private JWK, readable by its owner alone."""
        private = {**self._key.as_dict(private=True), "kid": self.kid}
        write_private(path, json.dumps(private) + "\n")

    @property
    def public(self) -> PublicKey:
        """The half that everybody may know."""
        encoded = str(self._key.as_dict(private=False)["x"])
        return PublicKey(self.kid, base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))

    def sign(
        self, *, subject: str, kind: str, uid: str, issued_time: datetime, expire_time: datetime
    ) -> str:
        """Sign a token; the same arguments always give the same token."""
        claims = {
            "iss": ISSUER,
            "sub": subject,
            "kind": kind,
            "jti": uid,
            "iat": int(issued_time.timestamp()),
            "exp": int(expire_time.timestamp()),
        }
        header = {"alg": ALGORITHM, "kid": self.kid, "typ": "JWT"}
        return jwt.encode(header, claims, self._key, algorithms=[ALGORITHM])


@dataclass(slots=True)
class Verifier:
    """Checks signatures against keys that may change; what was checked is remembered until it ends."""

    keys: dict[str, PublicKey] = field(default_factory=dict)
    _verified: dict[bytes, Claims] = field(default_factory=dict)

    def add(self, key: PublicKey) -> None:
        """Accept tokens of one more key."""
        self.keys[key.kid] = key

    def remove(self, kid: str) -> None:
        """Refuse tokens of a key from now on."""
        self.keys.pop(kid, None)

    def verify(self, token: str, now: datetime) -> Claims:
        """Read a token; one that is not ours, not whole, or over is `Unauthenticated`."""
        digest = hashlib.sha256(token.encode()).digest()
        claims = self._verified.get(digest)
        if claims is None or claims.kid not in self.keys:
            claims = self._check(token)
            if len(self._verified) >= VERIFIED_MAX:
                self._verified.clear()
            self._verified[digest] = claims
        if claims.expire_time <= now:
            raise Unauthenticated(
                "TOKEN_EXPIRED",
                f"The token ended at {claims.expire_time.isoformat()}.",
                next_step="Ask a platform admin for another one: fermion tokens create.",
                expire_time=claims.expire_time.isoformat(),
            )
        return claims

    def _check(self, token: str) -> Claims:
        try:
            header = json.loads(_debase64(token.split(".")[0]))
            kid = str(header["kid"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise _invalid("it is not a JSON Web Token with a key id") from error
        key = self.keys.get(kid)
        if key is None:
            raise _invalid(f"it was signed by key {kid[:64]!r}, which is not accepted here")
        try:
            found = jwt.decode(token, OKPKey.import_key(key.jwk()), algorithms=[ALGORITHM]).claims
            return _claims(found, kid)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise _invalid("its signature or its claims are wrong") from error


def parse_jwks(text: str) -> list[PublicKey]:
    """Read a JSON Web Key Set; raises ValueError where it is none."""
    found = json.loads(text)
    return [PublicKey(str(key["kid"]), _debase64(str(key["x"]))) for key in found["keys"]]


def format_jwks(keys: Mapping[str, PublicKey]) -> str:
    """Write a JSON Web Key Set, by kid."""
    return json.dumps({"keys": [keys[kid].jwk() for kid in sorted(keys)]}, indent=2)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _claims(found: Mapping[str, object], kid: str) -> Claims:
    if found["iss"] != ISSUER:
        raise ValueError("another issuer")
    issued, expires = found["iat"], found["exp"]
    if not isinstance(issued, int) or not isinstance(expires, int):
        raise ValueError("times are not whole seconds")
    return Claims(
        subject=str(found["sub"]),
        kind=str(found["kind"]),
        uid=str(found["jti"]),
        kid=kid,
        issued_time=datetime.fromtimestamp(issued, UTC),
        expire_time=datetime.fromtimestamp(expires, UTC),
    )


def _invalid(why: str) -> Unauthenticated:
    return Unauthenticated(
        "TOKEN_INVALID",
        f"The token is not valid: {why}.",
        next_step="Send a token of this platform as `authorization: Bearer …`.",
    )


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _debase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
