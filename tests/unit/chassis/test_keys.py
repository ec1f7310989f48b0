"""Tokens: what is signed is read back, and everything else is refused."""

from __future__ import annotations

import base64
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.keys import Claims, SigningKey, Verifier, format_jwks, parse_jwks
from chassis.refusals import Invalid, Unauthenticated

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEY = SigningKey.create()


def token(key: SigningKey = KEY, *, seconds: int = 60) -> str:
    """A user's token that is good for so many seconds."""
    return key.sign(
        subject="user_1",
        kind="user",
        uid="tok_1",
        issued_time=NOW,
        expire_time=NOW + timedelta(seconds=seconds),
    )


def verifier(*keys: SigningKey) -> Verifier:
    """One that accepts these keys."""
    found = Verifier()
    for key in keys:
        found.add(key.public)
    return found


def part(value: object) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def refused(checker: Verifier, text: str) -> str:
    """Why a token is not accepted."""
    with pytest.raises(Unauthenticated) as refusal:
        checker.verify(text, NOW)
    assert refusal.value.next_step
    return refusal.value.reason


def test_what_was_signed_is_read_back() -> None:
    claims = verifier(KEY).verify(token(), NOW)
    assert claims == Claims("user_1", "user", "tok_1", KEY.kid, NOW, NOW + timedelta(seconds=60))


def test_the_same_words_are_the_same_token() -> None:
    assert token() == token()


def test_a_token_ends_to_the_second_even_if_it_was_good_before() -> None:
    checker = verifier(KEY)
    checker.verify(token(), NOW + timedelta(seconds=59))
    with pytest.raises(Unauthenticated) as refusal:
        checker.verify(token(), NOW + timedelta(seconds=60))
    assert refusal.value.reason == "TOKEN_EXPIRED"
    assert "2026-01-02" in refusal.value.arguments["expire_time"]


def test_another_key_is_not_accepted() -> None:
    assert refused(verifier(KEY), token(SigningKey.create())) == "TOKEN_INVALID"


def test_a_key_taken_away_ends_tokens_that_were_good() -> None:
    checker = verifier(KEY)
    checker.verify(token(), NOW)
    checker.remove(KEY.kid)
    assert refused(checker, token()) == "TOKEN_INVALID"


def test_a_key_of_the_same_name_does_not_do() -> None:
    other = SigningKey(KEY.kid, SigningKey.create()._key)
    assert refused(verifier(KEY), token(other)) == "TOKEN_INVALID"


@pytest.mark.parametrize("algorithm", ["none", "HS256", "EdDSA", "RS256"])
def test_an_algorithm_of_the_callers_choice_is_not_accepted(algorithm: str) -> None:
    _, claims, signature = token().split(".")
    header = part({"alg": algorithm, "kid": KEY.kid})
    assert refused(verifier(KEY), f"{header}.{claims}.{signature}") == "TOKEN_INVALID"
    assert refused(verifier(KEY), f"{header}.{claims}.") == "TOKEN_INVALID"


def test_other_words_under_a_signature_are_not_accepted() -> None:
    header, _, signature = token().split(".")
    words = part(
        {"iss": "fermion", "sub": "user_2", "kind": "user", "jti": "t", "iat": 1, "exp": 2**31}
    )
    assert refused(verifier(KEY), f"{header}.{words}.{signature}") == "TOKEN_INVALID"


@given(st.text(max_size=200))
def test_whatever_is_sent_instead_of_a_token_is_refused(text: str) -> None:
    assert refused(verifier(KEY), text) == "TOKEN_INVALID"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists))
def test_whatever_stands_in_a_header_is_refused(header: object) -> None:
    _, claims, signature = token().split(".")
    assert refused(verifier(KEY), f"{part(header)}.{claims}.{signature}") == "TOKEN_INVALID"
    named = part({"alg": "Ed25519", "kid": KEY.kid, "crit": header})
    assert refused(verifier(KEY), f"{named}.{claims}.{signature}") == "TOKEN_INVALID"


@given(st.integers(0, 300), st.characters(codec="ascii"))
def test_a_token_with_one_letter_changed_is_not_another_token(place: int, letter: str) -> None:
    good = token()
    place %= len(good)
    spoilt = good[:place] + letter + good[place + 1 :]
    checker = verifier(KEY)
    try:
        claims = checker.verify(spoilt, NOW)
    except Unauthenticated:
        return
    # The last letter of a part holds bits that mean nothing; the words are the same then.
    assert claims == checker.verify(good, NOW)


def test_a_key_that_was_saved_signs_the_same(tmp_path: Path) -> None:
    path = tmp_path / "signing.jwk"
    KEY.save(path)
    assert token(SigningKey.load(path)) == token()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"kid": "a"}', '{"kid": "a", "kty": "oct", "k": "AA"}']
)
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "signing.jwk"
    path.write_text(text)
    with pytest.raises(Invalid) as refusal:
        SigningKey.load(path)
    assert refusal.value.reason == "SIGNING_KEY_UNREADABLE"


def test_a_public_half_does_not_pass_for_a_private_key(tmp_path: Path) -> None:
    path = tmp_path / "signing.jwk"
    path.write_text(json.dumps(KEY.public.jwk()))
    with pytest.raises(Invalid) as refusal:
        SigningKey.load(path)
    assert refusal.value.reason == "SIGNING_KEY_UNREADABLE"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as refusal:
        SigningKey.load(tmp_path / "nowhere")
    assert refusal.value.violations[0].field == "FERMION_SIGNING_KEY"


def test_a_key_set_is_read_as_it_was_written() -> None:
    keys = {key.kid: key.public for key in (KEY, SigningKey.create())}
    assert {key.kid: key for key in parse_jwks(format_jwks(keys))} == keys
    assert '"d"' not in format_jwks(keys)


def test_a_key_shows_nothing_of_itself_when_printed() -> None:
    assert repr(KEY) == f"SigningKey(kid={KEY.kid!r})"
