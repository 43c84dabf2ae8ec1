// The page: what is chosen and searched, the keyboard, and where everything goes.
import type { VNode } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Detail } from "./detail";
import { Help } from "./help";
import { Later } from "./later";
import { Side, TABS, type Tab } from "./side";
import type { Standing, Store } from "./store";
import { Summary } from "./summary";
import { useTheme } from "./theme";
import { Timebar } from "./timebar";
import { Timeline } from "./timeline";
import type { Doing } from "./types";
import type { Link } from "./stream";
import { DOING, SHOWN, seconds, toolName } from "./words";

export interface Connection {
  link: Link;
  says: string;
}

interface Props {
  store: Store;
  version: number;
  connection: Connection;
  earlier: ((from_s: number) => void) | undefined;
  loading: string;
  leave: (() => void) | undefined;
}

const WINDOWS_S = [30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200];
type Order = "arrival" | "kv" | "waiting";

export function App(props: Props): VNode {
  const { store, connection } = props;
  const [at_s, travel] = useState<number | null>(store.recorded ? store.view.at_s : null);
  const [span_s, setSpan] = useState(() => (store.recorded ? fitting(store.view.at_s - store.view.since_s) : 120));
  const [chosen, choose] = useState<string | null>(null);
  const [search, setSearch] = useState("");
  const [filter, setFilter] = useState<Doing | null>(null);
  const [order, setOrder] = useState<Order>("arrival");
  const [tab, setTab] = useState<Tab>("decisions");
  const [help, setHelp] = useState(false);
  const [theme, flip] = useTheme();
  const box = useRef<HTMLInputElement>(null);

  const moment = useMemo(() => store.at(at_s), [store, at_s, props.version]);
  const begin_s = moment.at_s - span_s;
  const programs = useMemo(
    () => sorted(moment.programs.filter((one) => inSight(one, begin_s) && matches(one, search, filter)), order),
    [moment, search, filter, order, begin_s],
  );
  const open = chosen === null ? undefined : moment.programs.find((one) => one.row.program === chosen);

  const move = (by: number): void => {
    const at = programs.findIndex((one) => one.row.program === chosen);
    const next = programs[at < 0 ? (by > 0 ? 0 : programs.length - 1) : Math.max(0, Math.min(programs.length - 1, at + by))];
    if (next) choose(next.row.program);
  };
  const step = (by_s: number): void => {
    const to_s = Math.max(store.begin(), moment.at_s + by_s);
    travel(to_s >= store.now() ? (store.recorded ? store.now() : null) : to_s);
  };
  const zoom = (by: number): void => {
    const at = WINDOWS_S.findIndex((window) => window >= span_s);
    setSpan(WINDOWS_S[Math.max(0, Math.min(WINDOWS_S.length - 1, at + by))]!);
  };

  useKeys((event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target instanceof HTMLElement && event.target.matches("input[type=search], input[type=password]");
    const does = typing ? undefined : KEY_DOES[event.key];
    if (event.key === "Escape") {
      if (help) setHelp(false);
      else if (search) setSearch("");
      else choose(null);
      box.current?.blur();
    } else if (does !== undefined) {
      event.preventDefault();
      does({
        search: () => box.current?.focus(), move, step, zoom, flip,
        tab: setTab, help: () => setHelp(!help),
        filter: () => setFilter(filter === SHOWN.at(-1) ? null : SHOWN[filter === null ? 0 : SHOWN.indexOf(filter) + 1]!),
        hold: () => travel(at_s === null ? moment.at_s : store.recorded ? at_s : null),
        live: () => travel(store.recorded ? store.view.at_s : null),
      }, event.shiftKey);
    }
  });

  const { view } = store;
  return (
    <div class={`page ${open ? "opened" : ""} ${at_s !== null && !store.recorded ? "travelling" : ""}`}>
      <header class="top">
        <h1><img src={ICON} alt="" width="20" height="20" />agentsched</h1>
        <p class="policy">
          policy <b>{view.policy}</b>{!view.engaged && <em title="Every call is let through at once; decisions are noted, not carried out"> only watches</em>}
          {view.scope !== null && <> · tenant <b>{view.scope}</b></>}
        </p>
        <State store={store} connection={connection} recorded={store.recorded} />
        <span class="gap" />
        <input ref={box} type="search" placeholder="Search   /" aria-label="Search programs, tenants, tools, decisions" value={search} onInput={(event) => setSearch(event.currentTarget.value)} />
        <select aria-label="Order of programs" value={order} onChange={(event) => setOrder(event.currentTarget.value as Order)}>
          <option value="arrival">by arrival</option>
          <option value="kv">by KV held</option>
          <option value="waiting">longest wait first</option>
        </select>
        <button type="button" class="plain" onClick={flip} title="Dark or light (d)" aria-label="Dark or light">◐</button>
        <button type="button" class="plain" onClick={() => setHelp(true)} title="Keys and words (?)" aria-label="Help">?</button>
      </header>
      {view.notes.map((note) => <p key={note} class="notice">{note}</p>)}
      <Later version={props.version}>
        {() => <Summary store={store} moment={moment} choose={choose} filter={filter} setFilter={setFilter} />}
      </Later>
      <main>
        <Later version={props.version}>
          {() => (
            <Timeline
              store={store} programs={programs} at_s={moment.at_s} live={moment.live} span_s={span_s}
              chosen={chosen} theme={theme} choose={choose}
              empty={<Empty any={moment.programs.length > 0} filter={filter} search={search} />}
            />
          )}
        </Later>
        <Later version={props.version}>
          {() => open ? (
            <Detail store={store} standing={open} at_s={moment.at_s} live={moment.live} close={() => choose(null)} choose={choose} />
          ) : (
            <Side store={store} moment={moment} tab={tab} setTab={setTab} search={search} choose={choose} />
          )}
        </Later>
      </main>
      <Later version={props.version}>
        {() => (
          <Timebar
            store={store} at_s={at_s} now_s={store.now()} travel={travel} loading={props.loading}
            earlier={props.earlier && (() => props.earlier!(store.begin()))} leave={props.leave}
          />
        )}
      </Later>
      {help && <Help close={() => setHelp(false)} />}
    </div>
  );
}

