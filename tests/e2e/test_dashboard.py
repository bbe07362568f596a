"""The Grafana dashboard asks for metrics that the gate has, of whatever data source it is imported into."""

import json
import re
from typing import Any

import pytest

from ollama_auth.telemetry.metrics import Metrics
from tests.harness.base import ROOT

DASHBOARD: dict[str, Any] = json.loads((ROOT / "scripts" / "deploy" / "grafana-dashboard.json").read_text())
HISTOGRAMS = (
    "ollama_auth_time_to_first_token_seconds",
    "ollama_auth_request_duration_seconds",
    "ollama_auth_inter_token_seconds",
)
METRICS: dict[str, set[str]] = {
    "ollama_auth_requests_total": {"key", "class", "status"},
    "ollama_auth_refusals_total": {"reason"},
    "ollama_auth_tokens_total": {"key", "model", "kind"},
    "ollama_auth_in_flight_requests": set(),
    "ollama_auth_connections": set(),
    "ollama_auth_upstream_errors_total": {"reason"},
    "ollama_auth_build_info": {"version", "mitmproxy", "python"},
    **{f"{name}_bucket": {"le"} for name in HISTOGRAMS},
}
"""Names -> labels."""
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_the_metrics_are_those_of_the_gate() -> None:
    ends = {"counter": "_total", "histogram": "_bucket"}
    families = Metrics()._registry.collect()
    assert {family.name + ends.get(family.type, "") for family in families} == set(METRICS)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_ask_for_what_there_is(expression: str) -> None:
    (metric,) = re.findall(r"ollama_auth_\w+", expression)
    grouped = re.findall(r"by \(([^)]*)\)", expression)
    labels = {label.strip() for group in grouped for label in group.split(",")}
    labels |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))
    assert labels <= METRICS[metric]
    assert expression.count("(") == expression.count(")")
    assert ("rate(" in expression) == ("[$__rate_interval]" in expression) == metric.endswith(("_total", "_bucket"))


def test_it_shows_every_metric() -> None:
    assert set(re.findall(r"ollama_auth_\w+", " ".join(EXPRESSIONS))) == set(METRICS)


def test_legends_name_labels_that_their_expression_leaves() -> None:
    for target in (target for panel in PANELS for target in panel["targets"]):
        kept = re.search(r"sum by \(([^)]*)\)", target["expr"])
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert named <= set(re.split(r",\s*", kept[1]) if kept else ()), target


def test_it_can_be_asked_for_one_key_or_model() -> None:
    assert list(VARIABLES) == ["datasource", "key", "model"]
    assert VARIABLES["datasource"]["type"] == "datasource"
    for name in ("key", "model"):
        asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", VARIABLES[name]["definition"])
        assert asked
        assert asked[2] == name
        assert name in METRICS[asked[1]]
        assert VARIABLES[name]["allValue"] == ".*", "those without one are seen too"
        assert any(f'{name}=~"${name}"' in expression for expression in EXPRESSIONS)
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used == {"datasource", "key", "model", "__rate_interval", "__all"}


def test_it_is_bound_to_no_installation() -> None:
    assert DASHBOARD["id"] is None
    assert DASHBOARD["uid"] is None
    sources = re.findall(r'"uid": "([^"]*)"', json.dumps(DASHBOARD))
    assert set(sources) == {"${datasource}"}
    assert len(sources) == len(PANELS) + len(EXPRESSIONS) + 2


def test_panels_are_whole_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        assert panel["title"]
        assert panel["type"] in ("timeseries", "stat")
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not taken & cells, panel["title"]
        taken |= cells
