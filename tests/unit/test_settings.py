"""What would leave the door open, or can't work, is refused in one line that says what to do."""

from collections.abc import Mapping
from errno import EACCES
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth import option_table
from ollama_auth.auth.client_ip import TrustedProxies, parse_networks
from ollama_auth.auth.forwarding import FORWARDED
from ollama_auth.auth.keys import Principal
from ollama_auth.http.head import Bounds
from ollama_auth.ollama_api.routes import RouteClass
from ollama_auth.option_table import OPTIONS
from ollama_auth.settings import (
    MASK,
    MAX_KEY_FILE,
    Settings,
    SettingsError,
    check_names,
    masked_url,
    read,
    read_key,
)
from tests.harness.cases import each_of
from tests.harness.options import FakeOptions

KEY = "sk-ollama-0123456789abcdef"
ENVIRON = {"OLLAMA_API_KEY": KEY}


def sizes_of(specs: list[str]) -> dict[RouteClass, int]:
    return option_table.sizes("ollama_max_body", specs)


def settings(environ: Mapping[str, str] = ENVIRON, /, **changed: Any) -> Settings:
    return read(FakeOptions(**changed), environ)


def refusal(environ: Mapping[str, str] = ENVIRON, /, **changed: Any) -> str:
    """The one line that says why this can't be, without the key."""
    with pytest.raises(SettingsError) as caught:
        settings(environ, **changed)
    text = str(caught.value)
    assert text.isprintable(), text
    assert KEY not in text
    return text


