"""The lattice's laws over everything that three sites can reach, and against a model that keeps every write."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from gateway.prefs.alert import Condition, Terms
from gateway.prefs.crdt import (
    ALERTS_MAX,
    EMPTY,
    FIELDS_MAX,
    VALUE_BYTES_MAX,
    Document,
    Dot,
    Malformed,
    Register,
    Version,
    admissible,
    check,
    decode,
    encode,
    erased,
    merge,
    with_alert,
    with_fields,
    with_fired,
    without_alerts,
)
from gateway.prefs.errors import TooManyAlerts
from gateway.prefs.hlc import Stamp

FIELDS = ("language", "time_zone")
ALERTS = ("x", "y")
MOSTLY = ("x", "x", "x", "y")  # what is written apart meets more often


def terms(price: int, *, repeat: bool = False) -> Terms:
    return Terms("AAPL", Condition.above, price_e9=price, repeat=repeat)


def stamp(ms: int, writer: str = "a.1") -> Stamp:
    return Stamp(ms, 0, writer)


# -- a model that forgets nothing ------------------------------------------------------------------


@dataclass(frozen=True)
class Write:
    """One write, and which writes of its alert its site had seen."""

    number: int
    what: str
    name: str
    stamp: Stamp
    value: Any = None
    seen: frozenset[int] = frozenset()


@dataclass
class Site:
    """A document beside the set of all writes that it stands for. The model's merge is a union."""

    name: str
    document: Document = EMPTY
    writes: dict[int, Write] = field(default_factory=dict)

    def alert(self, name: str) -> tuple[int, int] | None:
        """(price, times fired) of the latest standing version."""
        known = self.writes.values()
        removed = {n for w in known if w.what in ("put", "remove") and w.name == name for n in w.seen}
        standing = [w for w in known if w.what == "put" and w.name == name and w.number not in removed]
        if not standing:
            return None
        latest = max(standing, key=lambda w: w.stamp)
        fired = [w.value[1] + 1 for w in known if w.what == "fire" and w.value[0] == latest.number]
        return latest.value, max(fired, default=0)

    def field(self, name: str) -> bytes | None:
        known = [w for w in self.writes.values() if w.what == "set" and w.name == name]
        return max(known, key=lambda w: w.stamp).value if known else None

    def agrees(self) -> None:
        for name in FIELDS:
            register = self.document.fields.get(name)
            assert (register.value if register else None) == self.field(name)
        for name in ALERTS:
            version = self.document.alert(name)
            found = (version.terms.price_e9, version.fired) if version else None
            assert found == self.alert(name), name


step = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 2), st.sampled_from(FIELDS), st.sampled_from([b"1", b"2", None])),
    st.tuples(st.just("put"), st.integers(0, 2), st.sampled_from(MOSTLY), st.booleans()),
    st.tuples(st.just("put"), st.integers(0, 2), st.sampled_from(MOSTLY), st.booleans()),
    st.tuples(st.just("remove"), st.integers(0, 2), st.sampled_from(MOSTLY), st.none()),
    st.tuples(st.just("fire"), st.integers(0, 2), st.sampled_from(MOSTLY), st.none()),
    st.tuples(st.just("pull"), st.integers(0, 2), st.integers(0, 2), st.none()),
)


def play(taken: list[Any]) -> list[Site]:
    sites = [Site(f"{letter}.1") for letter in "abc"]
    repeats: dict[int, bool] = {}
    for number, (what, at, name, value) in enumerate(taken, 1):
        site = sites[at]
        # Sites' clocks are not in step: the later write may bear the earlier stamp.
        now = Stamp(1_000 + number * (1, 2, 1)[at], 0, site.name)
        standing = frozenset(w.number for w in site.writes.values() if w.what == "put" and w.name == name)
        if what == "set":
            register = site.document.fields.get(name)
            if register and register.stamp >= now:
                continue  # a clock never goes behind what it has seen
            site.document = with_fields(site.document, {name: value}, now)
            site.writes[number] = Write(number, "set", name, now, value)
        elif what == "put":
            before = site.document.alert(name)
            if before and before.stamp >= now:
                continue
            site.document = with_alert(site.document, name, terms(number, repeat=value), now)
            site.writes[number] = Write(number, "put", name, now, number, standing)
            repeats[number] = value
        elif what == "remove":
            site.document = without_alerts(site.document, [name])
            site.writes[number] = Write(number, "remove", name, now, None, standing)
        elif what == "fire":
            version = site.document.alert(name)
            if version is None:
                continue
            fired = with_fired(site.document, name, version.dot, version.fired, number, 5)
            assert (fired is None) == (version.fired > 0 and not version.terms.repeat)
            if fired is not None:
                site.document = fired
                put = version.terms.price_e9
                site.writes[number] = Write(number, "fire", name, now, (put, version.fired))
        else:
            site.document = merge(site.document, sites[name].document)
            site.writes |= sites[name].writes
    return sites


