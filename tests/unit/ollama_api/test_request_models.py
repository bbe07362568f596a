"""The models a request names are those that Ollama would use; what could be read in two ways is refused.

What Go reads was seen with Go 1.27's encoding/json and mime/multipart.
"""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_auth.ollama_api import json_scanner, strict_json
from ollama_auth.ollama_api.model_names import canonical, is_cloud, reference
from ollama_auth.ollama_api.request_models import MAX_MARKS, MAX_PARTS, Asked, BodyError
from ollama_auth.ollama_api.routes import _ROUTES, Route, RouteClass, route
from tests.harness.cases import each_of


def ask(method: str, path: str, body: bytes = b"", query: bytes = b"", content_type: bytes = b"") -> Asked:
    return read(route(method.encode(), path.encode()), query, content_type, body)


def read(found: Route, query: bytes, content_type: bytes, *pieces: bytes) -> Asked:
    """What a request asks for whose body comes in these pieces."""
    reader = found.body_reader(query, content_type)
    for piece in pieces:
        reader.feed(piece)
    return reader.finish()


def names(path: str, body: Any, method: str = "POST") -> tuple[str, ...]:
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return ask(method, path, raw).names


def refusal(path: str, body: str | bytes, **more: bytes) -> BodyError:
    with pytest.raises(BodyError) as caught:
        ask("POST", path, body if isinstance(body, bytes) else body.encode(), **more)
    assert caught.value.message.isprintable()
    assert not caught.value.message.endswith(".")
    return caught.value


KNOWN = [(method, path, found.route_class) for (method, path), found in _ROUTES.items()]
MODEL = [
    *(f"/api/{name}" for name in ("generate", "chat", "embed", "embeddings")),
    *(f"/v1/{name}" for name in ("chat/completions", "completions", "embeddings", "responses", "messages")),
]


@each_of("path", MODEL)
def test_routes_that_read_model_alone(path: str) -> None:
    assert names(path, {"model": "M:8B", "name": "other"}) == ("m:8b",)
    assert refusal(path, '{"name": "m"}').status == 400
    assert refusal(path, '{"model": ""}').status == 400


@each_of(
    ("method", "path"),
    [("POST", f"/api/{name}") for name in ("show", "pull", "push", "create")] + [("DELETE", "/api/delete")],
)
def test_routes_that_read_name_where_model_is_empty(method: str, path: str) -> None:
    assert names(path, {"model": "m"}, method) == ("m:latest",)
    assert names(path, {"name": "n"}, method) == ("n:latest",)
    assert names(path, {"name": "n", "model": "m"}, method) == ("m:latest",)
    assert names(path, {"name": "n", "model": ""}, method) == ("n:latest",)
    assert names(path, {"name": "n", "model": None}, method) == ("n:latest",)
    with pytest.raises(BodyError):
        names(path, {"name": "", "model": None}, method)


def test_a_copy_has_two_names() -> None:
    assert names("/api/copy", {"source": "a", "destination": "b:8b", "model": "x"}) == ("a:latest", "b:8b")
    assert names("/api/copy", {"source": "a", "destination": "A:latest"}) == ("a:latest",)
    for body in ('{"source": "a"}', '{"destination": "a"}', '{"source": "a", "destination": "é"}'):
        assert refusal("/api/copy", body).status == 400


def test_what_a_model_is_created_from() -> None:
    assert ask("POST", "/api/create", b'{"model": "m", "files": {"model": "sha256:00"}}') == Asked(("m:latest",))
    assert ask("POST", "/api/create", b'{"model": "m", "from": ""}') == Asked(("m:latest",))
    made = ask("POST", "/api/create", b'{"model": "m", "FROM": "hf.co/a/b"}')
    assert made == Asked(("m:latest", "hf.co/a/b:latest"), pulls=True)


@each_of("key", ["modelfile", "Modelfile", "path", "remote_host", "REMOTE_HO\u017fT"])
@each_of("value", ['"x"', "1", "0", "[1]", '{"model": 1}'])
def test_no_other_way_to_say_what_a_model_is_created_from(key: str, value: str) -> None:
    assert refusal("/api/create", f'{{"model": "m", "{key}": {value}}}').status == 400
    assert names("/api/create", f'{{"model": "m", "{key}": null}}') == ("m:latest",)
    assert names("/api/create", f'{{"model": "m", "{key}": ""}}') == ("m:latest",)


def test_where_local_is_a_tag_and_where_it_is_none() -> None:
    assert names("/api/chat", {"model": "m:local"}) == ("m:latest",)
    assert names("/api/pull", {"model": "m:local"}) == ("m:latest",)
    assert names("/api/delete", {"model": "m:local"}, "DELETE") == ("m:latest",)
    assert names("/api/push", {"model": "m:local"}) == ("m:local",)
    assert names("/api/copy", {"source": "m:local", "destination": "n:local"}) == ("m:local", "n:local")
    assert names("/api/create", {"model": "m:local", "from": "n:local"}) == ("m:local", "n:latest")


@each_of(
    ("body", "expected"),
    [
        ('{"model":"nope","MODEL":"tiny"}', "tiny"),  # Seen: it runs tiny.
        ('{"MODEL":"nope","model":"tiny"}', "tiny"),
        ('{"mOdEl":"tiny"}', "tiny"),
        ('{"\\u006dodel":"tiny"}', "tiny"),
        ('{"model":"a","model":"b","model":"tiny"}', "tiny"),
        ('{"model":"tiny","model":null}', "tiny"),
        ('{"model":"tiny","Model":null,"prompt":{"model":"x"},"messages":[{"model":"y"}]}', "tiny"),
        ('{"model":"tiny"}{"model":"evil"}', "tiny"),
        ('{"model":"tiny"} and more', "tiny"),
        ('{"model":"tiny"}\0\0', "tiny"),
        (' \t\r\n{"model":"tiny"}', "tiny"),
        ('{"model":"tiny","model ":"x"," model":"x","mode\u0131":"x","\uff4dodel":"x","models":"x"}', "tiny"),
        ('{"model":"tiny","x":1e999,"y":-0.0,"z":' + "9" * 10_000 + "}", "tiny"),
        ('{"model":"tiny","\\ud800":"\\udc00"}', "tiny"),
        ('{"model":"\\u0074iny"}', "tiny"),
        ('{"model":"\\/tiny","model":"tiny"}', "tiny"),
        ('{"model":"tiny","name":5}', "tiny"),
        ('{"' + "k" * 100_000 + '":1,"model":"tiny"}', "tiny"),
    ],
)
def test_json_as_go_reads_it(body: str, expected: str) -> None:
    assert names("/api/generate", body) == (f"{expected}:latest",)


@each_of("key", ["source", "\u017fource", "\\u017fOURCE", "SOURCE"])
def test_the_two_letters_beyond_ascii_that_go_folds(key: str) -> None:
    assert names("/api/copy", f'{{"source":"a","{key}":"evil","destination":"b"}}') == ("evil:latest", "b:latest")


@each_of("key", ["sour\u00e7e", "\u00dfource", "s\u00f6urce", "source\u200b", "\u24e2ource"])
def test_no_other_letter_is_folded(key: str) -> None:
    assert names("/api/copy", f'{{"source":"a","{key}":"x","destination":"b"}}') == ("a:latest", "b:latest")


