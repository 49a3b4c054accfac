"""config.toml and the environment → frozen values, units in their names.

A key stands in three places that a test holds together: here, in `config.toml`, and in
the README. Whatever is unknown or out of bounds is refused by its name.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from events.files import cannot, read_regular
from service.forwarded import Network, parse_network

ENVIRONMENT_PREFIX = "HUBLER_AUTH__"


class ConfigError(Exception):
    """The configuration cannot be used; the text names the key."""


_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_duration(text: str) -> float:
    """Seconds from `250ms`, `10s`, `5m`, `72h`, `30d` or `0`. Raises `ValueError`."""
    match = re.fullmatch(r"([0-9]{1,9})(ms|s|m|h|d)", text)
    if match is None and text != "0":
        raise ValueError('must be a duration such as "250ms", "10s", "5m", "72h" or "0"')
    return int(match[1]) * _UNITS[match[2]] if match else 0


def format_duration(seconds: float) -> str:
    """The text that `parse_duration` reads as `seconds`, in the largest unit that divides it."""
    if seconds == 0:
        return "0"
    milliseconds = round(seconds * 1000)
    unit = next(unit for unit in ("d", "h", "m", "s", "ms") if milliseconds % round(_UNITS[unit] * 1000) == 0)
    return f"{milliseconds // round(_UNITS[unit] * 1000)}{unit}"


MAX_FILE_BYTES = 1_048_576

LONGEST = "36500d"  # a hundred years: added to today, still a date that RFC 3339 can write


def _duration(default: str, *, least: str = "0", most: str = LONGEST) -> Any:
    def read(value: object) -> float:
        seconds = parse_duration(str(value))
        if not parse_duration(least) <= seconds <= parse_duration(most):
            raise ValueError(f"must be from {least} to {most}")
        return seconds

    return attrs.field(default=parse_duration(default), metadata={"read": read, "show": format_duration})


def _whole_seconds(default: str, *, least: str, most: str) -> Any:
    duration = _duration(default, least=least, most=most)

    def read(value: object) -> int:
        seconds: float = duration.metadata["read"](value)
        if seconds != int(seconds):
            raise ValueError("must be whole seconds")
        return int(seconds)

    return attrs.field(default=int(parse_duration(default)), metadata={"read": read, "show": format_duration})


def _integer(default: int, least: int, most: int) -> Any:
    def read(value: object) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]{1,18}", str(value)):
            raise ValueError("must be a whole number")
        if not least <= int(str(value)) <= most:
            raise ValueError(f"must be from {least} to {most}")
        return int(str(value))

    return attrs.field(default=default, metadata={"read": read})


def _choice(default: str | int, *others: str | int) -> Any:
    choices = {str(choice): choice for choice in (default, *others)}

    def read(value: object) -> str | int:
        if isinstance(value, bool) or str(value) not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return choices[str(value)]

    return attrs.field(default=default, metadata={"read": read})


def _text(default: str, pattern: str, meaning: str) -> Any:
    def read(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"must be {meaning}")
        return value

    return attrs.field(default=default, metadata={"read": read})


MAX_NETWORKS = 1000  # some clouds publish a few hundred


def _networks() -> Any:
    def read(value: object) -> tuple[Network, ...]:
        try:
            texts = _listed(value) if isinstance(value, str) else value
            if not isinstance(texts, list) or len(texts) > MAX_NETWORKS or not all(isinstance(t, str) for t in texts):
                raise ValueError
            return tuple(map(parse_network, texts))
        except ValueError:
            raise ValueError(
                f"must be at most {MAX_NETWORKS} networks, with no bits set behind the prefix, such as"
                ' ["10.0.0.0/8", "2001:db8::1"]; in the environment also 10.0.0.0/8,2001:db8::1'
            ) from None

    def show(networks: Sequence[Network]) -> str:
        return ",".join(map(str, networks))

    return attrs.field(default=(), metadata={"read": read, "show": show})


def _listed(text: str) -> object:
    """A list as the environment spells it: as TOML does, or with commas alone. Raises `ValueError`."""
    if text.startswith("["):
        return tomllib.loads(f"list = {text}")["list"]
    return [part.strip() for part in text.split(",")] if text.strip() else []


# RFC 3986, and letters beyond ASCII as browsers take them. No user info, no query, no fragment.
_ISSUER = re.compile(
    r"https?://(?:[\w-]+(?:\.[\w-]+)*\.?|\[([0-9a-f:.]+)\])(?::([0-9]{1,5}))?(?:/(?:[^?#\\%]|%[0-9a-f]{2})*)?",
    re.IGNORECASE,
)


def _issuer() -> Any:
    def read(value: object) -> str:
        if not isinstance(value, str) or (value and not _is_issuer(value)):
            raise ValueError(
                "must be an http or https URL with a host and without user, query, fragment and white space,"
                ' such as "https://auth.example.com"'
            )
        return value

    return attrs.field(default="", metadata={"read": read})


def _is_issuer(text: str) -> bool:
    match = _ISSUER.fullmatch(text)
    if match is None or " " in text or not text.isprintable():
        return False
    address, port = match.groups()
    try:
        ipaddress.IPv6Address(address or "::")
    except ValueError:
        return False
    return 1 <= int(port or 1) <= 65_535


_VISIBLE_TEXT = r"[^\x00-\x1f\x7f\ud800-\udfff]*"


@frozen
class Http:
    host: str = _text("127.0.0.1", r"[A-Za-z0-9:_-]{1,63}(\.[A-Za-z0-9:_-]{1,63})*\.?", "an address or a host name")
    port: int = _integer(8080, 0, 65_535)
    header_timeout_seconds: float = _duration("10s", least="1ms", most="10m")
    body_timeout_seconds: float = _duration("10s", least="1ms", most="10m")
    write_timeout_seconds: float = _duration("10s", least="1ms", most="10m")
    keepalive_timeout_seconds: float = _duration("75s", least="1s", most="1h")
    max_connections: int = _integer(4096, 1, 1_000_000)
    max_in_flight: int = _integer(1024, 1, 1_000_000)
    drain_grace_seconds: float = _duration("0", most="10m")
    shutdown_timeout_seconds: float = _duration("8s", least="1ms", most="10m")
    server_error_status: int = _choice(400, 500, 503)
    account_errors: str = _choice("documented", "uniform")
    trusted_proxies: tuple[Network, ...] = _networks()
    forwarded_header: str = _choice("x-forwarded-for", "forwarded")


@frozen
class Storage:
    directory: Path = attrs.field(
        default=Path("var"), metadata={"read": lambda value: _path(value), "show": lambda path: str(path)}
    )
    lock_timeout_seconds: float = _duration("2s", least="1ms", most="1m")


def _path(value: object) -> Path:
    if not isinstance(value, str) or not re.fullmatch(r"[^\0\ud800-\udfff]+", value):
        raise ValueError("must be a path")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError("must be a path: there is no such user") from None


@frozen
class Tokens:
    issuer: str = _issuer()
    audience: str = _text("", _VISIBLE_TEXT, "text without control characters")
    ttl_seconds: int = _whole_seconds("1h", least="1s", most="3650d")
    leeway_seconds: float = _duration("10s", most="10m")
    algorithm: str = _choice("EdDSA", "ES256", "RS256", "HS256")


@frozen
class Keys:
    rotate_every_seconds: float = _duration("0")
    publish_before_seconds: float = _duration("1h", least="1s")


@frozen
class Accounts:
    claim_window_seconds: float = _duration("72h")


@frozen
class Secrets:
    memory_kib: int = _integer(19_456, 8, 4_194_304)  # 19 MiB: OWASP Password Storage, at its minimum memory
    iterations: int = _integer(2, 1, 1000)  # the same source, for 19 MiB
    parallelism: int = _integer(1, 1, 64)
    hash_workers: int = _integer(0, 0, 256)
    hash_queue: int = _integer(1024, 1, 1_000_000)
    cache_entries: int = _integer(100_000, 0, 100_000_000)
    cache_ttl_seconds: float = _duration("1h")

    @property
    def costs(self) -> tuple[int, int, int]:
        """Argon2id's, in the order that `service.verifier.HashParameters` has them."""
        return self.memory_kib, self.iterations, self.parallelism