def file_of(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_with_a_key_alone_there_is_nothing_else_to_learn() -> None:
    found = settings()
    assert found.ring.find(KEY.encode()) == Principal("default")
    assert (found.access_log, found.forward_headers, found.bounds, found.max_body) == (None, FORWARDED, Bounds(), {})
    assert (found.tls, found.warnings) == (False, ())


def test_every_option_is_ours_and_says_what_it_takes() -> None:
    for option in OPTIONS:
        assert option.name.startswith("ollama_")
        assert option.help.endswith(".")
        assert option.help.isprintable()


def test_what_is_printed_of_settings_holds_no_key() -> None:
    printed = repr(settings(ollama_api_key=KEY))
    assert KEY not in printed
    assert sha256(KEY.encode()).hexdigest() not in printed
    assert repr(sha256(KEY.encode()).digest()) not in printed


# The key.


@each_of("environ", [{}, {"OLLAMA_API_KEYS": KEY}, {"ollama_api_key": KEY}, {"OLLAMA_KEY": KEY}])
def test_no_key(environ: dict[str, str]) -> None:
    text = refusal(environ)
    assert "no key is set" in text
    assert "openssl rand -hex 16" in text
    assert "OLLAMA_API_KEY_FILE" in text


@pytest.mark.parametrize("empty", ["", " ", "\t", "\n", "\r\n ", "\N{NO-BREAK SPACE}"])
def test_an_empty_key(empty: str, tmp_path: Path) -> None:
    path = file_of(tmp_path / "key", empty.encode())
    for text in (
        refusal({"OLLAMA_API_KEY": empty}),
        refusal({}, ollama_api_key=empty),
        refusal({"OLLAMA_API_KEY_FILE": path}),
        refusal({}, ollama_api_key_file=path),
    ):
        assert "the key is empty" in text
        assert "openssl rand" in text


@pytest.mark.parametrize(
    "bad",
    [
        *(f" {KEY}", f"{KEY} ", f"{KEY}\r", f"{KEY}\n\n", f"{KEY}\n{KEY}", f"{KEY}\0", f"{KEY}\x07", f"\x1b[2J{KEY}"),
        *(f"{KEY}\t{KEY}", f"{KEY}ü", f"\N{ZERO WIDTH NO-BREAK SPACE}{KEY}", f"\N{ZERO WIDTH SPACE}{KEY}", KEY * 100),
    ],
)
def test_a_key_that_no_header_could_hold(bad: str, tmp_path: Path) -> None:
    path = file_of(tmp_path / "key", bad.encode())
    assert "OLLAMA_API_KEY:" in refusal({"OLLAMA_API_KEY": bad})
    assert "ollama_api_key:" in refusal({}, ollama_api_key=bad)
    if bad != f"{KEY}\r":  # From an editor that ends lines like that, which is no part of the key.
        assert "OLLAMA_API_KEY_FILE:" in refusal({"OLLAMA_API_KEY_FILE": path})


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\r"])
def test_a_file_that_holds_the_key_may_end_in_a_line_end(end: str, tmp_path: Path) -> None:
    path = file_of(tmp_path / "key", (KEY + end).encode())
    assert settings({"OLLAMA_API_KEY_FILE": path}).ring.find(KEY.encode())
    assert settings({}, ollama_api_key_file=path).ring.find(KEY.encode())


def test_a_file_that_is_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_of(tmp_path / "key", KEY.encode())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings({"OLLAMA_API_KEY_FILE": "~/key"}).ring.find(KEY.encode())


@each_of("path", [".", "/", "nothing", "/nothing/at/all", "~nobody-of-that-name/key", "a\0b", "k" * 5000])
def test_a_file_that_can_not_be_read(path: str) -> None:
    for text in (refusal({"OLLAMA_API_KEY_FILE": path}), refusal({}, ollama_api_key_file=path)):
        assert "can't read" in text
        assert "name a file this process may read that holds the key" in text


def test_a_file_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in refusal({"OLLAMA_API_KEY_FILE": "/run/secrets/key"})


def test_a_path_is_told_where_it_looks_like_one(tmp_path: Path) -> None:
    assert f"{tmp_path}/missing" in refusal({"OLLAMA_API_KEY_FILE": f"{tmp_path}/missing"})


@each_of("name", ["OLLAMA_API_KEY_FILE", "ollama_api_key_file"])
def test_the_key_itself_in_the_place_of_its_file_is_not_told(name: str) -> None:
    environ = {name: KEY} if name.isupper() else {}
    text = refusal(environ) if environ else refusal({}, ollama_api_key_file=KEY)
    assert text.startswith(f"{name}: can't read")


@pytest.mark.parametrize("content", [b"k" * (MAX_KEY_FILE + 1), KEY.encode() + b"\n" * MAX_KEY_FILE])
def test_a_file_that_is_far_too_large(content: bytes, tmp_path: Path) -> None:
    assert "too large" in refusal({"OLLAMA_API_KEY_FILE": file_of(tmp_path / "key", content)})


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a file without an end")
def test_a_file_without_an_end() -> None:
    assert "too large" in refusal({"OLLAMA_API_KEY_FILE": "/dev/zero"})


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    assert "non-ASCII" in refusal({"OLLAMA_API_KEY_FILE": file_of(tmp_path / "key", b"\xff\xfe" * 10)})


def test_both_sources_at_once(tmp_path: Path) -> None:
    path = file_of(tmp_path / "key", KEY.encode())
    for text in (
        refusal({"OLLAMA_API_KEY": KEY, "OLLAMA_API_KEY_FILE": path}),
        refusal({}, ollama_api_key=KEY, ollama_api_key_file=path),
        refusal({}, ollama_api_key=MASK, ollama_api_key_file=path),
    ):
        assert "unset one of them" in text


def test_the_option_wins_over_the_environment(tmp_path: Path) -> None:
    path = file_of(tmp_path / "key", b"sk-another-0123456789")
    environ = {"OLLAMA_API_KEY": KEY, "OLLAMA_API_KEY_FILE": path}
    assert settings(environ, ollama_api_key=KEY[::-1]).ring.find(KEY[::-1].encode())
    assert settings(environ, ollama_api_key=KEY[::-1]).ring.find(KEY.encode()) is None
    assert settings(environ, ollama_api_key_file=path).ring.find(b"sk-another-0123456789")


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_what_is_empty_is_unset_where_another_source_is_there(empty: str, tmp_path: Path) -> None:
    path = file_of(tmp_path / "key", KEY.encode())
    named = file_of(tmp_path / "keys.toml", b'[[keys]]\nname = "anna"\nsha256 = "%s"\n' % (b"ab" * 32))
    assert settings({"OLLAMA_API_KEY": empty, "OLLAMA_API_KEY_FILE": path}).ring.find(KEY.encode())
    assert settings({"OLLAMA_API_KEY": KEY, "OLLAMA_API_KEY_FILE": empty, "OLLAMA_KEYS_FILE": empty}).keys_file is None
    assert settings(ENVIRON, ollama_api_key=empty, ollama_api_key_file=empty).ring.find(KEY.encode())
    found = settings({"OLLAMA_API_KEY": empty, "OLLAMA_API_KEY_FILE": empty, "OLLAMA_KEYS_FILE": named})
    assert list(found.ring.principals) == ["anna"]
    assert "OLLAMA_API_KEY_FILE: the key is empty" in refusal({"OLLAMA_API_KEY_FILE": empty})
    assert "no key is set" in refusal({"OLLAMA_KEYS_FILE": empty})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *((f"{quote}{KEY}{quote}", "a quote") for quote in ('"', "'", "`", "\N{LEFT DOUBLE QUOTATION MARK}")),
        *((text, "a quote") for text in (f'"{KEY}', f"{KEY}'", f' "{KEY}" ', f'"two words {KEY}"')),
        *((f"{name}={KEY}", "NAME=value") for name in ("OLLAMA_API_KEY", "export OLLAMA_API_KEY", "KEY", "$env:KEY")),
        *((f"OLLAMA_API_KEY{text}", "NAME=value") for text in (f"='{KEY}'", f" = {KEY}", f": {KEY}", "=")),
        *((text, "variable") for text in ("$OLLAMA_API_KEY", "${OLLAMA_API_KEY}", "${OLLAMA_API_KEY:-none}", "$1")),
        *((text, "variable") for text in ("$(cat /run/secrets/key)", "sk-ollama-$(openssl rand -hex 9)", "%MY_KEY%")),
        *(
            (text, "variable")
            for text in ("{{ .Values.key }}", "sk-ollama-$SUFFIX-0123456789", "<the-key-of-the-gate>")
        ),
        *((text, "fewer than 16") for text in ("x", "test", "changeme", "fifteen-letters")),
        *(
            (text, "well-known")
            for text in ("changemechangeme", "CHANGE_ME_PLEASE_", "your-api-key-here", "sk-xxxxxxxxxxxxx")
        ),
        *(
            (text, "well-known")
            for text in ("password12345678", "0123456789012345", "aaaaaaaaaaaaaaaa", "abababababababab")
        ),
        *(
            (text, "well-known")
            for text in ("sk-ollama-your-secret-key", "correct-horse-battery-staple", "changeme" * 60)
        ),
        *(
            (make(text).hexdigest(), "digest of")
            for make in (sha256, md5)
            for text in (b"", b"\n", b"test", b"Changeme\n")
        ),
    ],
)
def test_what_is_no_key_though_a_header_could_hold_it(text: str, why: str, tmp_path: Path) -> None:
    path = file_of(tmp_path / "key", f"{text}\n".encode())
    for said in (
        refusal({"OLLAMA_API_KEY": text}),
        refusal({"OLLAMA_API_KEY_FILE": path}),
        refusal(ENVIRON, ollama_api_key=text),
    ):
        assert why in said
        assert "openssl rand -hex 16" in said
        assert len(text) < 10 or text not in said