/** What is pressed goes to the latest `press`. */
function useKeys(press: (event: KeyboardEvent) => void): void {
  const latest = useRef(press);
  latest.current = press;
  useEffect(() => {
    const listener = (event: KeyboardEvent): void => latest.current(event);
    window.addEventListener("keydown", listener);
    return () => window.removeEventListener("keydown", listener);
  }, []);
}

interface Actions {
  search(): void;
  move(by: number): void;
  step(by_s: number): void;
  zoom(by: number): void;
  flip(): void;
  tab(tab: Tab): void;
  help(): void;
  filter(): void;
  hold(): void;
  live(): void;
}

const KEY_DOES: Record<string, (actions: Actions, shift: boolean) => void> = {
  "/": (on) => on.search(),
  "?": (on) => on.help(),
  j: (on) => on.move(1),
  ArrowDown: (on) => on.move(1),
  k: (on) => on.move(-1),
  ArrowUp: (on) => on.move(-1),
  ArrowLeft: (on, shift) => on.step(shift ? -60 : -5),
  ArrowRight: (on, shift) => on.step(shift ? 60 : 5),
  "+": (on) => on.zoom(-1),
  "=": (on) => on.zoom(-1),
  "-": (on) => on.zoom(1),
  "1": (on) => on.tab(TABS[0]!),
  "2": (on) => on.tab(TABS[1]!),
  "3": (on) => on.tab(TABS[2]!),
  d: (on) => on.flip(),
  f: (on) => on.filter(),
  l: (on) => on.live(),
  " ": (on) => on.hold(),
};

const ICON =
  "data:image/svg+xml," +
  encodeURIComponent('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#14202e"/><rect x="2.5" y="3" width="8" height="2.4" rx="1" fill="#56b4e9"/><rect x="5" y="6.8" width="8.5" height="2.4" rx="1" fill="#3cc79a"/><rect x="2.5" y="10.6" width="5" height="2.4" rx="1" fill="#ff9a52"/></svg>');

/** All of what is recorded, with a little air. */
const fitting = (length_s: number): number => Math.max(10, 1.02 * length_s);

function inSight({ row, doing }: Standing, begin_s: number): boolean {
  return doing !== "ended" || row.ended_s! > begin_s;
}

function matches(standing: Standing, search: string, filter: Doing | null): boolean {
  if (filter !== null && standing.doing !== filter) return false;
  if (!search) return true;
  const { row } = standing;
  const words = `${row.program} ${row.tenant} ${row.host} ${DOING[standing.doing].name} ${standing.waits} ${standing.tools.map(toolName).join(" ")}`;
  return words.toLowerCase().includes(search.toLowerCase());
}

function sorted(programs: Standing[], order: Order): Standing[] {
  const by: Record<Order, (a: Standing, b: Standing) => number> = {
    arrival: (a, b) => over(a) - over(b) || a.row.opened_s - b.row.opened_s,
    kv: (a, b) => over(a) - over(b) || b.kept[1] - a.kept[1],
    waiting: (a, b) => waits(a) - waits(b) || a.since_s - b.since_s,
  };
  return programs.sort(by[order]);
}

const over = (standing: Standing): number => (standing.doing === "ended" ? 1 : 0);
const waits = (standing: Standing): number => (standing.doing === "gateway" ? 0 : standing.doing === "queue" ? 1 : 2 + over(standing));

function State(props: { store: Store; connection: Connection; recorded: boolean }): VNode {
  if (props.recorded) return <p class="link">recorded</p>;
  const silent_s = props.store.silence();
  if (props.connection.link === "live" && silent_s < 5) return <p class="link ok">live</p>;
  return <p class="link lost" role="status">no word from the daemon for {seconds(silent_s)}; what is shown is of then</p>;
}

function Empty(props: { any: boolean; filter: Doing | null; search: string }): VNode {
  if (props.search || props.filter !== null) return <p>No program matches. <kbd>Esc</kbd> clears the search.</p>;
  if (props.any) return <p>No program was alive in this time.</p>;
  return (
    <div class="welcome">
      <h2>No program yet</h2>
      <p>Point an agent at this daemon and it appears here. Any OpenAI or Anthropic client will do:</p>
      <pre>OPENAI_BASE_URL={location.origin}/v1</pre>
      <p>Calls of one agent run are recognised as one program. <kbd>?</kbd> explains the page.</p>
    </div>
  );
}