_ORIGIN = r"([^\s+\x00-\x1f\x7f\ud800-\udfff]{1,256})?"


@frozen
class Audit:
    origin: str = _text("", _ORIGIN, "a name without spaces and plus signs, such as auth.example.com/log")
    checkpoint_interval_seconds: float = _duration("1s", least="50ms", most="1h")
    max_pending_events: int = _integer(65_536, 64, 10_000_000)


@frozen
class Logs:
    format: str = _choice("auto", "json", "console")


@frozen
class Settings:
    """All of it. `sources` tells for each key that is not at its default where its value came from."""

    http: Http = Http()
    storage: Storage = Storage()
    tokens: Tokens = Tokens()
    keys: Keys = Keys()
    accounts: Accounts = Accounts()
    secrets: Secrets = Secrets()
    audit: Audit = Audit()
    logs: Logs = Logs()
    sources: Mapping[str, str] = attrs.field(factory=dict, eq=False)

    @property
    def url(self) -> str:
        """Where the service answers."""
        host = f"[{self.http.host}]" if ":" in self.http.host else self.http.host
        return f"http://{host}:{self.http.port}"

    @property
    def issuer(self) -> str:
        return self.tokens.issuer or self.url

    @property
    def issuer_warning(self) -> str | None:
        """What follows from an issuer that nobody can reach, and what to do; `None` where it is not so."""
        try:
            unreachable = ipaddress.ip_address(self.http.host).is_unspecified and not self.tokens.issuer
        except ValueError:  # a name
            unreachable = False
        if not unreachable:
            return None
        return (
            f"tokens.issuer is not set, so tokens and metadata name {self.url}, which no other machine can reach: "
            "verifiers find no keys. Set tokens.issuer to the URL that clients use."
        )

    @property
    def audience(self) -> str:
        return self.tokens.audience or self.issuer

    @property
    def database(self) -> Path:
        return self.storage.directory / "auth.db"

    @property
    def checkpoint(self) -> Path:
        return self.storage.directory / "checkpoint"

    @property
    def keys_directory(self) -> Path:
        return self.storage.directory / "keys"


