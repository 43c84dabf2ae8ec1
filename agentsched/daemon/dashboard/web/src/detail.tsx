// One program: facts, its execution graph, and what was decided about it.
import type { VNode } from "preact";
import { Decision, Figures } from "./side";
import { sentence } from "./sentence";
import type { Standing, Store } from "./store";
import type { CallRow, ToolRow } from "./types";
import { percent, seconds, tokens, toolName } from "./words";

interface Props {
  store: Store;
  standing: Standing;
  at_s: number;
  live: boolean;
  close(): void;
  choose(program: string): void;
}

const CALLS = 40;
const DECISIONS = 60;

export function Detail(props: Props): VNode {
  const { store, standing, at_s } = props;
  const { row } = standing;
  const said = store.itemsOf(row.program, at_s).reverse();
  const calls = row.calls.filter((call) => call.arrived_s <= at_s);
  const first = row.calls_done - row.calls.filter((call) => call.ended_s !== undefined && !call.failed).length;
  const tools = asked(calls, row.tools.filter((tool) => tool.began_s <= at_s));
  return (
    <aside class="side detail" aria-label={`Program ${row.program}`}>
      <header>
        <h2 title={row.program}>{row.program}</h2>
        <button type="button" class="plain" onClick={props.close} title="Close (Esc)" aria-label="Close">×</button>
      </header>
      <div class="scroll" tabIndex={0}>
        <p class="now"><i class={`mark ${standing.doing}`} />{sentence(standing, at_s)}</p>
        <Facts {...props} />
        <Where standing={standing} />
        <h3>Execution graph <small>calls ● and the tools ■ that their answers asked for, latest first</small></h3>
        <ol class="aeg">
          {[...calls].reverse().slice(0, CALLS).map((call, index) => (
            <Call key={call.call} call={call} number={first + calls.length - index} at_s={at_s} live={props.live} tools={tools.get(call.call) ?? []} last={index === Math.min(CALLS, calls.length) - 1} />
          ))}
        </ol>
        {calls.length > CALLS && <p class="quiet">{calls.length - CALLS} earlier calls are not drawn.</p>}
        {calls.length === 0 && <p class="quiet">It has made no call yet.</p>}
        <h3>What was decided about it</h3>
        <div class="own">
          {said.slice(0, DECISIONS).map((item) => <Decision key={item.number} item={item} store={store} />)}
        </div>
        {said.length === 0 && <p class="quiet">Nothing in the time that is known.</p>}
      </div>
    </aside>
  );
}

function Facts({ standing, at_s, live, store, choose }: Props): VNode {
  const { row } = standing;
  const over = row.calls.filter((call) => call.ended_s !== undefined && call.ended_s <= at_s);
  const recomputed = over.reduce((sum, call) => sum + (call.recomputed_tokens ?? 0), 0);
  const later = row.calls.filter((call) => call.ended_s !== undefined && !call.failed).length - over.filter((call) => !call.failed).length;
  const facts: [string, string | VNode][] = [
    ["tenant", row.tenant || "not told"],
    ["age", seconds((row.ended_s !== null && row.ended_s < at_s ? row.ended_s : at_s) - row.opened_s)],
    ["calls", `${row.calls_done - later}${row.expected_calls ? ` of ${row.expected_calls} announced` : ", how many in all is not told"}`],
    ["tools run", row.host || "where the agent does"],
  ];
  if (row.parent) facts.push(["begun by", store.programs.has(row.parent) ? <a onClick={() => choose(row.parent)}>{row.parent}</a> : row.parent]);
  if (row.due_s !== null) facts.push(["due in", row.due_s > at_s ? seconds(row.due_s - at_s) : `${seconds(at_s - row.due_s)} ago`]);
  if (recomputed > 0) facts.push(["read again", `${tokens(recomputed)} tokens that had been held once`]);
  if (live && row.ended_s === null) facts.push(["place", row.seat ?? "none: its calls wait"]);
  if (live && row.why) facts.push(["because", row.why]);
  return (
    <dl class="facts">
      {facts.map(([name, value]) => (
        <div key={name}><dt>{name}</dt><dd>{value}</dd></div>
      ))}
    </dl>
  );
}

