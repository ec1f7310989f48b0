"""What an embedded start knows its services and its first admin by."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from chassis import ids
from chassis.embedded.home import Home
from chassis.keys import SigningKey, format_jwks, write_private

SERVICE_TOKEN_DAYS: Final = 3650
ADMIN_TOKEN_DAYS: Final = 365


@dataclass(frozen=True, slots=True)
class Keys:
    """The platform's key, and the tokens by which services and the first admin are known."""

    signing: SigningKey
    admin_uid: str

    @classmethod
    def prepare(cls, home: Home, services: Sequence[str]) -> Keys:
        """Read what is there, make what is not; the admin's token is signed anew, for a year."""
        path = home.path("keys", "signing.jwk")
        if not path.exists():
            SigningKey.create().save(path)
        signing = SigningKey.load(path)
        write_private(
            home.path("keys", "jwks.json"), format_jwks({signing.kid: signing.public}) + "\n"
        )
        now = datetime.now(UTC).replace(microsecond=0)
        for service in services:
            token = signing.sign(
                subject=f"service:{service}",
                kind="service",
                uid=ids.derived("tok", signing.kid, service),
                issued_time=now,
                expire_time=now + timedelta(days=SERVICE_TOKEN_DAYS),
            )
            write_private(home.path("keys", "tokens", f"{service}.token"), token + "\n")
        admin = home.path("keys", "admin.uid")
        if not admin.exists():
            write_private(admin, ids.fresh("user", int(time.time() * 1000)) + "\n")
        uid = admin.read_text().strip()
        token = signing.sign(
            subject=uid,
            kind="user",
            uid=ids.derived("tok", signing.kid, uid),
            issued_time=now,
            expire_time=now + timedelta(days=ADMIN_TOKEN_DAYS),
        )
        write_private(home.path("keys", "admin.token"), token + "\n")
        replicas = home.path("keys", "replicas.key")
        if not replicas.exists():
            # What runs is given tokens that only who has this key can tell again.
            write_private(replicas, secrets.token_hex(32) + "\n")
        return cls(signing, uid)
