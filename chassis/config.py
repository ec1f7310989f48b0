"""Settings: typed, from the environment, with a table that explains each of them."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from chassis.refusals import Invalid, Violation

Default = TypeVar("Default")
Settings = TypeVar("Settings")

# What is kept as an int64 somewhere; nothing that is counted or waited for comes near.
NUMBER_MAX: Final = 2**63 - 1


def setting(
    variable: str,
    default: Default,
    doc: str,
    *,
    least: float | None = None,
    most: float | None = None,
) -> Default:
    """Declare a field of a settings class: variable, default, what it does, its bounds as a number."""
    told = {"variable": variable, "doc": doc, "least": least, "most": most}
    made: object = field(default=default, metadata=told)
    return cast(Default, made)


@dataclass(frozen=True, slots=True)
class Common:
    """What every process of the platform is told."""

    postgres_dsn: str = setting(
        "FERMION_POSTGRES_DSN", "", "Where PostgreSQL is; name a passfile in it, no password."
    )
    nats_url: str = setting("FERMION_NATS_URL", "nats://127.0.0.1:4222", "Where NATS is.")
    nats_keys: Path = setting(
        "FERMION_NATS_KEYS", Path(), "Folder of nkey seed files, `<service>.nk`; empty for none."
    )
    listen: str = setting(
        "FERMION_LISTEN", "127.0.0.1:7443", "Where the gRPC server listens, host:port."
    )
    address: str = setting(
        "FERMION_ADDRESS",
        "127.0.0.1:7443",
        "Where services find each other; FERMION_ADDRESS_<SERVICE> says it for one. Several ip:port, "
        "separated by commas, are tried in turn.",
    )
    public_keys: Path = setting(
        "FERMION_PUBLIC_KEYS", Path(), "File with the JWKS that tokens are checked with at first."
    )
    signing_key: Path = setting(
        "FERMION_SIGNING_KEY", Path(), "File with the private JWK; only `projects` needs it."
    )
    service_tokens: Path = setting(
        "FERMION_SERVICE_TOKENS", Path(), "Folder with the services' tokens, `<service>.token`."
    )
    metrics_listen: str = setting(
        "FERMION_METRICS_LISTEN", "", "Where Prometheus metrics are served, host:port; empty: off."
    )
    log_level: str = setting("FERMION_LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR.")
    log_format: str = setting("FERMION_LOG_FORMAT", "console", "console or json.")
    traces: str = setting("FERMION_TRACES", "none", "Where spans go: none, console or otlp.")
    otlp_endpoint: str = setting(
        "FERMION_OTLP_ENDPOINT", "http://127.0.0.1:4317", "The collector, where traces are otlp."
    )
    pool_size: int = setting(
        "FERMION_POOL_SIZE",
        8,
        "Connections to PostgreSQL per service and process.",
        least=1,
        most=1000,
    )
    commit_queue: int = setting(
        "FERMION_COMMIT_QUEUE",
        4096,
        "Changes that may wait to be committed, per service and process; more are told to come later.",
        least=1,
        most=100_000,
    )
    start_seconds_max: float = setting(
        "FERMION_START_SECONDS_MAX",
        60.0,
        "So long a start waits for PostgreSQL.",
        least=0,
        most=86_400,
    )


def load(cls: type[Settings], environment: Mapping[str, str]) -> Settings:
    """Read a settings class from the environment; a wrong value is `Invalid` (SETTING_INVALID)."""
    hints = typing.get_type_hints(cls)
    values: dict[str, object] = {}
    for one in fields(cast(Any, cls)):
        variable = str(one.metadata["variable"])
        text = environment.get(variable)
        if text is not None and text != "":
            bounds = one.metadata["least"], one.metadata["most"]
            values[one.name] = _parse(variable, text, hints[one.name], *bounds)
    return cls(**values)


def wrong(variable: str, value: str, rule: str) -> Invalid:
    """Say that a setting has a value that it cannot have."""
    return Invalid(
        "SETTING_INVALID",
        f"{variable} is {value!r}; it {rule}.",
        violations=(Violation(variable, rule),),
        next_step="Run `python -m services config` for all settings and their defaults.",
        variable=variable,
        value=value,
    )


def table(classes: Mapping[str, type[object]]) -> str:
    """Explain every setting: variable, default, what it does."""
    lines = []
    for owner, cls in classes.items():
        lines.append(f"\n{owner}")
        for one in fields(cast(Any, cls)):
            lines.append(f"  {one.metadata['variable']:<34} {one.metadata['doc']}")
            lines.append(f"  {'':<34} default: {_shown(one)}")
    return "\n".join(lines).lstrip("\n")


def _shown(one: Field[Any]) -> str:
    default = one.default
    if default is MISSING or default == "" or default == Path():
        return "(empty)"
    return " ".join(default) if isinstance(default, tuple) else str(default)


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(text)


def _text(text: str) -> str:
    if not text.isprintable():
        raise ValueError(text)
    return text


def _words(text: str) -> tuple[str, ...]:
    return tuple(_text(text).replace(",", " ").split())


_PARSERS: Mapping[object, tuple[Callable[[str], object], str]] = {
    int: (int, "must be a whole number"),
    float: (float, "must be a number"),
    bool: (_boolean, "must be true or false"),
    str: (_text, "must be text of one line without control characters"),
    Path: (Path, "must be a path"),
    tuple[str, ...]: (_words, "must be words, separated by spaces or commas"),
}


def _parse(
    variable: str, text: str, kind: object, least: float | None, most: float | None
) -> object:
    parser, rule = _PARSERS[kind]
    if most is not None:
        rule += f" from {least:g} to {most:g}"
    elif least is not None:
        rule += f" of at least {least:g}"
    try:
        value = parser(text)
    except ValueError as error:
        raise wrong(variable, text, rule) from error
    # Written this way round, because no comparison with "nan" is true.
    if isinstance(value, int | float) and not (
        max(-NUMBER_MAX, -NUMBER_MAX if least is None else least)
        <= value
        <= min(NUMBER_MAX, NUMBER_MAX if most is None else most)
    ):
        raise wrong(variable, text, rule)
    return value