@each_of("key", ["sixteen-letters-", "c2l4dGVlbi1sZXR0ZXJz==", "pa$5word&co-1234x", "100%-sure-it-is-%"])
def test_a_key_that_is_odd_and_good(key: str) -> None:
    assert settings({"OLLAMA_API_KEY": key}).ring.find(key.encode())


@given(st.binary(min_size=8, max_size=32))
def test_no_random_key_is_refused(data: bytes) -> None:
    assert len(set(data)) < 5 or key_from(data.hex()) == sha256(data.hex().encode()).digest()


def test_a_key_that_was_taken_and_hidden_still_holds() -> None:
    taken = sha256(KEY.encode()).digest()
    found = read(FakeOptions(ollama_api_key=MASK), {"OLLAMA_API_KEY": "another-0123456789"}, {MASK: taken})
    assert found.ring.find(KEY.encode())
    assert found.ring.find(b"another-0123456789") is None
    assert found.ring.find(MASK.encode()) is None


def test_the_mask_of_a_key_that_nobody_took_is_no_key() -> None:
    assert "holds no key" in refusal({}, ollama_api_key=MASK)
    assert "OLLAMA_API_KEY:" in refusal({"OLLAMA_API_KEY": MASK})


def key_from(secret: str) -> bytes | str:
    """The digest of that key, or why it is refused."""
    try:
        return read_key(FakeOptions(), {"OLLAMA_API_KEY": secret})
    except SettingsError as error:
        return str(error)


@given(st.text())
def test_any_text_is_a_key_or_refused_in_one_line_without_it(text: str) -> None:
    found = key_from(KEY + text)
    if isinstance(found, str):
        assert KEY not in found
        assert found.isprintable()
    else:
        assert found == sha256((KEY + text).encode()).digest()


# The mode.