function Where({ standing }: { standing: Standing }): VNode {
  const [, device, host, context] = standing.kept;
  const whole = Math.max(context, device + host, 1);
  const nowhere = Math.max(0, context - device - host);
  return (
    <div class="where">
      <div class="bar" role="img" aria-label={`${percent(device / whole)} of its context is on the device`}>
        <i class="device" style={{ width: `${(100 * device) / whole}%` }} />
        <i class="host" style={{ width: `${(100 * host) / whole}%` }} />
      </div>
      <p>
        <span><i class="swatch device" />{tokens(device)} on device</span>
        <span><i class="swatch host" />{tokens(host)} in host memory</span>
        <span><i class="swatch nowhere" />{tokens(nowhere)} to read again</span>
      </p>
    </div>
  );
}

/** Tool calls by the call whose answer asked for them; where that is not told, by the last one before. */
function asked(calls: CallRow[], tools: ToolRow[]): Map<string, ToolRow[]> {
  const byCall = new Map<string, ToolRow[]>();
  for (const tool of tools) {
    const call =
      calls.find((one) => one.asks?.includes(tool.tool_call)) ??
      calls.findLast((one) => one.ended_s !== undefined && one.ended_s <= tool.began_s + 0.001);
    if (call !== undefined) byCall.set(call.call, [...(byCall.get(call.call) ?? []), tool]);
  }
  return byCall;
}

interface CallProps {
  call: CallRow;
  number: number;
  at_s: number;
  live: boolean;
  tools: ToolRow[];
  last: boolean;
}

function Call({ call, number, at_s, live, tools, last }: CallProps): VNode {
  const end_s = call.ended_s !== undefined && call.ended_s <= at_s ? call.ended_s : undefined;
  const until = (time: number | undefined): number => Math.min(time ?? end_s ?? at_s, at_s);
  const sent = until(call.sent_s ?? call.started_s);
  const started = Math.max(sent, until(call.started_s));
  const token = Math.max(started, until(call.first_token_s));
  const stop = Math.max(token, end_s ?? at_s);
  const parts: [string, number][] = [
    ["gateway", sent - call.arrived_s], ["queue", started - sent], ["prefill", token - started], ["decode", stop - token],
  ];
  const whole = Math.max(1e-9, stop - call.arrived_s);
  return (
    <li class={`${last ? "last" : ""} ${call.failed ? "failed" : ""}`}>
      <div class="call">
        <b>call {number}</b>
        <span>{tokens(call.prompt_tokens)} in{call.cached_tokens ? `, ${percent(call.cached_tokens / Math.max(1, call.prompt_tokens))} held` : ""}{call.output_tokens ? `, ${tokens(call.output_tokens)} out` : ""}</span>
        <time>{seconds(whole)}</time>
        <div class="split" title={parts.map(([name, length]) => `${name} ${seconds(length)}`).join(", ")}>
          {parts.map(([name, length]) => <i key={name} class={name} style={{ width: `${(100 * length) / whole}%` }} />)}
        </div>
        {call.failed && <p class="bad">{call.failed}</p>}
      </div>
      {tools.map((tool) => <Tool key={tool.tool_call} tool={tool} at_s={at_s} live={live} />)}
    </li>
  );
}

function Tool({ tool, at_s, live }: { tool: ToolRow; at_s: number; live: boolean }): VNode {
  const over = tool.ended_s !== undefined && tool.ended_s <= at_s;
  const bad = over && tool.exit_status !== undefined && tool.exit_status !== 0;
  return (
    <div class={`asked ${over ? "" : "open"} ${bad ? "bad" : ""}`}>
      <b>{toolName(tool)}</b>
      <time>{seconds((over ? tool.ended_s! : at_s) - tool.began_s)}</time>
      {bad && <span class="bad">exit {tool.exit_status}</span>}
      {over ? (tool.told ? <small>{(tool.cpu_s ?? 0).toFixed(1)} s CPU{tool.memory_bytes ? `, ${(tool.memory_bytes / 1e6).toFixed(0)} MB` : ""}</small> : <small>no figures told</small>) : <Figures tool={tool} live={live} />}
    </div>
  );
}