@settings(max_examples=max(400, settings().max_examples))
@given(st.lists(step, max_size=25))
def test_it_is_what_the_model_says(taken: list[Any]) -> None:
    sites = play(taken)
    for site in sites:
        site.agrees()
        check(decode(encode(site.document)))
    whole = Site("all", merge(merge(sites[0].document, sites[1].document), sites[2].document))
    for site in sites:
        whole.writes |= site.writes
    whole.agrees()


@settings(max_examples=max(400, settings().max_examples))
@given(st.lists(step, max_size=25))
def test_merging_is_commutative_associative_and_idempotent(taken: list[Any]) -> None:
    a, b, c = (site.document for site in play(taken))
    assert encode(merge(a, b)) == encode(merge(b, a))
    assert encode(merge(merge(a, b), c)) == encode(merge(a, merge(b, c)))
    assert encode(merge(a, a)) == encode(a)
    assert encode(merge(merge(a, b), b)) == encode(merge(a, b))
    assert encode(merge(a, EMPTY)) == encode(a)


# -- the boundary cases, by hand -------------------------------------------------------------------


def test_a_preference_changed_on_both_sides_is_the_later_one() -> None:
    a = with_fields(EMPTY, {"language": b"de"}, stamp(2, "a.1"))
    b = with_fields(EMPTY, {"language": b"fr"}, stamp(1, "b.1"))
    assert merge(a, b).fields["language"].value == b"de"
    tied = with_fields(EMPTY, {"language": b"fr"}, stamp(2, "b.1"))
    assert merge(a, tied).fields["language"].value == b"fr"


def test_an_unset_field_does_not_come_back() -> None:
    old = with_fields(EMPTY, {"email": b"secret"}, stamp(1))
    unset = with_fields(old, {"email": None}, stamp(2))
    assert merge(old, unset).fields["email"].value is None
    assert merge(unset, old).fields["email"].value is None


def test_a_write_wins_over_a_removal_that_had_not_seen_it() -> None:
    both = with_alert(EMPTY, "x", terms(200), stamp(1))
    removed = without_alerts(both, ["x"])
    assert merge(both, removed).alerts == {}
    edited = with_alert(both, "x", terms(210), stamp(2, "b.1"))
    kept = merge(removed, edited).alert("x")
    assert kept is not None
    assert kept.terms.price_e9 == 210


def test_a_merge_disarms_what_either_side_fired() -> None:
    both = with_alert(EMPTY, "x", terms(200), stamp(1))
    dot = both.alerts["x"][0].dot
    fired = with_fired(both, "x", dot, 0, 5_000, 201)
    assert fired is not None
    merged = merge(both, fired)
    version = merged.alert("x")
    assert version is not None
    assert not version.armed
    assert with_fired(merged, "x", dot, 0, 6_000, 202) is None


def test_fired_on_both_sides_is_one_arming() -> None:
    both = with_alert(EMPTY, "x", terms(200), stamp(1))
    dot = both.alerts["x"][0].dot
    a, b = with_fired(both, "x", dot, 0, 5_000, 201), with_fired(both, "x", dot, 0, 5_001, 203)
    assert a is not None
    assert b is not None
    merged = merge(a, b).alert("x")
    assert merged is not None
    assert (merged.dot, merged.fired, merged.fired_at_us) == (dot, 1, 5_001)


def test_armed_anew_while_the_other_side_fired_stays_armed() -> None:
    both = with_alert(EMPTY, "x", terms(200), stamp(1))
    fired = with_fired(both, "x", both.alerts["x"][0].dot, 0, 5_000, 201)
    assert fired is not None
    again = merge(fired, with_alert(both, "x", terms(200), stamp(2, "b.1"))).alert("x")
    assert again is not None
    assert again.armed
    assert again.dot == Dot("b.1", 1)


def test_a_site_that_lost_its_disk_does_not_reuse_its_dots() -> None:
    a = with_alert(EMPTY, "x", terms(200), stamp(1, "a.1"))
    b = a
    # Under its old name the first write after the loss would take the dot that b has seen, and be thrown away.
    reborn = with_alert(EMPTY, "y", terms(300), stamp(3, "a.2"))
    assert set(merge(reborn, b).alerts) == set(merge(b, reborn).alerts) == {"x", "y"}
    reused = with_alert(EMPTY, "y", terms(300), stamp(3, "a.1"))
    assert "y" not in merge(reused, without_alerts(b, ["x"])).alerts