def _key(field: "attrs.Attribute[Any]") -> str:
    """A duration's key has no unit in its name: its value has one."""
    return field.name.removesuffix("_seconds")


_SECTIONS: dict[str, type[Any]] = {
    field.name: field.type for field in attrs.fields(Settings) if isinstance(field.type, type) and attrs.has(field.type)
}
_FIELDS: dict[str, "attrs.Attribute[Any]"] = {
    f"{section}.{_key(field)}": field for section, cls in _SECTIONS.items() for field in attrs.fields(cls)
}

KEYS: tuple[str, ...] = tuple(_FIELDS)
"""Every key there is, as `section.key`."""


def _words(name: str) -> str:
    """A variable's name without what is easily misspelt: case, and how its words are joined."""
    return re.sub(r"[^A-Z0-9]+", "_", name.upper())


_VARIABLES = {
    _words(variable): variable for variable in (ENVIRONMENT_PREFIX + key.upper().replace(".", "__") for key in _FIELDS)
}


def load(file: Path | None, environment: Mapping[str, str]) -> Settings:
    """The settings of `file`, or of `./config.toml` where it is there, under those of the environment.

    A relative `storage.directory` counts from the folder of the file that says it, or of
    the file in use where none does. Raises `ConfigError`.
    """
    path = file or Path("config.toml")
    text = _read(path, optional=file is None)
    given = {key: (value, str(path)) for key, value in _from_toml(text, path).items()}
    given |= {key: (value, name) for key, (value, name) in _from_environment(environment).items()}

    values: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for key, (value, source) in given.items():
        section, field = key.split(".")[0], _FIELDS[key]
        try:
            values[section][field.name] = field.metadata["read"](value)
        except ValueError as error:
            raise ConfigError(f"{key} {error} ({source})") from None
    secrets = Secrets(**values["secrets"])
    if secrets.memory_kib < 8 * secrets.parallelism:  # RFC 9106, section 3.1
        source = given["secrets.parallelism"][1]  # by default one lane, for which the least memory is enough
        raise ConfigError(f"secrets.memory_kib must be at least {8 * secrets.parallelism}, 8 for each lane ({source})")
    keys = Keys(**values["keys"])
    if 0 < keys.rotate_every_seconds <= keys.publish_before_seconds:
        source = given["keys.rotate_every"][1]  # by default off
        least = format_duration(keys.publish_before_seconds)
        raise ConfigError(f"keys.rotate_every must be longer than keys.publish_before, {least} ({source})")
    directory = values["storage"].get("directory", Storage().directory)
    if given.get("storage.directory", ("", ""))[1] not in environment:
        directory = path.parent / directory
    values["storage"]["directory"] = directory.absolute()
    return Settings(
        **{section: cls(**values[section]) for section, cls in _SECTIONS.items()},
        sources={key: source for key, (_, source) in given.items()},
    )


def rows(settings: Settings) -> list[dict[str, str]]:
    """One row a key: its value as `config.toml` would say it, and where the value came from."""
    found = []
    for key, field in _FIELDS.items():
        value = getattr(getattr(settings, key.split(".")[0]), field.name)
        show: Callable[[Any], object] = field.metadata.get("show", str)
        found.append({"key": key, "value": str(show(value)), "source": settings.sources.get(key, "default")})
    return found


def _read(path: Path, *, optional: bool) -> str:
    try:
        return read_regular(path, MAX_FILE_BYTES).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read {path}: not UTF-8") from None
    except OSError as error:
        if optional and isinstance(error, FileNotFoundError):
            return ""
        raise ConfigError(cannot("read", path, error)) from None


def _from_toml(text: str, path: Path) -> dict[str, object]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deep") from None
    found: dict[str, object] = {}
    for section, members in document.items():
        if not isinstance(members, dict) or section not in _SECTIONS:
            raise ConfigError(f"unknown section [{section}] ({path})")
        for name, value in members.items():
            found[_known(f"{section}.{name}", str(path))] = value
    return found


def _from_environment(environment: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    for name in sorted(environment):
        meant = _VARIABLES.get(_words(name))
        if meant is not None and not (name.startswith(ENVIRONMENT_PREFIX) and name.upper() == meant):
            raise ConfigError(
                f"{name} is not read: spell it {meant}, or unset it."
                " If Kubernetes sets it for a Service of that name, set enableServiceLinks: false in the pod"
            )
    names = sorted(name for name in environment if name.startswith(ENVIRONMENT_PREFIX))
    return {
        _known(name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".", 1), name): (environment[name], name)
        for name in names
    }


def _known(key: str, source: str) -> str:
    if key not in _FIELDS:
        raise ConfigError(f"unknown key {key} ({source})")
    return key


def environment() -> Mapping[str, str]:
    return os.environ