@each_of(
    "mode",
    [
        "reverse:http://127.0.0.1:11434",
        "reverse:https://gpu:443",
        "reverse:http://[::1]:11434",
        "reverse:http://a:1@8081",
    ],
)
def test_the_right_modes(mode: str) -> None:
    assert settings(mode=[mode])


@each_of("endpoint", ["127.0.0.1:11434", "gpu", "[::1]:11434", "localhost:11434@8081", "http:gpu:1"])
def test_an_endpoint_without_a_scheme(endpoint: str) -> None:
    text = refusal(mode=[f"reverse:{endpoint}"])
    assert f"write reverse:http://{endpoint}" in text


@each_of(
    "mode",
    [
        *("regular", "regular@8080", "transparent", "socks5", "wireguard", "local", "local:ollama", "dns", "tun"),
        *("upstream:http://127.0.0.1:11434", "REVERSE:http://a:1", "reverse", ""),
        *(f"reverse:{scheme}://127.0.0.1:11434" for scheme in ("tcp", "tls", "udp", "dtls", "quic", "dns", "http3")),
        *("reverse:HTTP://127.0.0.1:11434", "reverse: http://127.0.0.1:11434", "reverse:://a", "reverse:x-http://a"),
    ],
)
def test_a_mode_without_a_gate_in_it(mode: str) -> None:
    text = refusal(mode=[mode])
    assert "reverse:http://" in text


@each_of(
    "modes",
    [[], ["reverse:http://a:1", "regular@1"], ["socks5", "reverse:http://a:1"], ["reverse:http://a:1"] * 2],
)
def test_any_other_number_of_modes_than_one(modes: list[str]) -> None:
    assert refusal(mode=modes).startswith(f"{len(modes)} modes are set")


# What must not be set.


@each_of(
    ("name", "value", "why"),
    [
        ("ignore_hosts", [".*"], "passes connections through"),
        ("allow_hosts", ["ollama"], "passes connections through"),
        ("tcp_hosts", [".*"], "passes connections through"),
        ("udp_hosts", [".*"], "passes connections through"),
        ("stream_large_bodies", "1m", "streams every body already"),
        ("body_size_limit", "1m", "set ollama_max_body instead"),
        ("proxy_debug", True, "credentials"),
        ("emudhra", True, "the whole world has"),
        ("emudhra_old", True, "the whole world has"),
    ],
)
def test_an_option_of_mitmproxys_that_opens_the_door_or_breaks_a_stream(name: str, value: object, why: str) -> None:
    text = refusal(**{name: value})
    assert f"the option {name} can't be used here" in text
    assert why in text
    assert text.endswith("Remove it")


def test_eager_connections() -> None:
    assert "set it to lazy" in refusal(connection_strategy="eager")


def test_requests_that_are_not_validated() -> None:
    assert "remove it" in refusal(validate_inbound_headers=False)


