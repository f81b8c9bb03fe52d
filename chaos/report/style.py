"""How a report looks: one style sheet, light or dark as the reader's system has it, and fit for paper."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2430; --soft: #5b6776; --line: #dde2e8; --grid: #eceff3;
  --ok: #2f8f9d; --fail: #e2a32e; --unknown: #b5446e;
  --pass-ink: #11663f; --pass-bg: #d9f2e4; --fail-ink: #9b1c1c; --fail-bg: #fde2e0;
  --invalid-ink: #7a4b00; --invalid-bg: #fdeecb;
  --fault: #f3c3b8; --fault-line: #c9563c; --shadow: rgba(201, 86, 60, .09);
  --a: #cfe0f7; --b: #d8efd3; --t: #e4e4ec; --phase: #eceff3; --down: #7d8794;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1a2028; --ink: #e6eaf0; --soft: #98a4b3; --line: #2e3743; --grid: #252d38;
    --ok: #41a9b8; --fail: #d99a2b; --unknown: #d76b93;
    --pass-ink: #8be0b3; --pass-bg: #143826; --fail-ink: #ffb4ab; --fail-bg: #4a1a18;
    --invalid-ink: #f4cf83; --invalid-bg: #43320f;
    --fault: #5d2c22; --fault-line: #e0785f; --shadow: rgba(224, 120, 95, .12);
    --a: #24405f; --b: #27492a; --t: #3a3a48; --phase: #252d38; --down: #98a4b3;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1200px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 27px; line-height: 1.25; margin: 4px 0 6px; }
h2 { font-size: 19px; margin: 36px 0 6px; }
p { margin: 6px 0; max-width: 96ch; }
.soft, figcaption { color: var(--soft); }
.kicker { color: var(--soft); font-size: 13px; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin: 12px 0;
}
.head.pass { border-left: 6px solid var(--pass-ink); }
.head.fail { border-left: 6px solid var(--fail-ink); }
.head.invalid, .head.not { border-left: 6px solid var(--invalid-ink); }
.pill {
  display: inline-block; border-radius: 999px; padding: 1px 10px; font-size: 13px; font-weight: 600;
  white-space: nowrap;
}
.pill.pass { color: var(--pass-ink); background: var(--pass-bg); }
.pill.fail { color: var(--fail-ink); background: var(--fail-bg); }
.pill.invalid, .pill.not { color: var(--invalid-ink); background: var(--invalid-bg); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 14px 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px; }
.tile b { display: block; font-size: 22px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; line-height: 1.3; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; min-width: 55%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; }
th, td { padding: 6px 28px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name { white-space: nowrap; font-weight: 600; }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre {
  background: var(--page); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px;
  margin: 8px 0; white-space: pre-wrap;
}
  overflow-wrap: anywhere; }
details { margin: 4px 0 0; } summary { cursor: pointer; color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 8px 0; }
dt { font-weight: 600; } dd { margin: 0; color: var(--soft); max-width: 80ch; }
ul.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; margin: 4px 0 10px;
  font-size: 13px; color: var(--soft);
}
ul.legend i {
  display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 6px;
  vertical-align: -1px;
}
svg { display: block; width: 100%; min-width: 760px; height: auto; }
svg text { fill: var(--ink); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
svg text.small, svg text.strip { fill: var(--soft); font-size: 11px; }
svg text.label { font-size: 11px; pointer-events: none; }
svg text.site { font-weight: 600; font-size: 13px; } svg text.name { font-weight: 600; }
svg .grid { stroke: var(--grid); } svg .rule { stroke: var(--line); }
svg .ok { fill: var(--ok); } svg .fail { fill: var(--fail); } svg .unknown { fill: var(--unknown); }
svg .fault { fill: var(--fault); stroke: var(--fault-line); stroke-width: .8; }
svg .fault.unseen { fill: none; stroke-dasharray: 4 3; }
svg .shadow { fill: var(--shadow); }
svg .phase { fill: var(--phase); }
svg .reign { stroke: var(--line);}
svg .reign.a { fill: var(--a);}
svg .reign.b { fill: var(--b);}
svg .reign.t { fill: var(--t);}
svg .change { stroke: var(--soft); stroke-dasharray: 2 3; } svg .down { fill: var(--down); }
@media print { body { background: #fff; } .card, .tile { break-inside: avoid; } svg { min-width: 0; } }
"""