def test_erased_is_erased_at_the_other_side_too() -> None:
    both = with_alert(with_fields(EMPTY, {"email": b"secret"}, stamp(1)), "x", terms(200), stamp(2))
    gone = merge(both, erased(both, stamp(3)))
    assert gone.alerts == {}
    assert gone.fields["email"].value is None


def test_what_is_sealed_anew_replaces_the_same_write() -> None:
    old, new = Register(stamp(1), b"\x01old"), Register(stamp(1), b"\x02new")
    assert merge(Document({"email": old}), Document({"email": new})).fields["email"] == new
    assert merge(Document({"email": new}), Document({"email": old})).fields["email"] == new


# -- bounds ----------------------------------------------------------------------------------------


def full() -> Document:
    document = EMPTY
    for number in range(ALERTS_MAX):
        document = with_alert(document, f"alert-{number}", terms(number + 1), stamp(number))
    return document


def test_one_alert_more_than_a_user_may_have() -> None:
    document = full()
    with_alert(document, "alert-0", terms(7), stamp(1_000))
    with pytest.raises(TooManyAlerts, match="100"):
        with_alert(document, "one-more", terms(7), stamp(1_000))
    with_alert(without_alerts(document, ["alert-7"]), "one-more", terms(7), stamp(1_000))


def test_a_merge_may_exceed_the_limit_and_is_not_refused() -> None:
    other = with_alert(EMPTY, "other", terms(5), stamp(1, "b.1"))
    assert len(check(merge(full(), other)).alerts) == ALERTS_MAX + 1


V = Version(Dot("a.1", 1), stamp(1), terms(1))
REFUSED = [
    (Document({str(n): Register(stamp(1), None) for n in range(FIELDS_MAX + 1)}), "fields"),
    (Document({"f" * 33: Register(stamp(1), None)}), "name is too long"),
    (Document({"f": Register(stamp(1), b"v" * (VALUE_BYTES_MAX + 1))}), "long value"),
    (Document({"f": Register(stamp(-1), b"")}), "before 1970"),
    (Document({"f": Register(stamp(1, "w" * 50), b"")}), "writer's name"),
    (Document({}, {"a.1": 1}, {"x": []}), "without a version"),
    (Document({}, {"a.1": 1}, {"x" * 33: [V]}), "id is too long"),
    (Document({}, {}, {"x": [V]}), "unseen dot"),
    (Document({}, {"a.1": 0}), "seen nothing"),
    (Document({}, {f"a.{n}": 1 for n in range(65)}), "writers"),
    (Document({}, {"a.1": 1}, {"x": [V], "y": [V]}), "one dot"),
    (Document({}, {"a.1": 1}, {"x": [structs.replace(V, fired=-1)]}), "less than never"),
    (
        Document({}, {"a.1": 500}, {"x": [structs.replace(V, dot=Dot("a.1", n + 1)) for n in range(401)]}),
        "versions of alerts",
    ),
]


@pytest.mark.parametrize(("document", "why"), REFUSED)
def test_what_no_site_writes_is_refused(document: Document, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        check(decode(encode(document)))


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x93\x80\x80", encode(full())[:-1], b"\x93\x80\x80\x81\xa1x\x01"])
def test_garbage_is_no_document(raw: bytes) -> None:
    with pytest.raises(Malformed):
        decode(raw)


def test_only_what_is_not_ahead_is_admitted() -> None:
    document = with_fields(EMPTY, {"language": b"de"}, stamp(10))
    document = with_fields(document, {"time_zone": b"x"}, stamp(30))
    found, held_back = admissible(document, 20)
    assert (set(found.fields), held_back) == ({"language"}, 1)
    ahead = with_alert(document, "x", terms(1), stamp(40))
    found, held_back = admissible(ahead, 30)
    # Without the versions the context must not come either: it would remove them.
    assert (set(found.fields), found.context, held_back) == ({"language", "time_zone"}, {}, 1)
    assert admissible(ahead, 40) == (ahead, 0)


def test_what_lost_against_a_version_that_is_removed_then_holds() -> None:
    a, b = with_alert(EMPTY, "x", terms(1), stamp(1, "a.1")), with_alert(EMPTY, "x", terms(2), stamp(2, "b.1"))
    c = without_alerts(b, ["x"])
    for merged in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(merge(c, a), b)):
        kept = merged.alert("x")
        assert kept is not None
        assert kept.terms.price_e9 == 1
