"""The page's CSS: one column of sections, light or dark as the reader's system says, readable on a phone."""

CSS = """
:root { color-scheme: light dark; --bg:#f7f7f5; --card:#fff; --ink:#1d2129; --muted:#5d6673; --edge:#dcdfe4;
  --grid:#e9ebee; --good:#12703f; --bad:#b3261e; --c0:#2563c9; --c1:#d9660a; --c2:#188a5b; --c3:#8a46c8;
  --c4:#c92a6b; --c5:#0b8494; --c6:#8d7100; --c7:#6a7280; }
@media (prefers-color-scheme: dark) { :root { --bg:#14161a; --card:#1d2026; --ink:#e7e9ee; --muted:#9ca5b3;
  --edge:#343a45; --grid:#2a2f38; --good:#5fce95; --bad:#ff8a80; --c0:#6ea3ff; --c1:#ff9f50; --c2:#4fcf98;
  --c3:#c193f7; --c4:#ff82b2; --c5:#4fcadb; --c6:#dcc14a; --c7:#a3acb9; } }
* { box-sizing: border-box; }
body { margin:0 auto; padding:1.5rem clamp(.75rem,3vw,2rem) 4rem; max-width:1180px; background:var(--bg);
  color:var(--ink); font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; overflow-wrap:anywhere; }
h1 { font-size:1.7rem; line-height:1.2; margin:.2rem 0 .6rem; }
h2 { font-size:1.25rem; margin:2.4rem 0 .6rem; padding-top:.6rem; border-top:1px solid var(--edge); }
h3 { font-size:1rem; margin:.2rem 0; }
h4 { font-size:.8rem; margin:0; color:var(--muted); text-transform:uppercase; letter-spacing:.05em; }
p { margin:.3rem 0; }
small, .muted { color:var(--muted); font-weight:normal; }
.muted { font-size:.9rem; }
nav { display:flex; flex-wrap:wrap; gap:.2rem 1.1rem; margin:.8rem 0; }
a { color:var(--c0); }
dl { display:grid; grid-template-columns:max-content 1fr; gap:.15rem 1rem; margin:.5rem 0; font-size:.92rem; }
dt { color:var(--muted); }
dd { margin:0; }
code, pre { font:.85rem/1.45 ui-monospace,Menlo,Consolas,monospace; }
pre { overflow-x:auto; overflow-wrap:normal; padding:.8rem; background:var(--card); border:1px solid var(--edge);
  border-radius:8px; }
summary { cursor:pointer; padding:.3rem 0; font-weight:600; }
.notice { border-left:4px solid var(--c1); background:var(--card); padding:.5rem .8rem; margin:.5rem 0;
  border-radius:0 8px 8px 0; }
.wide { overflow-x:auto; }
table { border-collapse:collapse; background:var(--card); width:100%; font-size:.95rem; }
th, td { text-align:right; padding:.45rem .7rem; border-bottom:1px solid var(--edge); white-space:nowrap;
  font-variant-numeric:tabular-nums; vertical-align:top; }
th:first-child { text-align:left; white-space:normal; min-width:9rem; font-weight:600; }
thead th { color:var(--muted); font-weight:600; font-size:.85rem; }
td small { display:block; }
.better { color:var(--good); font-weight:600; }
.worse { color:var(--bad); font-weight:600; }
.no-clear-change, .more, .less { color:var(--muted); font-size:.85rem; }
.charts { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr)); gap:1rem; }
figure, .card { margin:0; background:var(--card); border:1px solid var(--edge); border-radius:10px; padding:.8rem
  .9rem; }
figure { display:flex; flex-direction:column; }
figcaption { flex:1; }
figcaption p { color:var(--muted); font-size:.85rem; }
ul.legend, ul.marks, ul.plain { list-style:none; display:flex; flex-wrap:wrap; gap:.1rem .9rem; margin:.3rem 0;
  padding:0; font-size:.85rem; }
.legend b { font-variant-numeric:tabular-nums; }
.plain { color:var(--muted); }
.legend i { display:inline-block; width:.8em; height:.8em; border-radius:2px; margin-right:.35em;
  background:currentColor; vertical-align:-.05em; }
svg { width:100%; height:auto; display:block; }
svg text { font-size:12px; fill:var(--muted); }
.grid { stroke:var(--grid); }
.zero { stroke:var(--muted); opacity:.6; }
.line { fill:none; stroke:currentColor; stroke-width:2; stroke-linejoin:round; stroke-linecap:round; }
.band { fill:currentColor; opacity:.16; }
.bar { fill:currentColor; opacity:.85; }
.column rect { fill:transparent; }
.column path { stroke:var(--muted); opacity:0; }
.column:hover path { opacity:1; }
.c0{color:var(--c0)}
.c1{color:var(--c1)}
.c2{color:var(--c2)}
.c3{color:var(--c3)}
.c4{color:var(--c4)}
.c5{color:var(--c5)}
.c6{color:var(--c6)}
.c7{color:var(--c7)}
.pairs { display:grid; gap:1rem; margin-top:.8rem; }
.pairs .card { display:grid; gap:.6rem 1.2rem; grid-template-columns:1fr 1fr; }
.pairs header { grid-column:1/-1; }
.card section { border-top:1px solid var(--grid); padding-top:.5rem; }
.rollouts { display:grid; gap:.8rem; grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr));
  margin:.3rem 0 1rem; }
.combinations { display:grid; gap:.8rem; grid-template-columns:repeat(var(--columns),minmax(0,1fr));
  margin:.3rem 0 1.1rem; }
.combinations .card { padding:.6rem .7rem; }
.sides { display:grid; grid-template-columns:1fr 1fr; gap:.2rem .8rem; margin-top:.35rem; }
.sides section { border:0; padding:0; min-width:0; }
.sides .muted, .sides .marks { font-size:.8rem; line-height:1.35; }
h5 { font-size:.8rem; margin:0 0 .1rem; }
.voice text { font-size:11px; }
.voice .line { stroke-width:2.2; }
.voice .band { opacity:.28; }
audio { width:100%; max-width:24rem; height:36px; margin:.2rem 0; display:block; }
.said { font-size:1.05rem; }
.right { color:var(--good); }
.wrong, .missing { color:var(--bad); }
.missing { font-size:.9rem; }
@media (max-width:980px) { .combinations { grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr)); } }
@media (max-width:640px) { .pairs .card { grid-template-columns:1fr; } th, td { padding:.4rem .25rem; }
  th:first-child { min-width:5rem; } table { font-size:.8rem; } }
@media print { audio, nav { display:none; } figure, .card { break-inside:avoid; } }
"""