@each_of(
    ("name", "meant"),
    [
        ("ollama_api_kye", "ollama_api_key"),
        ("ollama_apikey", "ollama_api_key"),
        ("olama_api_key", "ollama_api_key"),
        ("ollama-api-key", "ollama_api_key"),
        ("OLLAMA_API_KEY", "ollama_api_key"),
        ("Ollama_Max_Body", "ollama_max_body"),
        ("ollama_max_conections", "ollama_max_connections"),
        ("ollama_", "ollama_"),
        ("ollama_zzz", "ollama_"),
    ],
)
def test_a_misspelt_option_is_an_error_that_knows_what_was_meant(name: str, meant: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_names({name: "whatever"})
    assert f"no option {name}; did you mean {meant}" in str(caught.value)
    assert "mitmdump --options" in str(caught.value)
    assert "whatever" not in str(caught.value)


@each_of("text", [f"ollama_api_key:{KEY}", f"ollama_api_key {KEY}", f"ollama_api_key\n{KEY}"])
def test_a_key_that_was_written_into_the_name_of_an_option_is_not_told(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_names({text: None})
    assert KEY not in str(caught.value)
    assert str(caught.value).isprintable()
    assert "did you mean ollama_api_key" in str(caught.value)


@each_of("name", ["block_list", "x", "", "web_password", "my_script_option"])
def test_options_that_are_not_ours_are_left_to_others(name: str) -> None:
    check_names({name: "whatever"})


@each_of(
    ("old", "new"),
    [
        ("ollama_limits_away", "ollama_limits_unavailable"),
        ("ollama_max_judged_body", "ollama_max_inspected_body"),
        ("OLLAMA_LIMITS_AWAY", "ollama_limits_unavailable"),
    ],
)
def test_an_old_name_of_an_option_is_an_error_that_says_the_new_one(old: str, new: str) -> None:
    with pytest.raises(SettingsError, match=f"{old.lower()} is called {new} now"):
        check_names({old: "open"})


def test_misspelt_options_are_found_when_everything_is_read() -> None:
    options = FakeOptions()
    options.deferred["ollama_max_hed"] = "1"
    with pytest.raises(SettingsError, match="ollama_max_head"):
        read(options, ENVIRON)


# Numbers, sizes and names.

INTEGERS = [option.name for option in OPTIONS if option.type is int]


@each_of("name", INTEGERS)
@each_of("value", [-1, -(2**40)])
def test_a_bound_below_zero(name: str, value: int) -> None:
    assert f"{name} is {value}: it must be at least" in refusal(**{name: value})


@each_of("name", INTEGERS)
def test_a_bound_of_zero_is_none_but_for_some(name: str) -> None:
    waits = {"ollama_grace_period", "ollama_drain_delay", "ollama_keepalive_idle", "ollama_replaced_keys_timeout"}
    if name in waits | {"ollama_max_connections_per_client"}:
        assert settings(**{name: 0})
    else:
        assert f"{name} is 0: it must be at least 1" in refusal(**{name: 0})


@each_of("name", INTEGERS)
def test_every_number_that_is_set_arrives(name: str) -> None:
    found, attribute = settings(**{name: 77}), name.removeprefix("ollama_")
    bounds = {"max_head": "head", "max_header_count": "fields", "max_target": "target"}
    assert getattr(found.bounds, bounds[attribute]) == 77 if attribute in bounds else getattr(found, attribute) == 77


@each_of(
    ("specs", "sizes"),
    [
        ([], {}),
        (["infer=64m"], {RouteClass.INFER: 64 * 1024**2}),
        (
            ["infer=1", "embed=2k", "blob=3G", "push=4MB"],
            {"infer": 1, "embed": 2048, "blob": 3 * 1024**3, "push": 4 * 1024**2},
        ),
        (["infer=0"], {RouteClass.INFER: 0}),
        (["infer = 5 k"], {RouteClass.INFER: 5120}),
        (["infer=1", "infer=2"], {RouteClass.INFER: 2}),
        (["all=1k"], dict.fromkeys(RouteClass, 1024)),
        (["blob=2g", "all=1k"], dict.fromkeys(RouteClass, 1024) | {RouteClass.BLOB: 2 * 1024**3}),
    ],
)
def test_sizes(specs: list[str], sizes: dict[RouteClass, int]) -> None:
    assert sizes_of(specs) == sizes
    assert settings(ollama_max_body=specs).max_body == sizes


@each_of(
    "spec",
    [
        *("", "infer", "infer=", "=1m", "infer:1m", "1m", "chat=1m", "INFER=1m", "infer=1x", "infer=-1", "infer=1.5m"),
        *("infer=1m,embed=1m", "infer==1", "infer=0x10", "infer=unlimited", "infer=1\n", "infer=1mm", "infer=1_000"),
        *("infer=\N{ARABIC-INDIC DIGIT FIVE}", "infer=" + "9" * 13, "infer=\x1b[2J"),
    ],
)
def test_a_size_that_is_none(spec: str) -> None:
    text = refusal(ollama_max_body=[spec])
    assert "CLASS=SIZE, such as infer=64m" in text
    assert "blob" in text


@given(st.text(max_size=20) | st.from_regex(r"[a-z]{2,6}=[0-9]{0,13}[kmgKMGb]{0,2}", fullmatch=True))
def test_any_text_is_a_size_or_refused(spec: str) -> None:
    try:
        sizes = sizes_of([spec])
    except SettingsError as error:
        sizes, spec = {}, str(error)
    assert all(size >= 0 for size in sizes.values())
    assert spec.isprintable()


@each_of("name", ["Authorization", "x-api-key", "Connection", "Host", "te", "content-length", "a b", ""])
def test_a_header_that_can_not_be_forwarded(name: str) -> None:
    assert refusal(ollama_forward_headers=["accept", name]).startswith("ollama_forward_headers: ")


def test_a_header_that_can() -> None:
    assert settings(ollama_forward_headers=["X-Trace"]).forward_headers == FORWARDED | {b"x-trace"}


@each_of(("value", "target"), [(None, None), ("", None), ("-", "-"), ("log", "log")])
def test_where_the_access_log_goes(value: str | None, target: str | None) -> None:
    assert settings(ollama_access_log=value).access_log == target


def test_a_certificate_means_tls() -> None:
    assert settings(certs=["*=cert.pem"]).tls


def test_the_url_of_the_storage_of_limits(tmp_path: Path) -> None:
    """Of the option, a file, or the environment; its password is in no mask, and in no message."""
    url, other = "redis://me:s3cret@h:6379/1", "redis://other"
    file = file_of(tmp_path / "url", f"{url}\n".encode())
    for environ, changed, expected in (
        ({}, {}, None),
        ({"OLLAMA_LIMITS_STORAGE": " "}, {"ollama_limits_storage": ""}, None),
        ({"OLLAMA_LIMITS_STORAGE": url}, {}, url),
        ({"OLLAMA_LIMITS_STORAGE_FILE": file}, {}, url),
        ({"OLLAMA_LIMITS_STORAGE": url}, {"ollama_limits_storage": other}, other),
        ({"OLLAMA_LIMITS_STORAGE": other}, {"ollama_limits_storage_file": file}, url),
    ):
        assert settings(ENVIRON | environ, **changed).limits_storage == expected
    assert "s3cret" not in repr(settings(ollama_limits_storage=url))
    both = refusal(ollama_limits_storage=url, ollama_limits_storage_file=file)
    assert both.startswith("both ollama_limits_storage and ollama_limits_storage_file are set")
    assert "holds the URL" in refusal(ollama_limits_storage_file=f"{tmp_path}/none")
    assert masked_url(url) == "redis://***@h:6379/1"
    assert masked_url("rediss://h/0?ssl_password=s3cret&x=1") == "rediss://***@h/0"
    assert masked_url("redis://h:6379/0") is None


def test_names_and_time_zones() -> None:
    assert (settings().limits_name, settings().timezone.key) == ("main", "UTC")
    assert settings(ollama_timezone="Europe/Berlin").timezone.key == "Europe/Berlin"
    for zone in ("", "Mars/Base", "../etc/passwd", "/etc/passwd"):
        assert "is known here" in refusal(ollama_timezone=zone)
    for name in ("", "a b", "a:b", "x" * 65):
        assert "ollama_limits_name" in refusal(ollama_limits_name=name)


# Proxies.


def test_no_proxy_is_trusted() -> None:
    assert (settings().proxies, settings().proxy_protocol) == (TrustedProxies(), False)


def test_proxies_by_option_or_environment() -> None:
    environ = ENVIRON | {"OLLAMA_TRUSTED_PROXIES": " 10.0.0.2, ::1 "}
    assert settings(environ).proxies == TrustedProxies(parse_networks(["10.0.0.2", "::1"]))
    assert settings(environ, ollama_trusted_proxies=["10.0.0.3"]).proxies.networks == parse_networks(["10.0.0.3"])
    assert settings(ENVIRON | {"OLLAMA_TRUSTED_PROXIES": ""}).proxies == TrustedProxies()
    assert settings(ollama_client_ip_header="Forwarded").proxies.header == "Forwarded"


def test_proxies_that_can_not_be_right() -> None:
    assert "ollama_trusted_proxies: 'nginx'" in refusal(ollama_trusted_proxies=["10.0.0.2", "nginx"])
    assert "write 10.0.0.0/8" in refusal(ENVIRON | {"OLLAMA_TRUSTED_PROXIES": "10.0.0.1/8"})
    assert "name the proxies" in refusal(ollama_trusted_proxies=["0.0.0.0/0"])
    assert "ollama_client_ip_header: 'X Real IP'" in refusal(ollama_client_ip_header="X Real IP")
    assert "ollama_client_ip_header: ''" in refusal(ollama_client_ip_header="")
    assert "ollama_trusted_proxies" in refusal(ollama_proxy_protocol=True)


def test_keepalive() -> None:
    assert settings().vanished_after == 50
    assert settings(ollama_keepalive_idle=0).keepalive_idle == 0
    assert "ollama_keepalive_idle is -1" in refusal(ollama_keepalive_idle=-1)
    assert "at most 32767" in refusal(ollama_keepalive_interval=32768)
    assert "at most 127" in refusal(ollama_keepalive_probes=128)
    assert "at least 1" in refusal(ollama_keepalive_probes=0)
