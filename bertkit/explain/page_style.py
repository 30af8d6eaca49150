"""The style and the script that all pages share.

Cells are blue above 0 and orange below, of an opacity that is the number's share of the scale's
end: both hues differ for every kind of colour blindness, and the ink on them has a contrast of 4.5
or more, in the light and in the dark (tested).
"""

# (paper, ink, above, below) of each mode, as red, green, blue.
LIGHT = ("255 255 255", "20 24 29", "84 150 220", "232 124 52")
DARK = ("20 24 29", "240 243 246", "30 92 168", "158 66 14")
# Lines and groups of bars; the first four are also those of bars.
SERIES = ("#2f7fd0", "#e07b28", "#4f9a3c", "#a06bc0", "#c2506a", "#7d8590")


def _colours(mode: tuple[str, str, str, str]) -> str:
    names = ("paper", "ink", "above", "below")
    return "".join(f"--{name}: {value}; " for name, value in zip(names, mode, strict=True))


STYLE = (
    f"""
:root {{ color-scheme: light; {_colours(LIGHT)}--faint: #57606a; --rule: #d0d7de; }}
@media screen and (prefers-color-scheme: dark) {{
  :root {{ color-scheme: dark; {_colours(DARK)}--faint: #a8b1bb; --rule: #3d444d; }} }}
{"".join(f".c{k} {{ --c: {c}; }} " for k, c in enumerate(SERIES))}
"""
    """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; color: rgb(var(--ink));
  background: rgb(var(--paper)); overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, "Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", sans-serif; }
h1 { font-size: 1.35rem; line-height: 1.3; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .25rem; }
p { margin: .25rem 0; }
.of, .note, .scale, footer, caption, .ends, .ticks { color: var(--faint); font-size: .9rem; }
.caution { border-left: 4px solid rgb(var(--below)); padding: .25rem .75rem; margin: .75rem 0;
  background: rgb(var(--below) / .1); max-width: 60rem; }
.note { max-width: 60rem; }
.wide { overflow-x: auto; margin: .25rem 0 .75rem; }
.more { mask-image: linear-gradient(to right, #000 calc(100% - 2.5rem), transparent); }
table { border-collapse: collapse; }
th { font-weight: 400; text-align: start; }
.heat { width: 100%; border-collapse: separate; border-spacing: 2px; line-height: 1.25;
  overflow-wrap: break-word; word-break: keep-all; }
.heat :is(th, td) { max-width: 12rem; }
.heat th { padding: .15rem .4rem; }
.heat thead th { text-align: center; vertical-align: bottom; min-width: 2.6rem; }
.heat tbody th { position: sticky; left: 0; background: rgb(var(--paper)); min-width: 4.2rem;
  z-index: 1; }
.heat [data-at] { text-align: center; padding: .2rem .25rem; min-width: 2.6rem; }
.heat b { display: block; font-weight: 500; }
.heat b + span { font-size: .8em; }
.heat span { font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.heat .o { outline: 2px solid rgb(var(--ink)); outline-offset: -2px; font-weight: 700; }
.heat .x { background: repeating-linear-gradient(45deg, var(--rule) 0 1px, transparent 1px 6px); }
[data-at] { background: rgb(var(--above) / var(--s, 0)); }
[data-at].n { background: rgb(var(--below) / var(--s, 0)); }
tr[data-at] { background: none; }
.square { width: auto; border-spacing: 1px; --side: clamp(1.15rem,
  (min(100vw, 75rem) - 9rem) / var(--n), 3.2rem); }
.square thead th, .square [data-at] { width: var(--side); min-width: var(--side);
  max-width: var(--side); height: var(--side); padding: 0; font-size: .75rem; overflow: hidden; }
.square thead th { font-size: .85rem; height: auto; overflow: visible; }
.square.up thead th { writing-mode: vertical-rl; text-align: end; padding: .25rem 0;
  max-height: 9rem; }
.square tbody th { white-space: nowrap; padding: 0 .4rem 0 0; text-align: end;
  max-width: 9rem; overflow: hidden; text-overflow: ellipsis; font-size: .85rem; }
.dense [data-at] span { font-size: 0; }
.ask:has(:checked) + .wide .square { --side: 3.2rem; }
.ask:has(:checked) + .wide .square [data-at] span { font-size: .75rem; }
.ask { font-size: .9rem; }
.scale i { display: inline-block; width: 5rem; height: .8em; border: 1px solid var(--rule);
  background: linear-gradient(to right, transparent, rgb(var(--above))); }
.scale .below { background: linear-gradient(to left, transparent, rgb(var(--below))); }
.scale span + span { margin-inline-start: .5rem; }
.bars { width: 100%; margin: .25rem 0; }
.bars th { width: 1%; min-width: 9rem; max-width: min(40vw, 22rem); padding: .1rem .6rem .1rem 0;
  vertical-align: middle; }
.bars .short { white-space: nowrap; min-width: 0; }
.bars .num { width: 1%; white-space: nowrap; text-align: end; padding-inline-start: .6rem;
  font-variant-numeric: tabular-nums; }
.bars .bar { position: relative; height: 1.45rem; min-width: 6rem; }
.bars tbody:not(:only-child):has(tr + tr) tr:last-child > * { padding-bottom: .3rem; }
.bars i, .bars u, .bars s { position: absolute; top: 18%; bottom: 18%; }
.bars i, .legend i { background: var(--c); }
.bars .below { background: #e07b28; }
.bars u { top: 50%; bottom: auto; border-top: 2px solid rgb(var(--ink)); }
.bars s { top: 0; bottom: 0; border-left: 1px solid var(--faint); }
.legend { list-style: none; margin: .25rem 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: .1rem 1.2rem; }
.legend i { display: inline-block; width: .9em; height: .9em; margin-inline-end: .4em; }
.text { white-space: pre-wrap; line-height: 1.9; font-size: 1.1rem; }
.text span { padding: .1em .05em; border-radius: .15em; }
.plot { display: grid; grid-template-columns: auto 1fr; gap: .4rem .8rem; margin: .75rem 1rem 0 0; }
.ends { display: flex; flex-direction: column; justify-content: space-between; text-align: end; }
.plot svg { overflow: visible; display: block; }
.plot svg line { stroke: var(--c); stroke-width: 2; }
.plot svg circle { fill: var(--c); }
.ticks { grid-column: 2; display: flex; justify-content: space-between; border-top: 1px solid; }
.heads { display: grid; grid-template-columns: auto repeat(var(--n), minmax(1.4rem, 8rem));
  gap: 3px; align-items: center; width: max-content; max-width: 100%; }
.heads span { padding-inline-end: .4rem; white-space: nowrap; }
.heads button { padding: 0; border: 1px solid var(--rule); background: none; line-height: 0;
  cursor: pointer; }
.heads [aria-pressed=true] { outline: 3px solid rgb(var(--ink)); outline-offset: -3px; }
canvas { width: 100%; image-rendering: pixelated; aspect-ratio: 1; min-width: 1.3rem; }
select { font: inherit; max-width: 100%; margin: .25rem .5rem .25rem 0; }
details { margin: 1rem 0; }
summary { cursor: pointer; }
details.numbers table { margin: .75rem 0; }
details.numbers :is(td, th) { padding: .1rem .9rem .1rem 0; text-align: start;
  vertical-align: top; border-bottom: 1px solid var(--rule); overflow-wrap: normal;
  max-width: 30rem; }
caption { text-align: start; white-space: pre-line; }
#told { position: fixed; bottom: 0; inset-inline: 0; margin: 0; padding: .4rem 1rem;
  background: rgb(var(--ink)); color: rgb(var(--paper)); z-index: 2; }
#told:empty { display: none; }
footer { margin: 2rem 0; }
@media (max-width: 700px) { .square:not(.dense) [data-at] span { font-size: 0; }
  .bars th { min-width: 6rem; } .bars .num { white-space: normal; min-width: 4rem;
    overflow-wrap: normal; }
  .bars .bar { min-width: 3rem; } }
@media print { body { max-width: none; padding: 0; font-size: 12px; }
  select, #told, .ask { display: none; } .wide { overflow: visible; mask: none; }
  .heat tbody th { position: static; } .heat th, .heat [data-at] { min-width: 0; }
  section { break-inside: avoid; } tr { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
)

# Which number lies under the pointer, or was tapped; and what is wider than its frame fades out at
# the right until one has scrolled there.
SCRIPT = """
(() => {
  const told = document.getElementById("told");
  const tell = event => {
    const cell = event.target.closest("td[data-at], .text [data-at]");
    if (!cell) { told.textContent = ""; return; }
    const names = cell.matches("td") ? [cell.parentNode.cells[0].textContent,
      cell.closest("table").rows[0].cells[cell.cellIndex].textContent] : [cell.textContent];
    told.textContent = names.join(" · ") + ": " + (cell.dataset.value || "–");
  };
  for (const kind of ["mouseover", "click"]) document.addEventListener(kind, tell);
  const fade = () => document.querySelectorAll(".wide").forEach(box => box.classList.toggle(
    "more", box.scrollLeft + box.clientWidth < box.scrollWidth - 1));
  for (const kind of ["scroll", "toggle", "change"]) document.addEventListener(kind, fade, true);
  addEventListener("resize", fade);
  fade();
})();
"""
