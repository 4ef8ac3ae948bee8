"""The style sheet of the page: light and dark, blue for proponents and orange for opponents.

Both hues are told apart with any colour vision, and opponents are dashed besides. A tint is at most 55 % of its hue, so
that text keeps a contrast of 7 : 1 or more on it.
"""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --card: #f7f7f5; --text: #1b1b1b; --soft: #555; --line: #d8d8d4;
  --pro: 67 147 235; --opp: 240 140 50; --pro-solid: #1f6fc4; --opp-solid: #b25a0b; }
@media (prefers-color-scheme: dark) { :root { --back: #14161a; --card: #1d2026; --text: #ececec; --soft: #a9adb5;
  --line: #363b44; --pro: 40 100 190; --opp: 170 85 15; --pro-solid: #6bb0ff; --opp-solid: #f5a152; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 .3rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
.soft, footer, summary, .legend { color: var(--soft); font-size: .875rem; }
.query { border-top: 3px solid var(--line); margin-top: 2.5rem; padding-top: 1rem; }
.asked { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.asked b { background: rgb(var(--pro) / .3); border-radius: .2rem; padding: .05rem .15rem; }
article { border: 1px solid var(--line); border-radius: .5rem; margin: .8rem 0; padding: .7rem 1rem; }
.head { display: flex; flex-wrap: wrap; gap: .2rem .9rem; align-items: baseline; margin: 0 0 .4rem; }
.head strong { font-size: 1.05rem; }
.score { font-variant-numeric: tabular-nums; }
.pro .score { color: var(--pro-solid); } .opp .score { color: var(--opp-solid); }
.bar { flex: 1 1 6rem; height: .5rem; max-width: 16rem; background: var(--line); border-radius: .25rem;
  overflow: hidden; align-self: center; }
.bar i { display: block; height: 100%; width: calc(var(--w) * 100%); background: var(--pro-solid); }
.opp .bar i { background: var(--opp-solid); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; line-height: 1.9; }
.p, .o { border-radius: .2rem; padding: .1rem 0; border-bottom: 2px solid transparent; }
.p { background: rgb(var(--pro) / calc(var(--w) * .55)); }
.o { background: rgb(var(--opp) / calc(var(--w) * .55)); border-bottom: 2px dashed rgb(var(--opp) / var(--w)); }
.unread { color: var(--soft); font-style: italic; }
.carried { margin: .5rem 0 .2rem; font-size: .875rem; }
details { margin-top: .4rem; } summary { cursor: pointer; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8125rem; }
.strip { margin: .5rem 0; } .strip th { font-weight: normal; color: var(--soft); padding: 0 .5rem 0 0; text-align: left;
  white-space: nowrap; }
.strip thead th { padding: 0 .2rem; text-align: center; }
.strip td { min-width: 1.1rem; height: 1.5rem; padding: 0 .25rem; text-align: center; border: 1px solid var(--back);
  font-variant-numeric: tabular-nums; }
.key { display: inline-block; padding: 0 .5rem; color: var(--text); }
.settings td, .settings th { text-align: left; vertical-align: top; border-top: 1px solid var(--line);
  padding: .2rem .8rem .2rem 0; overflow-wrap: anywhere; }
.settings th { font-weight: normal; color: var(--soft); white-space: nowrap; }
nav ol { padding-left: 1.4rem; } a { color: var(--pro-solid); } code { overflow-wrap: anywhere; font-size: .9em; }
"""
