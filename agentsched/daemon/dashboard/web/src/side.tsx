// Beside the timelines: what was decided, which tools run, and the hosts that they run on.
import type { VNode } from "preact";
import { useMemo, useState } from "preact/hooks";
import { List } from "./list";
import type { Moment, Standing, Store } from "./store";
import type { Item, ToolRow } from "./types";
import { KINDS, bytes, clock, percent, seconds, short, toolName } from "./words";

export type Tab = "decisions" | "tools" | "hosts";
export const TABS: Tab[] = ["decisions", "tools", "hosts"];

const MOST = 1000;

interface Props {
  store: Store;
  moment: Moment;
  tab: Tab;
  setTab(tab: Tab): void;
  search: string;
  choose(program: string): void;
}

export function Side(props: Props): VNode {
  const running = useTools(props.moment);
  const counts: Record<Tab, number | null> = { decisions: null, tools: running.length, hosts: props.store.view.hosts.length };
  return (
    <aside class="side">
      <nav class="tabs" role="tablist">
        {TABS.map((tab, index) => (
          <button key={tab} type="button" role="tab" aria-selected={props.tab === tab} title={`${index + 1}`} onClick={() => props.setTab(tab)}>
            {tab}{counts[tab] !== null && <small>{counts[tab]}</small>}
          </button>
        ))}
      </nav>
      {props.tab === "decisions" && <Decisions {...props} />}
      {props.tab === "tools" && <Tools {...props} running={running} />}
      {props.tab === "hosts" && <Hosts {...props} running={running} />}
    </aside>
  );
}

function Decisions(props: Props): VNode {
  const { store, moment, search } = props;
  const [off, setOff] = useState<string[]>(() => KINDS.filter((kind) => kind.off).map((kind) => kind.kind));
  const wanted = new Set(KINDS.filter((kind) => !off.includes(kind.kind)).flatMap((kind) => kind.kinds));
  const words = search.toLowerCase();
  const all = store.view.items;
  const latest = all.at(-1);
  const items = useMemo(() => {
    const found: Item[] = [];
    for (let at = all.length - 1; at >= 0 && found.length < MOST; at--) {
      const item = all[at]!;
      if (item.at_s > moment.at_s || !wanted.has(item.kind)) continue;
      if (words && !`${item.program} ${item.tenant} ${item.text}`.toLowerCase().includes(words)) continue;
      found.push(item);
    }
    return found;
  }, [all, latest?.number, moment.live ? 0 : moment.at_s, moment.live ? Math.floor(moment.at_s) : 0, off, words]);
  return (
    <>
      <div class="kinds" role="group" aria-label="What is listed">
        {KINDS.map(({ kind, name }) => (
          <button
            key={kind}
            type="button"
            aria-pressed={!off.includes(kind)}
            onClick={() => setOff(off.includes(kind) ? off.filter((one) => one !== kind) : [...off, kind])}
          >
            {name}
          </button>
        ))}
      </div>
      <List
        items={items}
        row_px={60}
        keyOf={(item) => item.number}
        label="Decisions, latest first"
        class="decisions"
        empty="Nothing of this kind was decided in the time that is shown."
        render={(item) => <Decision item={item} store={store} choose={props.choose} />}
      />
    </>
  );
}

export function Decision(props: { item: Item; store: Store; choose?(program: string): void }): VNode {
  const { item, store, choose } = props;
  const known = item.program !== undefined && store.programs.has(item.program);
  const group = KINDS.find((kind) => kind.kinds.includes(item.kind))?.kind ?? "events";
  return (
    <div class={`decision ${known ? "" : "gone"}`} title={item.text} onClick={() => known && choose?.(item.program!)}>
      <time>{clock(store.unix(item.at_s))}</time>
      <i class={`kind ${group} ${item.kind}`} />
      <b title={item.program}>{choose === undefined ? "" : item.program ? short(item.program) : (item.engine ?? "")}</b>
      <p>{item.advice && <em>would: </em>}{item.text}</p>
    </div>
  );
}

interface Running {
  standing: Standing;
  tool: ToolRow;
}

function useTools(moment: Moment): Running[] {
  return useMemo(() => {
    const running: Running[] = [];
    for (const standing of moment.programs) for (const tool of standing.tools) running.push({ standing, tool });
    return running.sort((a, b) => a.tool.began_s - b.tool.began_s);
  }, [moment]);
}

