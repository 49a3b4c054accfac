"""What can be configured, within which bounds, and that everything else is refused by its name."""

import csv
import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import config
from service.config import ConfigError, Settings, format_duration, load, parse_duration, rows

ROOT = Path(__file__).parents[1]

# Each key's values that are just within its bounds, and those just beyond. What is a number may be said as a text.
BOUNDS: dict[str, tuple[list[Any], list[Any]]] = {
    "http.host": (["::1", "0.0.0.0", "auth.example.com", "a_b-c", "a."], ["", "a b", "http://a", "a..b", "a" * 64, 5]),
    "http.port": ([0, 65_535, "80"], [-1, 65_536, "", "80 ", 80.0, True, "８０", None, "1" * 30, [80]]),
    "http.header_timeout": (["1ms", "10m"], ["0", "601s"]),
    "http.body_timeout": (["1ms", "10m", "600s"], ["0", "0ms", "601s", "10", 10, "1.5s", "-1s", "1S", " 1s", "1w", ""]),
    "http.write_timeout": (["1ms", "10m"], ["0", "601s"]),
    "http.keepalive_timeout": (["1s", "1000ms", "1h"], ["999ms", "3601s", "0"]),
    "http.max_connections": ([1, 1_000_000], [0, 1_000_001]),
    "http.max_in_flight": ([1, 1_000_000], [0, 1_000_001]),
    "http.drain_grace": (["0", "10m"], ["601s", "-1s"]),
    "http.shutdown_timeout": (["1ms", "10m"], ["0", "11m"]),
    "http.server_error_status": ([400, 500, "503"], [200, 401, "", "400.0", True]),
    "http.account_errors": (["documented", "uniform"], ["Uniform", "", True]),
    "http.trusted_proxies": (
        [[], ["10.0.0.0/8", "2001:db8::/32", "192.0.2.1", "::1"], ["::ffff:10.0.0.0/104"]],
        [
            *("10.0.0.1/8", "10.0.0.0/33", "a", "10.0.0.0/8,", ",", "fe80::1%eth0", "10.0.0.0-10.0.0.9", True, 5, {}),
            *([""], [5], [["::1"]], ["10.0.0.0/8,::1"], None, "[", '["::1"', "[::1]", "[5]", "[[]]"),
        ],
    ),
    "http.forwarded_header": (["x-forwarded-for", "forwarded"], ["X-Forwarded-For", "x-real-ip", ""]),
    "storage.directory": (["var", "/tmp/x", "~/x", "ü"], ["", "a\0b", "~nobody-of-that-name/x", "a\udcff", 5]),
    "storage.lock_timeout": (["1ms", "1m"], ["0", "61s"]),
    "tokens.issuer": (
        [
            *("", "https://a.example/ü", "http://127.0.0.1:8080", "https://a/b%2Fc/", "https://[2001:db8::1]:65535/x"),
            *("https://auth_1.ex-ample.com.", "HTTPS://a", "https://zoë.example"),
        ],
        [
            *("auth.example.com", " https://a ", "https://a/?x#y", "https://a/?", "https://a#", "https://a/b#", " "),
            *("https://", "https:///a", "https://?", "https:a", "ftp://a", "//a", "/a", "a:b", "https://u@a", "a\nb"),
            *(
                "https://u:p@a",
                "https://a:b",
                "https://a:",
                "https://a:0",
                "https://a:65536",
                "https://a\n",
                "https://.",
            ),
            *("https://a b", "https://a/b c", "https://a/\u00a0", "https://a/\x7f", "https://a/\udcff", "https://a\\b"),
            *("https://a/\u200b", "https://a/%", "https://a/%zz", "https://a..b", "https://[::1", "https://[a]"),
            *("https://[::1]x", "https://[fe80::1%25a]", "https://a,https://b", "http://[1.2.3.4]", 5),
        ],
    ),
    "tokens.audience": (["", "api"], ["\t", "a\x00"]),
    "tokens.ttl": (["1s", "3650d"], ["0", "999ms", "1500ms", "3651d", 3600]),
    "tokens.leeway": (["0", "1ms", "10m"], ["-1s", "601s", 10]),
    "tokens.algorithm": (["EdDSA", "ES256", "RS256", "HS256"], ["none", "eddsa", "RS512", "", 256]),
    "keys.rotate_every": (["0", "3601s", "36500d"], ["1ms", "1h", "36501d", "-1s"]),
    "keys.publish_before": (["1s", "36500d"], ["0", "999ms", "36501d"]),
    "accounts.claim_window": (["0", 0, "36500d"], ["36501d", "-1s", "999999999d", "1" * 10 + "s"]),
    "secrets.memory_kib": ([8, 4_194_304], [7, 4_194_305]),
    "secrets.iterations": ([1, 1000], [0, 1001]),
    "secrets.parallelism": ([1, 64], [0, 65]),
    "secrets.hash_workers": ([0, 256], [-1, 257]),
    "secrets.hash_queue": ([1, 1_000_000], [0, 1_000_001]),
    "secrets.cache_entries": ([0, 100_000_000], [-1, 100_000_001]),
    "secrets.cache_ttl": (["0", "36500d"], ["36501d"]),
    "audit.origin": (["", "auth.example.com/log", "x" * 256], ["a b", "a+b", "a\n", "x" * 257, 1]),
    "audit.checkpoint_interval": (["50ms", "1h"], ["49ms", "3601s"]),
    "audit.max_pending_events": ([64, 10_000_000], [63, 10_000_001]),
    "logs.format": (["auto", "json", "console"], ["JSON", "text", ""]),
}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without a `config.toml`."""
    monkeypatch.chdir(tmp_path)


def variable(key: str) -> str:
    return "HUBLER_AUTH__" + key.upper().replace(".", "__")


def write(directory: Path, text: str) -> Path:
    file = directory / "config.toml"
    file.write_text(text)
    return file


def value_of(settings: Settings, key: str) -> str:
    return next(row["value"] for row in rows(settings) if row["key"] == key)


def test_every_key_has_its_bounds_in_the_table_of_this_test() -> None:
    assert tuple(BOUNDS) == config.KEYS


@pytest.mark.parametrize(
    ("key", "value"),
    [pytest.param(key, value, id=f"{key}-{value}") for key, (within, _) in BOUNDS.items() for value in within],
)
def test_a_value_within_bounds_is_taken_from_the_file_and_from_the_environment(
    tmp_path: Path, key: str, value: str | int | list[str]
) -> None:
    section, name = key.split(".")
    from_file = load(write(tmp_path, f"[{section}]\n{name} = {json.dumps(value)}"), {})
    spelled = ", ".join(value) if isinstance(value, list) else str(value)
    from_environment = load(write(tmp_path, ""), {variable(key): spelled})
    assert {row["key"] for row in rows(from_file) if row["source"] != "default"} == {key}
    if key != "storage.directory":  # relative, it counts from the file's folder or from the working directory
        assert from_file == from_environment == load(None, {variable(key): value_of(from_file, key)})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param(key, value, id=f"{key}-{index}")
        for key, (_, beyond) in BOUNDS.items()
        for index, value in enumerate(beyond)
    ],
)
def test_a_value_beyond_bounds_is_refused_by_its_key_and_where_it_stands(key: str, value: object) -> None:
    section, name = key.split(".")
    with pytest.raises(ConfigError) as refused:
        load(None, {variable(key): value})  # type: ignore[dict-item]  # as a file could say it
    assert str(refused.value).startswith(f"{section}.{name} must be ")
    assert str(refused.value).endswith(f"({variable(key)})")


def test_lanes_that_have_too_little_memory_between_them_are_refused() -> None:
    lanes = {"HUBLER_AUTH__SECRETS__PARALLELISM": "4"}
    assert load(None, {**lanes, "HUBLER_AUTH__SECRETS__MEMORY_KIB": "32"}).secrets.memory_kib == 32
    with pytest.raises(ConfigError) as refused:
        load(None, {**lanes, "HUBLER_AUTH__SECRETS__MEMORY_KIB": "31"})
    says = "secrets.memory_kib must be at least 32, 8 for each lane (HUBLER_AUTH__SECRETS__PARALLELISM)"
    assert str(refused.value) == says


def test_a_list_may_be_spelled_in_the_environment_as_in_the_file() -> None:
    for spelled in ('["10.0.0.0/8", "::1"]', "10.0.0.0/8,::1", " 10.0.0.0/8 , ::1 "):
        found = load(None, {"HUBLER_AUTH__HTTP__TRUSTED_PROXIES": spelled})
        assert value_of(found, "http.trusted_proxies") == "10.0.0.0/8,::1/128"


def test_proxies_may_be_named_in_a_thousand_networks(tmp_path: Path) -> None:
    most = "[http]\ntrusted_proxies = [" + '"::1",' * 1000
    assert len(load(write(tmp_path, most + "]"), {}).http.trusted_proxies) == 1000
    with pytest.raises(ConfigError, match="at most 1000 networks"):
        load(write(tmp_path, most + '"::1"]'), {})


def test_keys_that_would_not_be_published_in_time_are_refused() -> None:
    published = {"HUBLER_AUTH__KEYS__PUBLISH_BEFORE": "90s"}
    assert load(None, {**published, "HUBLER_AUTH__KEYS__ROTATE_EVERY": "91s"}).keys.rotate_every_seconds == 91
    with pytest.raises(ConfigError) as refused:
        load(None, {**published, "HUBLER_AUTH__KEYS__ROTATE_EVERY": "90s"})
    says = "keys.rotate_every must be longer than keys.publish_before, 90s (HUBLER_AUTH__KEYS__ROTATE_EVERY)"
    assert str(refused.value) == says


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("[htttp]\nport = 1", "unknown section [htttp]", id="section"),
        pytest.param("port = 1", "unknown section [port]", id="key-outside-any-section"),
        pytest.param("http = 1", "unknown section [http]", id="section-that-is-a-value"),
        pytest.param("[[http]]\nport = 1", "unknown section [http]", id="sections-in-a-row"),
        pytest.param("[http]\nprot = 1", "unknown key http.prot", id="key"),
        pytest.param("[http]\nport_seconds = 1", "unknown key http.port_seconds", id="key-with-unit"),
        pytest.param("[http]\nbody_timeout_seconds = 1", "unknown key http.body_timeout_seconds", id="name-in-code"),
        pytest.param("[http.port]\na = 1", "http.port must be a whole number", id="table-for-a-value"),
        pytest.param("[http]\nport = 70000", "http.port must be from 0 to 65535", id="value"),
        pytest.param("[http\n", "is not TOML", id="no-toml"),
        pytest.param("[http]\nport = 1\nport = 2", "is not TOML", id="key-twice"),
        pytest.param(f"[http]\nport = {'[' * 5000}", "is nested too deep", id="brackets"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_the_name_of_what_is_wrong(
    tmp_path: Path, text: str, says: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load(file, {})
    assert says in str(refused.value)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("HUBLER_AUTH__HTTP__PROT", "http.prot"),
        ("HUBLER_AUTH__HTTP", "http"),
        ("HUBLER_AUTH__", ""),
        ("HUBLER_AUTH__HTTP__PORT__X", "http.port__x"),
        ("HUBLER_AUTH__SOURCES__X", "sources.x"),
    ],
)
def test_an_unknown_variable_is_refused_by_its_name(name: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^unknown key {key} \\({name}\\)$"):
        load(None, {name: "1"})


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *((variable(key).replace("__", "_"), key) for key in config.KEYS),
        ("HUBLER_AUTH__STORAGE_DIRECTORY", "storage.directory"),
        ("HUBLER_AUTH_STORAGE__DIRECTORY", "storage.directory"),
        ("HUBLER_AUTH___STORAGE__DIRECTORY", "storage.directory"),
        ("HUBLER_AUTH__HTTP__BODY__TIMEOUT", "http.body_timeout"),
        ("hubler_auth_storage_directory", "storage.directory"),
        ("hubler_auth__storage__directory", "storage.directory"),
        ("Hubler_Auth_Storage_Directory", "storage.directory"),
        ("HUBLER-AUTH.STORAGE.DIRECTORY", "storage.directory"),
    ],
)
def test_a_variable_that_is_nearly_one_of_ours_is_refused_with_the_right_spelling(name: str, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, {name: "x", variable(key): "y"})
    assert str(refused.value).startswith(f"{name} is not read: spell it {variable(key)}, or unset it.")
    assert "enableServiceLinks: false" in str(refused.value)


KUBERNETES = ["PORT", "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8080_TCP", "PORT_8080_TCP_ADDR"]


def test_variables_of_others_are_let_be() -> None:
    others = ["HUBLER_AUTH", "HUBLER_AUTH_", "HUBLER_AUTH_CONFIG", "XHUBLER_AUTH__HTTP__PORT", "HTTP__PORT", "PATH"]
    services = [f"{name}_{end}" for name in ("HUBLER_AUTH", "HUBLER_AUTH_WEB") for end in KUBERNETES]
    assert load(None, dict.fromkeys([*others, *services], "x")).sources == {}


def test_a_variable_may_be_in_lower_case_behind_the_prefix() -> None:
    assert load(None, {"HUBLER_AUTH__http__port": "81"}).http.port == 81


def test_the_environment_stands_over_the_file_and_each_key_tells_its_source(tmp_path: Path) -> None:
    file = write(tmp_path, '[http]\nport = 1\nhost = "::1"\n')
    found = {row["key"]: row for row in rows(load(file, {"HUBLER_AUTH__HTTP__PORT": "2"}))}
    assert found["http.port"] == {"key": "http.port", "value": "2", "source": "HUBLER_AUTH__HTTP__PORT"}
    assert found["http.host"] == {"key": "http.host", "value": "::1", "source": str(file)}
    assert found["http.body_timeout"] == {"key": "http.body_timeout", "value": "10s", "source": "default"}


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        pytest.param("", {}, "etc/var", id="default-counts-from-the-file"),
        pytest.param('[storage]\ndirectory = "kept"', {}, "etc/kept", id="the-files-own-counts-from-it"),
        pytest.param('[storage]\ndirectory = "/kept"', {}, "/kept", id="absolute"),
        pytest.param("", {"HUBLER_AUTH__STORAGE__DIRECTORY": "kept"}, "work/kept", id="the-environments-from-here"),
        pytest.param(None, {}, "work/var", id="no-file-counts-from-here"),
    ],
)
def test_a_relative_directory_counts_from_where_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, variables: dict[str, str], expected: str
) -> None:
    for folder in ("etc", "work"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    found = load(None if text is None else write(tmp_path / "etc", text), variables)
    assert found.storage.directory == tmp_path / expected
    assert found.database == tmp_path / expected / "auth.db"
    assert found.keys_directory == tmp_path / expected / "keys"


def test_the_file_in_the_working_directory_is_used_where_none_is_named(tmp_path: Path) -> None:
    write(tmp_path, "[http]\nport = 1234")
    assert load(None, {}).http.port == 1234


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda file: None, "No such file or directory", id="missing"),
        pytest.param(lambda file: file.mkdir(), "Is a directory", id="folder"),
        pytest.param(lambda file: file.write_bytes(b"[http]\n# \xff"), "not UTF-8", id="not-utf-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, make: Any, says: str) -> None:
    make(tmp_path / "named.toml")
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "named.toml", {})
    assert str(refused.value) == f"cannot read {tmp_path / 'named.toml'}: {says}"


@pytest.mark.parametrize(
    ("host", "tokens", "issuer", "audience"),
    [
        ("127.0.0.1", {}, "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("::1", {}, "http://[::1]:8080", "http://[::1]:8080"),
        ("::1", {"ISSUER": "https://a"}, "https://a", "https://a"),
        ("::1", {"AUDIENCE": "api"}, "http://[::1]:8080", "api"),
    ],
)
def test_issuer_and_audience_follow_from_the_address_unless_they_are_said(
    host: str, tokens: dict[str, str], issuer: str, audience: str
) -> None:
    variables = {f"HUBLER_AUTH__TOKENS__{name}": value for name, value in tokens.items()}
    found = load(None, {"HUBLER_AUTH__HTTP__HOST": host, **variables})
    assert (found.issuer, found.audience) == (issuer, audience)


def test_an_issuer_is_refused_with_an_example_of_a_right_one() -> None:
    with pytest.raises(ConfigError, match=r'such as "https://auth\.example\.com"'):
        load(None, {"HUBLER_AUTH__TOKENS__ISSUER": "auth.example.com"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0:0::0"])
def test_an_issuer_that_nobody_can_reach_is_warned_of_unless_it_is_said(host: str) -> None:
    variables = {"HUBLER_AUTH__HTTP__HOST": host}
    found = load(None, variables)
    assert found.issuer_warning is not None
    assert found.issuer in found.issuer_warning
    assert load(None, {**variables, "HUBLER_AUTH__TOKENS__ISSUER": "https://a"}).issuer_warning is None
    for other in ("127.0.0.1", "localhost"):
        assert load(None, {"HUBLER_AUTH__HTTP__HOST": other}).issuer_warning is None


class TestDurations:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("0", 0), ("0s", 0), ("250ms", 0.25), ("10s", 10), ("5m", 300), ("72h", 259_200), ("30d", 2_592_000)],
    )
    def test_a_duration_is_a_number_and_a_unit(self, text: str, seconds: float) -> None:
        assert parse_duration(text) == seconds

    @given(st.integers(0, 999_999_999), st.sampled_from(["ms", "s", "m", "h", "d"]))
    def test_a_duration_that_is_shown_is_read_as_what_it_was(self, number: int, unit: str) -> None:
        seconds = parse_duration(f"{number}{unit}")
        assert parse_duration(format_duration(seconds)) == seconds

    @pytest.mark.parametrize(("seconds", "text"), [(0, "0"), (0.001, "1ms"), (90, "90s"), (3600, "1h"), (86_400, "1d")])
    def test_a_duration_is_shown_in_the_largest_unit_that_divides_it(self, seconds: float, text: str) -> None:
        assert format_duration(seconds) == text


class TestDocumentedFile:
    """`config.toml`, which every operator starts from."""

    def test_it_says_every_key_with_its_default_and_changes_none(self) -> None:
        text = (ROOT / "config.toml").read_text()
        said = [f"{section}.{name}" for section, members in tomllib.loads(text).items() for name in members]
        assert said == list(config.KEYS)
        found, default = (
            load(ROOT / "config.toml", {}),
            load(None, {"HUBLER_AUTH__STORAGE__DIRECTORY": str(ROOT / "var")}),
        )
        assert found == default

    def test_it_says_something_about_every_key(self) -> None:
        lines = (ROOT / "config.toml").read_text().splitlines()
        described = False
        for line in lines:
            if line.startswith("# "):
                described = True
            elif line == "" or line.startswith("["):
                described = False
            else:
                assert described, line


class TestCommands:
    def run(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-m", "service", "config", *arguments],
            env=environment | {f"HUBLER_AUTH__{name}": value for name, value in variables.items()},
            capture_output=True,
            text=True,
            timeout=30,
        )

    def test_check_says_that_a_configuration_is_fine(self, tmp_path: Path) -> None:
        found = self.run("check", "--config", str(write(tmp_path, "")))
        assert (found.returncode, found.stdout, found.stderr) == (0, "", "The configuration is fine.\n")
        assert list(tmp_path.iterdir()) == [tmp_path / "config.toml"]

    def test_check_warns_of_an_issuer_that_nobody_can_reach(self) -> None:
        found = self.run("check", HTTP__HOST="0.0.0.0")
        assert (found.returncode, found.stdout) == (0, "")
        warning, fine = found.stderr.splitlines()
        assert warning.startswith("Warning: tokens.issuer is not set, so tokens and metadata name http://0.0.0.0:8080,")
        assert fine == "The configuration is fine."

    @pytest.mark.parametrize("command", ["check", "show"])
    def test_a_configuration_that_is_not_is_a_usage_error_that_names_the_key(self, command: str) -> None:
        found = self.run(command, HTTP__PORT="seventy")
        assert (found.returncode, found.stdout) == (2, "")
        assert found.stderr == "hubler-auth: http.port must be a whole number (HUBLER_AUTH__HTTP__PORT)\n"

    def test_a_variable_that_is_nearly_one_of_ours_is_a_usage_error_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HUBLER_AUTH_STORAGE_DIRECTORY", str(tmp_path / "kept"))
        found = self.run("check")
        assert (found.returncode, found.stdout) == (2, "")
        assert found.stderr.startswith("hubler-auth: HUBLER_AUTH_STORAGE_DIRECTORY is not read: spell it")

    @pytest.mark.parametrize("style", ["table", "json", "ndjson", "csv"])
    def test_show_writes_every_key_its_value_and_its_source(self, tmp_path: Path, style: str) -> None:
        file = write(tmp_path, '[tokens]\naudience = "a, \\"b\\""')
        found = self.run("show", "--config", str(file), "--format", style, HTTP__BODY_TIMEOUT="90s")
        assert (found.returncode, found.stderr) == (0, "")
        expected = rows(load(file, {"HUBLER_AUTH__HTTP__BODY_TIMEOUT": "90s"}))
        match style:
            case "table":
                header, *lines = found.stdout.splitlines()
                assert header.split() == ["KEY", "VALUE", "SOURCE"]
                assert [line.split()[0] for line in lines] == [row["key"] for row in expected]
                assert [line.split()[-1] for line in lines] == [row["source"] for row in expected]
            case "json":
                assert json.loads(found.stdout) == expected
            case "ndjson":
                assert [json.loads(line) for line in found.stdout.splitlines()] == expected
            case "csv":
                assert list(csv.DictReader(io.StringIO(found.stdout))) == expected
