"""report.html of a run's folder: one file that needs nothing else, for somebody who never saw the project."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import msgspec

from chaos.check.verdict import Check, Verdict
from chaos.history.file import NAME as HISTORY
from chaos.history.file import History, read_history
from chaos.history.run import Run, RunUnreadable, read_run
from chaos.report.coverage import COUNTERS, Coverage, coverage, installed
from chaos.report.drawing import draw, fault_label
from chaos.report.style import CSS
from chaos.report.timeline import OUTCOMES, TOOK_MS, Band, Timeline, timeline
from chaos.report.words import GLOSSARY, HEADLINES, MEANS, engine_words, seconds, sentences, tiles, verdict_word

NAME = "report.html"
VERDICT = "verdict.json"
OUTAGES_MAX = 15
LEGEND = (("ok", "answered"), ("fail", "refused"), ("unknown", "outcome unknown"))


def build_report(folder: Path) -> Path:
    """Write report.html into a run's folder and return its path; a run that was cut off is shown as far as it got.

    Raises RunUnreadable: no run.json, or a file that is no such file.
    """
    run = read_run(folder)
    history = read_history(folder / HISTORY)
    path = folder / NAME
    path.write_text(page(run, read_verdict(folder), history, snapshots=installed(folder)), "utf-8")
    return path


def read_verdict(folder: Path) -> Verdict | None:
    """None: the run was not judged. Raises RunUnreadable."""
    path = folder / VERDICT
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Verdict)
    except msgspec.MsgspecError as error:
        raise RunUnreadable(f"{path}: {error}") from error


def page(run: Run, verdict: Verdict | None, history: History, *, snapshots: int = 0) -> str:
    made = timeline(history, run.sites)
    word = verdict_word(verdict)
    body = "".join(
        (
            _head(run, word, sentences(run, verdict, history, made)),
            _tiles(tiles(verdict, history, made)),
            _timeline(made),
            _outages(made),
            _checks(verdict),
            _faults(made),
            _restarts(run),
            _coverage(coverage(history, made, snapshots=snapshots)),
            _repeat(run),
            _glossary(),
        )
    )
    title = f"{run.scenario} · seed {run.seed} · {word}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def _head(run: Run, word: str, said: list[str]) -> str:
    kind = word.split(maxsplit=1)[0]
    about = f"<p>{escape(run.story)}</p>" if run.story else ""
    return (
        f'<div class="kicker">Tiebreak chaos run · {escape(run.started_at)}</div>'
        f'<h1>{escape(run.scenario)} <span class="soft">seed {run.seed}</span> {_pill(word)}</h1>{about}'
        f'<div class="card head {kind}"><b>{escape(HEADLINES[word])}</b> {escape(MEANS[word])}'
        + "".join(f"<p>{escape(one)}</p>" for one in said)
        + f'<p class="soft">What ran: {escape(engine_words(run))}.</p></div>'
    )


def _pill(word: str) -> str:
    return f'<span class="pill {word.split(maxsplit=1)[0]}">{escape(word.upper())}</span>'


def _tiles(shown: Iterable[tuple[str, str]]) -> str:
    tiles_ = "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(what)}</span></div>' for figure, what in shown
    )
    return f'<div class="tiles">{tiles_}</div>'


def _timeline(made: Timeline) -> str:
    legend = "".join(f'<li><i style="background:var(--{name})"></i>{title}</li>' for name, title in LEGEND)
    legend += '<li><i style="background:var(--fault);outline:1px solid var(--fault-line)"></i>a fault is in force</li>'
    legend += '<li><i style="background:var(--down);height:5px"></i>process not reached</li>'
    return (
        "<h2>What happened, second by second</h2>"
        '<p class="soft">Each row is one process. The height of a bar is how many requests it finished in that moment, '
        "colours say how. All rows of members have one scale, and so have gateways. Hold the pointer over anything for "
        "its figures. Afterwards everything was read back, all members were stopped and started, and it was read once "
        "more.</p>"
        f'<div class="card"><ul class="legend">{legend}</ul><div class="wide">{draw(made)}</div></div>'
    )


def _outages(made: Timeline) -> str:
    rows = [
        (
            "all writes" if one.who == "writes" else one.who,
            f"{one.from_s:.1f} s",
            seconds(one.for_s) if one.ended else f"{seconds(one.for_s)}, not ended",
            f"{one.asked:,}",
            ", ".join(map(str, one.faults)) or "none",
        )
        for one in made.outages[:OUTAGES_MAX]
    ]
    more = len(made.outages) - len(rows)
    note = f"<p class='soft'>{more} shorter ones are left out.</p>" if more > 0 else ""
    return (
        "<h2>Pauses</h2>"
        '<p class="soft">Half a second or more without an acknowledged command, while clients asked for one. '
        "“All writes” is what a client sees that may ask any member. A member that is cut off from a majority must not "
        "acknowledge; a gateway should have no pauses.</p>"
        + _table(
            (("who", ""), ("from", "n"), ("for", "n"), ("asked meanwhile", "n"), ("faults in force", "")),
            rows,
            empty="None.",
        )
        + note
    )


def _checks(verdict: Verdict | None) -> str:
    if verdict is None:
        return "<h2>What was checked</h2><p>Nothing yet.</p>"
    order = {"fail": 0, "invalid": 1, "pass": 2}
    rows = "".join(_check(check) for check in sorted(verdict.checks, key=lambda one: order[one.verdict]))
    figures = {name: value for name, value in verdict.figures.items() if value is not None}
    extra = ""
    if figures:
        shown = "".join(
            f"<dt>{escape(_plain(name))}</dt><dd>{escape(_figure(value))}</dd>" for name, value in figures.items()
        )
        extra = f"<details><summary>all figures of the checks</summary><dl>{shown}</dl></details>"
    return (
        "<h2>What was checked</h2>"
        '<p class="soft">Checks read only what clients were told and what the stopped members have on disk; they share '
        "no rule with the program that they judge.</p>"
        '<div class="card wide"><table><thead><tr><th>check</th><th></th><th>found</th><th>looked at</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>{extra}</div>"
    )


def _check(check: Check) -> str:
    counts = ", ".join(f"{_figure(value)} {escape(_plain(name))}" for name, value in check.counts.items())
    examples = ""
    if check.examples:
        shown = "".join(map(_example, check.examples))
        examples = f"<details open><summary>{len(check.examples)} examples</summary>{shown}</details>"
    return (
        f'<tr><td class="name">{escape(_plain(check.name))}</td><td>{_pill(check.verdict)}</td>'
        f'<td>{escape(check.why)}{examples}</td><td class="soft">{counts}</td></tr>'
    )


def _example(example: Mapping[str, object]) -> str:
    """Its reason as a sentence, then its fields, a line each."""
    why = f"<p>{escape(str(example['why']))}</p>" if "why" in example else ""
    fields = {name: json.dumps(value, ensure_ascii=False) for name, value in example.items() if name != "why"}
    return why + "<pre>" + "\n".join(f"{escape(name)}: {escape(value)}" for name, value in fields.items()) + "</pre>"


def _faults(made: Timeline) -> str:
    rows = [
        (
            str(band.number),
            f"{band.from_s:.1f} s",
            seconds(band.to_s - band.from_s),
            fault_label(band),
            ", ".join(band.targets[2:] and band.targets),
            "could not be put in" if band.failed else "yes" if band.bit else "no",
            str(band.detail.get("seen", "")),
            ", ".join(f"{_plain(name)} {_figure(value)}" for name, value in _drawn(band)),
        )
        for band in made.bands
    ]
    columns = (
        ("#", "n"),
        ("at", "n"),
        ("for", "n"),
        ("fault", "name"),
        ("what it hit", ""),
        ("took hold", ""),
        ("as seen by", ""),
        ("detail", ""),
    )
    return (
        "<h2>Faults</h2>"
        '<p class="soft">Drawn from the seed before the start. After each was put in, a probe looked whether it took '
        "hold: a fault that nobody can see is a failed test.</p>" + _table(columns, rows, empty="None were put in.")
    )


def _restarts(run: Run) -> str:
    if not run.restarts:
        return ""
    rows = "".join(f"<li>{escape(one)}</li>" for one in run.restarts)
    return (
        "<p>A proxy of the tool itself had to be started again. Its faults were put back, and its connections ended "
        f"at a moment that the plan does not name:</p><ul>{rows}</ul>"
    )


def _drawn(band: Band) -> Iterable[tuple[str, object]]:
    """What was drawn of a fault and what came of it; its other details stand elsewhere on the page."""
    return ((name, value) for name, value in band.detail.items() if name not in ("seen", "majority", TOOK_MS))


def _coverage(found: Coverage) -> str:
    kinds = [(one.nemesis, str(one.begun), str(one.bit), str(one.failed)) for one in found.kinds]
    events = [(name.replace("_", " "), f"{count:,}", COUNTERS.get(name, "")) for name, count in found.events.items()]
    loads = [(name, *(f"{ends[outcome]:,}" for outcome in OUTCOMES)) for name, ends in sorted(found.workloads.items())]
    return (
        "<h2>What the run exercised</h2>"
        + _table((("fault", ""), ("put in", "n"), ("took hold", "n"), ("failed", "n")), kinds, empty="No faults.")
        + _table((("happened", ""), ("times", "n"), ("which is", "")), events, empty="Nothing.")
        + _table(
            (("workload", ""), ("answered", "n"), ("refused", "n"), ("unknown", "n")), loads, empty="Nobody asked."
        )
    )


def _repeat(run: Run) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in run.versions.items())
    return (
        "<h2>Do it again</h2>"
        f"<pre>{escape(run.repeat_with)}</pre>"
        '<p class="soft">The same seed draws the same faults at the same times and the same requests. Real processes '
        "and networks never run twice alike, so two runs differ in what falls between. To judge this run again from "
        "what it recorded: <code>tiebreak chaos check</code> and the folder of this file, which also has the history "
        "(<code>history.jsonl</code>, one line before each request and one after its answer), the members' logs and "
        f"metrics, and the log that they agreed on.</p><p class='soft'>{escape(versions)}</p>"
    )


def _glossary() -> str:
    words = "".join(f"<dt>{escape(word)}</dt><dd>{escape(what)}</dd>" for word, what in GLOSSARY)
    return f"<h2>Words</h2><dl>{words}</dl>"


def _table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], *, empty: str) -> str:
    """columns: (title, class). A column that is empty in each row is left out."""
    if not rows:
        return f'<div class="card"><span class="soft">{escape(empty)}</span></div>'
    shown = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    head = "".join(f'<th class="{columns[place][1]}">{escape(columns[place][0])}</th>' for place in shown)
    body = "".join(
        "<tr>" + "".join(f'<td class="{columns[place][1]}">{escape(row[place])}</td>' for place in shown) + "</tr>"
        for row in rows
    )
    return f'<div class="card wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _figure(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    if isinstance(value, list):
        return " and ".join(map(str, value)) or "none"
    return str(value)