@each_of(
    "body",
    [
        *(
            "",
            " ",
            "x",
            "null",
            "1",
            '"m"',
            "[]",
            '[{"model":"m"}]',
            "{",
            "{}",
            '{"model"}',
            '{"model":}',
            "{'model':'m'}",
        ),
        *('{"model":"m",}', '{model:"m"}', '{"model":"m"', '{"model":"m\\"}', '{"model":"\n"}', '{"model":"\\x"}'),
        *('{"model":"m","x":NaN}', '{"model":"m","x":Infinity}', '{"model":"m","x":-Infinity}', '{"model":"m","x":01}'),
        *(
            '{"model":"m","x":+1}',
            '{"model":"m","x":.5}',
            '{"model":"m","x":1.}',
            '{"model":"m","x":0x1}',
            '//\n{"model":"m"}',
        ),
        *('{"model":1}', '{"model":true}', '{"model":["m"]}', '{"model":{"model":"m"}}', '{"model":1,"model":"m"}'),
        *('{"model":"m","MODEL":[]}', '{"model":"a/b/c/d"}', '{"model":"\\ud800"}', '{"model":"m\\u0000"}'),
        *(
            '\ufeff{"model":"m"}',
            '\x0b{"model":"m"}',
            '\xa0{"model":"m"}',
            '{"model":"m","x":tru}',
            '{"model":"m" "x":1}',
        ),
        *('{"model":"m","x":"\n"}', '{"model":"m","x":"\0"}', '{"model":"m","\x1f":1}', '{"model":"m","x":"\\\n"}'),
        *("[" * 100_000, '{"model":"m","x":' + "[" * 100_000 + "]" * 100_000 + "}", '{"x":' * 100_000),
        *(
            b"\xff",
            b'{"model":"m\xff"}',
            b'{"model":"\xc0\xaf"}',
            b'{"model":"\xed\xa0\x80"}',
            b'{"model":"m\xe2\x82"}',
            b'{"model":"x","model":"m\xff"}',
            b'{"mode\xff":"m"}',
            b'{"model\xff":"m"}',
            b'{"\xffmodel":"m"}',
            b'{"\xc1\xadodel":"m"}',
            b'{"model":\xff"m"}',
            b'{"model":"m"\xff}',
            b'{\xff"model":"m"}',
            b'\xef\xbb\xbf{"model":"m"}',
            b'\xef\xbf\xbe{"model":"m"}',
        ),
        *('{"model":"m"}'.encode(coding) for coding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig")),
        *(b"(\xb5/\xfd\x04\x00", b"\x1f\x8b\x08\x00", b"model=m", b"\0" * 100),
    ],
)
def test_a_body_that_is_refused(body: str | bytes) -> None:
    assert refusal("/api/chat", body).status == 400


@each_of("odd", [b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\x80" * 5])
def test_text_that_is_not_utf_8_is_read_as_in_go(odd: bytes) -> None:
    """Such as the output of a tool that was cut inside a character; what it is a part of is found all the same."""
    for body in (
        b'{"messages":[{"content":"%s"}],"model":"m"}',
        b'{"model":"m","prompt":"a %s"}',
        b'{"x%s":[{"%s":"%s\\u00e9%s"}],"model":"m"}'.replace(b"%s", odd),
        b'{"model%s":"other","model":"m"}',
        b'{"model":"m"} %s',
    ):
        assert names("/api/chat", body.replace(b"%s", odd)) == ("m:latest",)
    for body in (b'{"model":"m%s"}', b'{"model":"%sm"}', b'{"model":"m:%s"}', b'{"model":"m%s:cloud","MODEL":"m%s"}'):
        assert refusal("/api/chat", body.replace(b"%s", odd)).status == 400


def test_a_body_that_would_take_long_is_refused_unread() -> None:
    assert refusal("/api/chat", '{"model":"m","x":[' + "[]," * (MAX_MARKS // 2) + "1]}").status == 413


def test_a_large_body_with_little_structure_is_read() -> None:
    body = json.dumps({"messages": [{"content": "é\\", "images": ["A" * 1_000_000]}] * 10, "model": "m"})
    assert names("/api/chat", body) == ("m:latest",)


@each_of(
    ("body", "expected"),
    [
        ('{"model":"big:cloud","MODEL":"m"}', {"m:latest", "big:cloud"}),
        ('{"MODEL":"m","model":" big:20b:cloud "}', {"big:20b-cloud"}),
        ('{"model":"m","MODEL":"big:cloud"}', {"big:cloud"}),
        ('{"model":"other","MODEL":"m"}', {"m:latest"}),
        ('{"model":"big:cloud","model":"m"}', {"m:latest"}),
        ('{"model":"big:cloud","model":null,"MODEL":"m"}', {"m:latest"}),
    ],
)
def test_a_cloud_model_that_only_the_first_reader_sees(body: str, expected: set[str]) -> None:
    """On /v1 Ollama looks for cloud models in a map, whose keys have a case, before its handler looks in a struct."""
    assert set(names("/v1/chat/completions", body)) == expected


@each_of("path", ["/v1/messages", "/v1/responses"])
@each_of(
    ("tools", "expected"),
    [
        ('"tools":[{"type":"web_search"}]', True),
        ('"tools":[{"type":"web_search_20250305","name":"web_search"}]', True),
        ('"TOOL\u017f":[{"TYPE":" web_search"}]', True),
        ('"tools":[{"type":"web_search"}],"tools":[{}]', True),
        ('"tools":[{},{"type":"function","type":"web_search"}]', True),
        ('"tools":[{"type":"function","name":"web_search"}]', False),
        ('"tools":[{"name":"f","input_schema":{"type":"web_search"}}]', False),
        ('"tools":null', False),
        ('"tools":["web_search",1,[]]', False),
        ('"tools":"web_search"', False),
        ('"messages":[{"type":"web_search"}]', False),
    ],
)
def test_a_tool_that_searches_the_web_with_the_operators_account(path: str, tools: str, expected: bool) -> None:
    body = f'{{"model":"m",{tools}}}'.encode()
    assert ask("POST", path, body) == Asked(("m:latest",), searches=expected)
    assert not ask("POST", "/api/chat", body).searches


@each_of(
    ("path", "expected"),
    [("m", "m:latest"), ("M:8b", "m:8b"), ("m%3A8b", "m:8b"), ("%20m:local", "m:latest"), ("m:cloud", "m:cloud")],
)
def test_the_model_in_a_path(path: str, expected: str) -> None:
    assert ask("GET", f"/v1/models/{path}").names == (expected,)
    assert ask("HEAD", f"/v1/models/{path}?x", b'{"model": "other"}').names == (expected,)


@each_of("path", ["%ff", "%C3%A9", "..", "m%00", "a:b:c", "-", "%20", "m@x"])
def test_a_path_with_no_model_in_it(path: str) -> None:
    with pytest.raises(BodyError) as caught:
        ask("GET", f"/v1/models/{path}")
    assert caught.value.status == 400


@each_of(("method", "path", "found"), KNOWN)
def test_each_route_that_takes_a_model_has_a_reader(method: bytes, path: bytes, found: RouteClass) -> None:
    """A new route in the table of routes is refused here until somebody says where its model is."""
    taker = route(method, path)
    assert taker.route_class is found
    if not taker.takes_model:
        assert read(taker, b"model=m", b"text/plain", b"\xff") == Asked()
    else:
        with pytest.raises(BodyError) as caught:
            read(taker, b"", b"", b"")
        assert caught.value.status == 400


def test_a_route_without_a_reader_is_refused() -> None:
    new = Route(RouteClass.INFER, route(b"POST", b"/api/chat").dialect, b"/api/new")
    with pytest.raises(BodyError) as caught:
        read(new, b"", b"", b'{"model": "m"}')
    assert caught.value.status == 403


paths = st.sampled_from([route(method, path) for method, path, _ in KNOWN])
keys = st.sampled_from(["model", "MODEL", "name", "from", "source", "destination", "tools", "type", "x", "\u017fource"])
texts = st.sampled_from(["m", "M:8b", "n/m:cloud", "a b", "", "é", "\ud800"]) | st.text(max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
objects = st.lists(st.tuples(keys, values), max_size=5)


def dump(pairs: list[tuple[str, Any]]) -> bytes:
    return b"{" + b",".join(json.dumps(key).encode() + b":" + json.dumps(value).encode() for key, value in pairs) + b"}"


@given(paths, st.binary(max_size=20), st.binary(max_size=60), st.binary(max_size=60) | objects.map(dump))
def test_any_request_names_valid_models_or_is_refused(path: Route, query: bytes, ctype: bytes, body: bytes) -> None:
    with suppress(BodyError):
        assert all(canonical(name) == name for name in read(path, query, ctype, body).names)


@given(objects)
def test_against_a_reader_that_is_written_as_the_rule_is_told(pairs: list[tuple[str, Any]]) -> None:
    last: Any = ""
    for key, value in pairs:
        if key.lower() == "model" and value is not None:
            last = value if isinstance(value, str) and isinstance(last, str) else 0
    expected = reference(last) if isinstance(last, str) else None
    exact = ([value for key, value in pairs if key == "model"] or [None])[-1]
    also = {reference(exact)} if isinstance(exact, str) and is_cloud(exact) and reference(exact) else set()
    if expected is None:
        assert refusal("/api/chat", dump(pairs)).status == 400
    else:
        assert set(names("/api/chat", dump(pairs))) == {expected} | also


# The reader of pieces, against one that has Python parse the whole body.


class Pairs(list[tuple[str, Any]]):
    """The members of a JSON object, in order."""

    def values(self, key: str) -> list[Any]:
        """All but null whose keys are that one, as Go compares them."""
        same = [value for name, value in self if name.translate(GO_FOLDS).lower() == key]
        return [value for value in same if value is not None]


GO_FOLDS = str.maketrans("\u017f\u212a", "sk")
WHOLE = json.JSONDecoder(object_pairs_hook=Pairs, parse_int=bool, parse_float=bool, parse_constant=lambda _: 1 / 0)


def text_of(pairs: Pairs, key: str) -> str:
    values = pairs.values(key)
    assert all(isinstance(value, str) for value in values)
    return values[-1] if values else ""


def read_whole(path: str, body: bytes) -> Asked | None:
    """What a request asks for; None: it is refused."""
    try:
        pairs, _ = WHOLE.raw_decode(body.decode("utf-8", "replace").lstrip(" \t\r\n"))
        assert isinstance(pairs, Pairs)
        first = reference(text_of(pairs, "model")) if path != "/api/create" else None
        if path == "/api/create":
            name = text_of(pairs, "name")
            first = canonical(text_of(pairs, "model") or name)
        source = text_of(pairs, "from") if path == "/api/create" else ""
        found = [first, *([reference(source)] if source else [])]
        assert None not in found
        assert path != "/api/create" or not any(any(pairs.values(key)) for key in ("modelfile", "path", "remote_host"))
    except (ValueError, AssertionError, ZeroDivisionError, RecursionError):
        return None
    exact = ([value for key, value in pairs if key == "model"] or [None])[-1]
    if isinstance(exact, str) and is_cloud(exact):
        found.append(reference(exact))
    tools = [tool for value in pairs.values("tools") if isinstance(value, list) for tool in value]
    types = [value for tool in tools if type(tool) is Pairs for value in tool.values("type")]
    searches = any(isinstance(one, str) and one.strip().startswith("web_search") for one in types)
    names_found = tuple(dict.fromkeys(name for name in found if name))
    return Asked(names_found, pulls=bool(source), searches=searches and path == "/v1/messages")


KEYS = ["model", "MODEL", "name", "from", "tools", "TOOL\u017f", "type", "Type", "path", "modelfile", "x", 'a"', "é"]
WORDS = ["m", "M:8b", "big:cloud", " m ", "a b", "", "web_search", " web_search_1", "\ud800", '"', "\\", "\U0001f600"]
inner_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)
members = st.tuples(st.sampled_from(KEYS), st.sampled_from(WORDS[:4]) | inner_values)
documents = st.builds(
    lambda pairs, ascii, space, model: space.join(
        (
            "",
            "{",
            f"{space},".join(
                f"{json.dumps(k, ensure_ascii=ascii)}{space}:{space}{json.dumps(v, ensure_ascii=ascii)}"
                for k, v in [*pairs, *([("model", "m")] if model else [])]
            ),
            "}",
        )
    ),
    st.lists(members, max_size=5),
    st.booleans(),
    st.sampled_from(["", " ", "\n\t"]),
    st.booleans(),
)
spoilt = st.tuples(
    st.integers(0, 200),
    st.sampled_from(
        [
            *(b"", b"", b"", b"", b"x", b",", b"0", b".", b"]", b"}", b"[", b"\\", b'"', b"\x01", b"NaN"),
            *(b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xc0\xad", b"\xef\xbb\xbf"),
        ]
    ),
    st.sampled_from([0, 0, 0, 0, 0, 1, 2]),
)


@given(documents, spoilt, st.sampled_from(["/api/chat", "/api/create", "/v1/messages"]), st.integers(1, 9))
def test_pieces_are_read_as_the_whole_is(document: str, spoil: tuple[int, bytes, int], path: str, size: int) -> None:
    body = document.encode("utf-8", "surrogatepass")
    at, put, drop = spoil[0] % (len(body) + 1), spoil[1], spoil[2]
    body = body[:at] + put + body[at + drop :]
    expected = read_whole(path, body)
    ways = [[body[:cut], body[cut:]] for cut in range(0, len(body), 7)]
    ways += [[body], [body[i : i + size] for i in range(0, len(body), size)], [bytes([byte]) for byte in body]]
    for pieces in ways:
        try:
            found: Asked | None = read(route(b"POST", path.encode()), b"", b"", *pieces)
        except BodyError:
            found = None
        assert found == expected, (body, pieces)


@each_of("depth", [4, 5, 9_998, 10_000])
@each_of("piece", [1_000, 65_536])
@each_of(("start", "end"), [("[", "]"), ('{"a":', "}"), ('[{"model":', "}]")])
def test_nesting_ends_where_it_ends_in_go(depth: int, piece: int, start: str, end: str) -> None:
    levels = start.count("[") + start.count("{")
    times = (depth - 1) // levels
    body = f'{{"x":{start * times}1{end * times},"model":"m"}}'.encode()
    pieces = [body[i : i + piece] for i in range(0, len(body), piece)]
    assert read(route(b"POST", b"/api/chat"), b"", b"", *pieces).names == ("m:latest",)
    more = 10_001 // levels + 1
    deep = f'{{"model":"m","x":{start * more}1{end * more}}}'.encode()
    with pytest.raises(BodyError, match="nested"):
        read(route(b"POST", b"/api/chat"), b"", b"", *[deep[i : i + piece] for i in range(0, len(deep), piece)])


def test_the_steps_for_a_piece_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is built: most of it is skipped by a few matches of a pattern."""
    steps = 0
    plain = json_scanner.end_of

    def counted(*args: Any) -> int:
        nonlocal steps
        steps += 1
        return plain(*args)

    monkeypatch.setattr(strict_json, "end_of", counted)
    for item, most in {
        '{"a":1}': 50, '"a"': 50, "1": 50, "[[[[]]]]": 50, '{"a":{"b":[{"c":"d"}]}}': 50, "[" * 900 + "]" * 900: 2_000,
    }.items():  # fmt: skip
        steps = 0
        body = f'{{"model":"m","x":[{",".join([item] * (120_000 // len(item)))}]}}'
        assert names("/api/chat", body) == ("m:latest",)
        assert steps < most, item
    for body in ('{"model":"m","x":"' + "A" * 1_000_000 + '"}', '{"x":' + " " * 1_000_000 + '1,"model":"m"}'):
        steps = 0
        assert names("/api/chat", body) == ("m:latest",)
        assert steps < 50


def test_a_value_that_is_too_long_is_refused() -> None:
    """A name has far less; one that is not read may have any length."""
    assert refusal("/api/chat", '{"model":"m' + " " * (1 << 16) + '"}').status == 400
    assert names("/api/chat", '{"model":"m","name":"' + "x" * (1 << 17) + '"}') == ("m:latest",)


@each_of("member", ['"model":"m"', '"\\u0061":1', '"\u00e9":1'])
def test_members_that_have_to_be_looked_at_are_bounded(member: str) -> None:
    """Each costs much more than one that is skipped."""
    for path, start, end in (("/api/chat", "{", ',"model":"m"}'), ("/v1/messages", '{"model":"m","tools":[{', "}]}")):
        few = start + ",".join([member.replace("model", "type" if "tools" in start else "model")] * 3_000) + end
        assert names(path, few) == ("m:latest",)
        assert refusal(path, few.replace(end, f",{few[len(start) : -len(end)]}{end}")).status == 400


# Forms.

BOUNDARY = b"----formdata-undici-0123"
FORM = b"multipart/form-data; boundary=" + BOUNDARY
SAYS = b"Content-Disposition: form-data; "
AUDIO = SAYS + b'name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n\r\n\0\xff'
NAME = SAYS + b'name="model"\r\n\r\n'
M = NAME + b"m"


def form(*parts: bytes, start: bytes = b"", end: bytes = b"--\r\n", boundary: bytes = BOUNDARY) -> bytes:
    return start + b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + end


def transcribe(body: bytes, content_type: bytes = FORM, query: bytes = b"") -> tuple[str, ...]:
    """The models of a form; whether it comes at once or in pieces makes no difference."""
    found = route(b"POST", b"/v1/audio/transcriptions")

    def outcome(*pieces: bytes) -> tuple[str, ...] | str:
        try:
            return read(found, query, content_type, *pieces).names
        except BodyError as error:
            return error.message

    whole = outcome(body)
    step = max(1, len(body) // 50)
    for cut in range(0, len(body), step):
        assert outcome(body[:cut], body[cut:]) == whole
    for size in (1, 7):
        assert outcome(*(body[i : i + size] for i in range(0, len(body), size))) == whole
    return read(found, query, content_type, body).names


@each_of(
    "body",
    [
        form(AUDIO, NAME + b"M"),
        form(M, AUDIO),
        form(M, AUDIO, end=b"--"),
        form(AUDIO, b'content-disposition:form-data;name="model"\r\nContent-Type: text/plain\r\n\r\n m:local '),
        # As .NET sends it.
        form(SAYS + b"name=model\r\n\r\nm", SAYS + b"name=file; filename=a; filename*=utf-8''a%20b\r\n\r\nx"),
        form(b"Content-Length: 1\r\nContent-Transfer-Encoding: 8bit\r\n" + M),
        form(M, SAYS + b'name="Model"\r\n\r\nother'),
        form(M, *[SAYS + b'name="prompt"\r\n\r\n'] * (MAX_PARTS - 1)),
        form(M, AUDIO + b"\r\n--\r\n" + NAME + b"other"),
    ],
)
def test_the_model_in_a_form(body: bytes) -> None:
    assert transcribe(body) == ("m:latest",)


@each_of("content_type", [b'Multipart/Form-Data;boundary="%s"', b"multipart/form-data ; boundary=%s"])
def test_the_content_type_of_a_form(content_type: bytes) -> None:
    assert transcribe(form(M), content_type % BOUNDARY) == ("m:latest",)


ODD_TYPES = rb"""
application/json
multipart/form-data
multipart/form-data; boundary=
multipart/form-data; boundary=x
multipart/mixed; boundary=b
multipart/form-data; boundary=x; boundary=b
multipart/form-data; boundary=b; boundary=b
multipart/form-data; charset=utf-8; boundary=b
multipart/form-data, boundary=b
multipart/form-data; boundary="b
multipart/form-data; boundary="\b"
multipart/form-data; boundary*=utf-8''b
multipart/form-data; boundary=b b
multipart/form-data; BOUNDARY=b
"""


@each_of("content_type", ODD_TYPES.splitlines())
def test_a_content_type_that_is_refused(content_type: bytes) -> None:
    with pytest.raises(BodyError):
        transcribe(form(M, boundary=b"b"), content_type)


@each_of(
    "body",
    [
        *(b"", b"x", b"--", form(), form(AUDIO), form(NAME), form(NAME + b"a/b/c/d"), form(NAME + b"\xff")),
        *(form(M, M), form(M, NAME + b"b"), form(M)[:-4], form(M)[:-2] + b"x", form(M) + form(M)),
        *(form(M, start=b"\r\n"), form(M, start=b"preamble\r\n"), form(M, end=b""), form(M, end=b"\r\n")),
        *(form(M, end=b"--\r\nepilogue"), form(M, end=b"-- \r\n"), form(M, end=b"--\n"), form(M, end=b"x")),
        *(form(M).replace(b"\r\n", b"\n"), form(M).replace(b"\r\n\r\n", b"\n\n"), form(M + b"--" + BOUNDARY)),
        form(M + b"\r\n--" + BOUNDARY + b" \r\n" + NAME + b"b"),
        form(M + b"\r\n--" + BOUNDARY + b"x"),
        form(M + b"\n--" + BOUNDARY + b"\n" + NAME + b"b"),
        form(AUDIO + b"--" + BOUNDARY + b"\r\n" + M),
        form(M, AUDIO + b"\n--" + BOUNDARY + b"\r\n" + AUDIO),
        form(M).replace(BOUNDARY + b"\r\n", BOUNDARY + b"\n\n"),
        form(M).replace(BOUNDARY + b"\r\n", BOUNDARY + b"  "),
        form(M, SAYS + b'name="x"'),
        form(b"\r\n\r\na", M),
        form(b"\r\na", M),
        form(M, b"no header at all"),
        form(M, b"Content-Type: text/plain\r\n\r\nx"),
        form(M, b"X-Other: x\r\n" + AUDIO),
        form(SAYS + b'name="x"\r\n' + M),
        form(M, AUDIO.replace(b"audio/wav", b"audio/wav\n" + NAME.replace(b"\r\n\r\n", b"\n\n") + b"evil")),
        form(M, AUDIO.replace(b"audio/wav", b"audio/wav\r\n folded")),
        form(b"Content-Transfer-Encoding: quoted-printable\r\n" + NAME + b"=6d"),
        form(b"Content-Transfer-Encoding: base64\r\n" + NAME + b"bQ=="),
        form(SAYS + b'name="model"\0\r\n\r\nm'),
        form(SAYS + b"name=\xff\r\n\r\nm", M),
        form(M, *[SAYS + b'name="x"\r\n\r\n'] * MAX_PARTS),
    ],
)
def test_a_form_that_is_refused(body: bytes) -> None:
    with pytest.raises(BodyError) as caught:
        transcribe(body)
    assert caught.value.status == 400


ODD_DISPOSITIONS = rb"""inline
attachment; name="model"
form-data
form-data name="model"
form-data; name="model
form-data; name="model";
form-data; name="model"; x=y
form-data; name='model'
form-data; name="mode\l"
form-data; name=" model"
form-data; name=""
form-data; NAME="model"
form-data; name*=utf-8''model
form-data; name*0="mo"; name*1="del"
form-data; name="x"; name="model"
form-data; filename="x"; name="model"
form-data; name="model"; filename="x"
form-data; name="model"; filename=""
form-data; name="model"; filename*=utf-8''x
form-data; name="file"; filename="a\"; name="model"
"""


@each_of("disposition", ODD_DISPOSITIONS.splitlines())
def test_a_part_whose_name_could_be_read_in_two_ways_is_refused(disposition: bytes) -> None:
    with pytest.raises(BodyError):
        transcribe(form(b"Content-Disposition: " + disposition + b"\r\n\r\nm"))


@each_of("query", [b"model=evil", b"x=1&model=evil", b"mode%6C=evil", b"model", b"+=1;model=x", b"%6dodel="])
def test_the_query_of_a_form_comes_first_in_go_and_is_refused(query: bytes) -> None:
    with pytest.raises(BodyError) as caught:
        transcribe(form(M), query=query)
    assert caught.value.status == 400


@each_of("query", [b"", b"x=model", b"Model=x", b"models=x", b"+model=x", b"%ff", b"&&;=&"])
def test_other_queries_of_a_form(query: bytes) -> None:
    assert transcribe(form(M), query=query) == ("m:latest",)


@given(
    st.lists(st.sampled_from([b"--b", b"--", b"\r\n", b"\n", NAME, b"m", b'"', b";", b" "]), max_size=12).map(b"".join)
)
def test_any_body_is_a_form_with_one_model_or_refused(body: bytes) -> None:
    try:
        found = transcribe(body, b"multipart/form-data; boundary=b")
    except BodyError:
        return
    assert found == ("m:latest",)
    assert body.startswith(b"--b\r\n")