function Tools(props: Props & { running: Running[] }): VNode {
  const words = props.search.toLowerCase();
  const shown = props.running.filter(({ standing, tool }) => !words || `${standing.row.program} ${standing.row.tenant} ${toolName(tool)}`.toLowerCase().includes(words));
  return (
    <List
      items={shown}
      row_px={62}
      keyOf={({ tool, standing }) => `${standing.row.program} ${tool.tool_call}`}
      label="Tool calls that run, longest first"
      class="tools"
      empty="No tool runs."
      render={({ standing, tool }) => (
        <div class="toolcall" onClick={() => props.choose(standing.row.program)}>
          <b>{toolName(tool)}</b>
          <time>{seconds(props.moment.at_s - tool.began_s)}</time>
          <small title={standing.row.program}>{short(standing.row.program)}</small>
          <Figures tool={tool} live={props.moment.live} />
        </div>
      )}
    />
  );
}

/** CPU, memory and progress of a tool; what nobody tells is said to be so. */
export function Figures({ tool, live }: { tool: ToolRow; live: boolean }): VNode {
  if (!tool.told)
    return <p class="untold" title="It runs outside of a sandbox, and its agent does not use the SDK">CPU, memory and progress: not told</p>;
  if (!live && tool.ended_s !== undefined)
    return <p class="untold">in the end {tool.cpu_s?.toFixed(1) ?? "?"} s of CPU, {tool.memory_bytes ? `${bytes(tool.memory_bytes)} at its peak` : "memory not told"}</p>;
  const done = tool.done_fraction;
  return (
    <p class="figures">
      <span>{tool.cores !== undefined ? `${tool.cores.toFixed(1)} cores` : tool.cpu_s !== undefined ? `${tool.cpu_s.toFixed(1)} s CPU` : "CPU not told"}</span>
      <span>{tool.memory_bytes !== undefined && tool.memory_bytes > 0 ? bytes(tool.memory_bytes) : "memory not told"}</span>
      {done === undefined ? <span class="quiet">progress not told</span> : <Progress share={done} />}
    </p>
  );
}

function Progress({ share }: { share: number }): VNode {
  return (
    <span class="progress" role="progressbar" aria-valuenow={Math.round(100 * share)} aria-valuemin={0} aria-valuemax={100}>
      <i style={{ width: percent(share).replace(" ", "") }} />
      <b>{percent(share)}</b>
    </span>
  );
}

function Hosts(props: Props & { running: Running[] }): VNode {
  const { store, running } = props;
  const limits = new Map(store.view.hosts.map((host) => [host.host, host.memory_bytes]));
  const names = [...new Set([...limits.keys(), ...running.map(({ standing }) => standing.row.host)])].sort();
  return (
    <div class="hosts">
      {names.length === 0 && <div class="empty">No host of tools is attached, and no tool runs.</div>}
      {names.map((name) => (
        <Host key={name} name={name} limit={limits.get(name)} tools={running.filter(({ standing }) => standing.row.host === name)} choose={props.choose} />
      ))}
      <p class="note">Memory and CPU are sums over tool calls that report. How many cores a host has, and what else runs there, the daemon is not told.</p>
    </div>
  );
}

function Host(props: { name: string; limit: number | undefined; tools: Running[]; choose(program: string): void }): VNode {
  const { name, limit, tools } = props;
  const told = tools.filter(({ tool }) => tool.told);
  const memory = told.reduce((sum, { tool }) => sum + (tool.memory_bytes ?? 0), 0);
  const cores = told.reduce((sum, { tool }) => sum + (tool.cores ?? 0), 0);
  const untold = tools.length - told.length;
  const largest = [...told].sort((a, b) => (b.tool.memory_bytes ?? 0) - (a.tool.memory_bytes ?? 0)).slice(0, 6);
  return (
    <section class="tools-host">
      <h3>{name || "where agents run"}{!name && <small> no host told</small>}</h3>
      {limit !== undefined && (
        <div class="bar memory" title={`${bytes(memory)} of ${bytes(limit)}`}>
          <i style={{ width: `${Math.min(100, (100 * memory) / limit)}%` }} />
        </div>
      )}
      <p>
        {told.length > 0 || limit !== undefined ? `${bytes(memory)}${limit !== undefined ? ` of ${bytes(limit)} for tools` : " of memory, limit not told"}, ` : "memory and CPU not told, "}
        {told.length > 0 && `${cores.toFixed(1)} cores in use, `}
        {tools.length} {tools.length === 1 ? "tool call" : "tool calls"}
        {untold > 0 && told.length > 0 && `, ${untold} of which report nothing`}
      </p>
      <ul>
        {largest.map(({ tool, standing }) => (
          <li key={tool.tool_call} onClick={() => props.choose(standing.row.program)}>
            <b>{toolName(tool)}</b> <small>{short(standing.row.program, 20)}</small>
            <span>{tool.cores === undefined ? "" : `${tool.cores.toFixed(1)} cores`}</span>
            <span>{tool.memory_bytes ? bytes(tool.memory_bytes) : ""}</span>
          </li>
        ))}
      </ul>
    </section>
  );
}
