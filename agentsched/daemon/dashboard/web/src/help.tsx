// What keys do, and what words and colours mean.
import type { VNode } from "preact";
import { DOING, SHOWN } from "./words";

export const KEYS: [string, string][] = [
  ["/", "search programs, tenants, tools and decisions"],
  ["j k", "next and previous program (also ↓ ↑)"],
  ["Esc", "close the program, clear the search"],
  ["1 2 3", "decisions, tools, hosts"],
  ["f", "show only: what waits, computes, runs tools, …"],
  ["+ −", "shorter and longer timelines"],
  ["← →", "5 s back and forth in time (Shift: 1 min)"],
  ["Space", "stop the clock, and go on"],
  ["l", "back to live"],
  ["d", "dark or light"],
  ["?", "this help"],
];

export function Help(props: { close(): void }): VNode {
  return (
    <div class="over" onClick={props.close}>
      <div class="dialog help" role="dialog" aria-label="Help" onClick={(event) => event.stopPropagation()}>
        <header><h2>Keys and words</h2><button type="button" class="plain" onClick={props.close} aria-label="Close">×</button></header>
        <div class="columns">
          <dl class="keys">
            {KEYS.map(([keys, does]) => <div key={keys}><dt>{keys.split(" ").map((one) => <kbd key={one}>{one}</kbd>)}</dt><dd>{does}</dd></div>)}
          </dl>
          <div>
            <dl class="marks">
              {SHOWN.map((doing) => <div key={doing}><dt><i class={`mark ${doing}`} />{DOING[doing].name}</dt><dd>{DOING[doing].says}.</dd></div>)}
            </dl>
            <p><b>Bars.</b> The thicker, the more is done: waiting is thin, computing thick. Below each bar is the program's context: <i class="swatch device" />on the device, <i class="swatch host" />in host memory, <i class="swatch nowhere" />to be read again.</p>
            <p><b>KV</b> is what an engine keeps of the text that it has read. It is scarce. Without it a program's next call reads everything again.</p>
            <p><b>A place</b> is the right to hold KV on an engine. A program without one waits at the gateway.</p>
            <p><b>The cliff.</b> With one program too many, every return finds its KV gone, everything is read again, and throughput falls to a fraction. So programs are held back while the predicted peak of all that have a place would exceed what is allowed.</p>
            <p><b>Worth and price</b> (a second): the chance that KV is needed again soon, against what holding it costs the others. What is worth least goes first.</p>
          </div>
        </div>
      </div>
    </div>
  );
}
