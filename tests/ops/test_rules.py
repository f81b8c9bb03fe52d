"""The alert rules that ship: well-formed, about metrics that there are, and with the thresholds that were asked for."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.node.solo import run
from tests.ops.pages import Page, pages

RULES = Path(__file__).parents[2] / "ops" / "prometheus" / "tiebreak.rules.yml"
SEVERITIES = {"page", "ticket"}
DURATION = re.compile(r"[1-9][0-9]*[smh]")
FUNCTIONS = {"histogram_quantile", "rate", "increase", "sum", "max", "scalar", "vector"}
WORDS = {"by", "on", "or", "and", "unless"} | FUNCTIONS
OF_PROMETHEUS = {"instance", "le", "job"}
OPEN = {"status", "state", "outcome"}
"""Labels whose values in a rule need not have come up here."""
_METRIC = re.compile(r"\btiebreak_[a-z0-9_]+")
_MATCHER = re.compile(r'([a-z_]+)(=~|=|!=)"([^"]*)"')


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def ids(rule: dict[str, Any]) -> str:
    return str(rule["alert"])


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    found: list[Page] = []

    async def look(folder: Path) -> None:
        found.append(await pages(folder))

    with tempfile.TemporaryDirectory(prefix="tb-") as folder:  # short, for the cache's unix socket
        run(look(Path(folder)))
    yield found[0]


@pytest.mark.parametrize("rule", rules(), ids=ids)
def test_a_rule_is_whole(rule: dict[str, Any]) -> None:
    assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert re.fullmatch(r"Tiebreak[A-Z][A-Za-z]+", rule["alert"])
    assert DURATION.fullmatch(rule.get("for", "1s"))
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in SEVERITIES
    assert set(rule["annotations"]) == {"summary", "action"}
    assert all(text.strip() for text in rule["annotations"].values())


def test_names_are_used_once() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 20


@pytest.mark.parametrize("rule", rules(), ids=ids)
def test_an_expression_is_well_formed(rule: dict[str, Any]) -> None:
    assert malformed(rule["expr"]) == ""


@pytest.mark.parametrize(
    "expression", ["sum(rate(tiebreak_x[5m])", "rates(tiebreak_x[5m]) > 1", "rate(tiebreak_x[5]) > 1", "tiebreak_x",
                   'tiebreak_x{a=b} > 1', "tiebreak_x > 1)"]
)  # fmt: skip
def test_a_malformed_expression_is_found(expression: str) -> None:
    assert malformed(expression)


def malformed(expression: str) -> str:
    """What is wrong with the form of an expression, as far as it can be told without Prometheus; empty: nothing."""
    rest = re.sub(r'"[^"]*"', '""', expression)
    closing: list[str] = []
    for char in rest:
        if char in "([{":
            closing.append(")]}"["([{".index(char)])
        elif char in ")]}" and (not closing or closing.pop() != char):
            return f"{char} closes nothing"
    if closing:
        return f"{closing[-1]} is missing"
    if any(not DURATION.fullmatch(window) for window in re.findall(r"\[([^]]*)\]", rest)):
        return "a window is no duration"
    if any(not re.fullmatch(r'[a-z_]+(=~|!=|=)""', one) for one in re.findall(r"\{([^}]*)\}", rest)):
        return "a matcher that is none"
    called = set(re.findall(r"([a-z_]+) ?\(", rest)) - WORDS
    if called:
        return f"no such function: {called}"
    if not re.search(r"(==|[<>]=?) *[\d(]", rest) and "> 0" not in rest:
        return "nothing is compared"
    return ""


@pytest.mark.parametrize("rule", rules(), ids=ids)
def test_each_metric_and_label_is_there(rule: dict[str, Any], page: Page) -> None:
    expression, told = rule["expr"], " ".join(rule["annotations"].values())
    found = _METRIC.findall(expression)
    assert found
    assert set(found) | set(_METRIC.findall(told)) <= page.names | {name.removesuffix("_bucket") for name in page.names}
    named = [labels for name in found if (labels := page.labels.get(name))]
    if not named:
        return  # nothing of it has happened yet: it has no samples that show labels
    for label, _, value in _MATCHER.findall(expression):
        assert any(label in labels for labels in named), label
        values = set.union(*(labels.get(label, set()) for labels in named))
        assert label in OPEN or any(re.fullmatch(value, one) for one in values), f"{label} is never {value}"
    for label in re.findall(r"\$labels\.([a-z_]+)", told):
        assert label in OF_PROMETHEUS or any(label in labels for labels in named), label


ASKED_FOR = {
    "TiebreakGatewaySlow": "> 0.5",
    "TiebreakGatewayMisses": "< 0.9",
    "TiebreakGatewayConsumerLag": "> 10000",
    "TiebreakGatewayFeedLag": "> 10000",
    "TiebreakGatewayConnectionsHigh": "> 0.8",
    "TiebreakGatewayErrors": "> 0.01",
}


@pytest.mark.parametrize(("name", "threshold"), ASKED_FOR.items())
def test_what_was_asked_for_is_watched(name: str, threshold: str) -> None:
    (rule,) = [rule for rule in rules() if rule["alert"] == name]
    assert rule["expr"].rstrip().endswith(threshold)


PROMTOOL = shutil.which("promtool", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: `make test` fetches it on Debian")
def test_prometheus_takes_them() -> None:
    checked = subprocess.run([str(PROMTOOL), "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


CACHE_NODE = """
rule_files: [{rules}]
evaluation_interval: 30s
tests:
  - interval: 30s
    input_series:
      - {{series: 'tiebreak_gateway_cache_node_up{{instance="gw", node="a:1"}}', values: "1 1 0x9"}}
      - {{series: 'tiebreak_gateway_cache_node_up{{instance="gw", node="b:1"}}', values: "1 0 0 1x8"}}
    alert_rule_test:
      - {{eval_time: 150s, alertname: TiebreakGatewayCacheNodeDown, exp_alerts: []}}
      - eval_time: 180s
        alertname: TiebreakGatewayCacheNodeDown
        exp_alerts:
          - exp_labels: {{severity: ticket, instance: gw, node: "a:1"}}
            exp_annotations:
              summary: "gw: node a:1 of the cache does not answer"
              action: Start it again, or let a replica take its slots. What they have is served from memory meanwhile.
"""


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: `make test` fetches it on Debian")
def test_a_node_of_the_cache_that_stays_down_is_told_and_one_that_comes_back_is_not(tmp_path: Path) -> None:
    (tmp_path / "test.yml").write_text(CACHE_NODE.format(rules=RULES))
    command = [str(PROMTOOL), "test", "rules", str(tmp_path / "test.yml")]
    tested = subprocess.run(command, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr
