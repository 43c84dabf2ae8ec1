// Three questions, answered at the top: is the cliff near, what holds the KV, who waits for what.
import type { VNode } from "preact";
import { useMemo } from "preact/hooks";
import { type EngineStanding, type Moment, type Standing, type Store } from "./store";
import type { Doing, Gauge } from "./types";
import { DOING, SHOWN, isBehind, isTooLarge, percent, seconds, short, tokens } from "./words";

export function Summary(props: { store: Store; moment: Moment; choose(program: string): void; filter: Doing | null; setFilter(doing: Doing | null): void }): VNode {
  return (
    <div class="summary">
      <Cliff store={props.store} moment={props.moment} />
      <Holders {...props} />
      <Waiting {...props} />
    </div>
  );
}

type Level = "good" | "near" | "bad" | "unknown";
interface Verdict {
  level: Level;
  title: string;
  says: string;
}

/** How near an engine is to needing more KV than it has. `full`: there is no room now for who is next. */
export function verdict(standing: EngineStanding, pace_s: number | null, full: boolean): Verdict {
  const { row, gauge } = standing;
  const [, used, , , , , , need, peak, bound] = gauge;
  const room = row.room_tokens ?? row.capacity_tokens;
  if (peak === null || need === null) {
    const says = `${tokens(used)} of ${tokens(row.capacity_tokens)} tokens are in use. What was to come is known from when somebody began to watch.`;
    return { level: "unknown", title: "Nobody asked then", says };
  }
  if (peak === 0) return { level: "good", title: "Far from the edge", says: `No program has a place, and there is room for ${tokens(room)} tokens.` };
  const limit = bound ?? room;
  const spare = `${tokens(Math.abs(limit - peak))} tokens`;
  const when = pace_s !== null && row.peak_calls !== null ? ` in about ${seconds(row.peak_calls * pace_s)}` : "";
  const foreseen = `Programs with a place are predicted to need ${tokens(peak)} at their peak${when}`;
  if (need > room)
    return { level: "bad", title: `Over the edge${thrashing(standing)}`, says: `Programs need ${tokens(need)} and there is room for ${tokens(room)}. ${foreseen}.` };
  if (bound === null && peak > room)
    return { level: "bad", title: `Heading over the edge by ${spare}`, says: `${foreseen}; there is room for ${tokens(room)}, and this policy holds nobody back.` };
  const says = `${foreseen}; ${allowed(bound, room)}.`;
  if (peak > limit) return { level: "near", title: "At the edge, so nobody new is let in", says };
  if (full) return { level: "near", title: "Full for now, since who is next does not fit", says };
  if (peak > 0.85 * limit) return { level: "near", title: `Near the edge, ${spare} to spare`, says };
  return { level: "good", title: `Far from the edge, ${spare} to spare`, says };
}

function allowed(bound: number | null, room: number): string {
  if (bound === null || Math.abs(bound - room) < 0.01 * room) return `there is room for ${tokens(room)}`;
  if (bound > room) return `${tokens(bound)} are allowed in ${tokens(room)} of room, since peaks seldom meet`;
  return `${tokens(bound)} are allowed of ${tokens(room)}, since contexts outgrew the room lately`;
}

function repeated({ recomputed }: EngineStanding): string {
  return recomputed !== null && recomputed.share >= 0.01 ? `; of the last minute's reading ${percent(recomputed.share)} was repeated` : "";
}

function thrashing({ recomputed }: EngineStanding): string {
  return recomputed !== null && recomputed.share >= 0.01 ? `: ${percent(recomputed.share)} of what is read had been read before` : "";
}

const ORDER: Level[] = ["bad", "near", "unknown", "good"];

function Cliff(props: { store: Store; moment: Moment }): VNode {
  const { moment, store } = props;
  if (store.view.scope !== null)
    return <section class="card cliff"><h2>Distance to the cliff</h2><p class="quiet">How full engines are, only admins see.</p></section>;
  if (moment.engines.length === 0)
    return <section class="card cliff"><h2>Distance to the cliff</h2><p class="quiet">No engine is attached.</p></section>;
  const full = moment.programs.some(({ doing, waits }) => doing === "gateway" && isTooLarge(waits));
  const pace_s = moment.live ? store.view.pace_s : null;
  const judged = moment.engines.map((standing) => ({ standing, verdict: verdict(standing, pace_s, full) }));
  judged.sort((a, b) => ORDER.indexOf(a.verdict.level) - ORDER.indexOf(b.verdict.level) || load(b.standing) - load(a.standing));
  const worst = judged[0]!;
  return (
    <section class={`card cliff ${worst.verdict.level}`} aria-label="Distance to the cliff">
      <h2 title="Past the cliff every return finds its KV gone, and throughput falls to a fraction">
        Distance to the cliff{judged.length > 1 && <small> · {worst.standing.row.engine}, nearest of {judged.length} engines</small>}
      </h2>
      <p class="verdict"><b>{worst.verdict.title}.</b> {worst.verdict.says}</p>
      <Ruler standing={worst.standing} />
      <Past gauges={worst.standing.row.gauges} capacity={worst.standing.row.capacity_tokens} at_s={moment.at_s} again={repeated(worst.standing)} />
    </section>
  );
}

function load({ gauge, row }: EngineStanding): number {
  return (gauge[8] ?? gauge[1]) / row.capacity_tokens;
}

function Ruler({ standing }: { standing: EngineStanding }): VNode {
  const { row, gauge } = standing;
  const [, used, , , , , , , peak, bound] = gauge;
  const most = 1.08 * Math.max(row.capacity_tokens, Math.min(peak ?? 0, 2 * row.capacity_tokens), Math.min(bound ?? 0, 2 * row.capacity_tokens));
  const at = (amount: number): string => `${Math.min(100, (100 * amount) / most).toFixed(2)}%`;
  return (
    <div class="ruler" role="img" aria-label={`${tokens(used)} in use, peak ${peak === null ? "unknown" : tokens(peak)}, capacity ${tokens(row.capacity_tokens)}`}>
      <div class="bar">
        <i class="capacity" style={{ width: at(row.capacity_tokens) }} />
        {peak !== null && <i class="peak" style={{ width: at(peak) }} />}
        <i class="used" style={{ width: at(used) }} />
        <i class="edge" style={{ left: at(row.capacity_tokens) }} />
        {bound !== null && <i class="bound" style={{ left: at(bound) }} />}
      </div>
      <div class="legend">
        <span><i class="used" />in use {tokens(used)}</span>
        {peak !== null && <span><i class="peak" />peak {tokens(peak)}</span>}
        {bound !== null && <span><i class="bound" />allowed {tokens(bound)}</span>}
        <span><i class="edge" />capacity {tokens(row.capacity_tokens)}</span>
      </div>
    </div>
  );
}

const PAST_S = 600;

/** Use and predicted peak in the last minutes. */
function Past(props: { gauges: Gauge[]; capacity: number; at_s: number; again: string }): VNode | null {
  const second = Math.floor(props.at_s);
  return useMemo(() => past(props), [props.gauges, props.capacity, second, props.again]);
}

function past(props: { gauges: Gauge[]; capacity: number; at_s: number; again: string }): VNode | null {
  const { gauges, at_s } = props;
  const seen = gauges.filter((gauge) => gauge[0] >= at_s - PAST_S && gauge[0] <= at_s);
  if (seen.length < 3) return null;
  const every = Math.ceil(seen.length / 150);
  const points = seen.filter((_, index) => index % every === 0 || index === seen.length - 1);
  const from_s = points[0]![0];
  const most = 1.1 * Math.max(props.capacity, ...points.map((gauge) => Math.min(gauge[8] ?? 0, 2 * props.capacity)));
  const x = (gauge: Gauge): string => ((300 * (gauge[0] - from_s)) / (at_s - from_s || 1)).toFixed(1);
  const y = (amount: number): string => (34 - (34 * Math.min(amount, most)) / most).toFixed(1);
  const line = (index: 1 | 8): string =>
    points.filter((gauge) => gauge[index] !== null).map((gauge) => `${x(gauge)},${y(gauge[index] as number)}`).join(" ");
  return (
    <figure class="history">
      <svg viewBox="0 0 300 34" preserveAspectRatio="none" aria-hidden="true">
        <line x1="0" x2="300" y1={y(props.capacity)} y2={y(props.capacity)} class="edge" />
        <polyline points={line(8)} class="peak" />
        <polyline points={line(1)} class="used" />
      </svg>
      <figcaption>last {seconds(at_s - from_s)}{props.again}</figcaption>
    </figure>
  );
}

const NAMED = 10;

function Holders(props: { store: Store; moment: Moment; choose(program: string): void }): VNode {
  const { moment } = props;
  const holding = moment.programs.filter((standing) => standing.kept[1] > 0 && standing.doing !== "ended");
  holding.sort((a, b) => b.kept[1] - a.kept[1]);
  const held = holding.reduce((sum, standing) => sum + standing.kept[1], 0);
  const onHost = moment.programs.reduce((sum, standing) => sum + (standing.doing === "ended" ? 0 : standing.kept[2]), 0);
  const capacity = moment.engines.reduce((sum, engine) => sum + engine.row.capacity_tokens, 0);
  const used = moment.engines.reduce((sum, engine) => sum + engine.gauge[1], 0);
  const cached = Math.max(0, used - held);
  const whole = Math.max(capacity, held, 1);
  const rest = holding.slice(NAMED).reduce((sum, standing) => sum + standing.kept[1], 0);
  return (
    <section class="card holders" aria-label="What holds the KV">
      <h2 title="KV: the keys and values that the engine keeps of what it has read; without them it reads again">
        What holds the KV <small>· {capacity > 0 ? `${tokens(used)} of ${tokens(capacity)}` : tokens(held)} tokens{onHost > 0 && `, ${tokens(onHost)} in host RAM`}</small>
      </h2>
      <div class="stack">
        {holding.slice(0, NAMED).map((standing) => (
          <button
            type="button"
            key={standing.row.program}
            class={standing.doing}
            style={{ width: `${(100 * standing.kept[1]) / whole}%` }}
            title={`${standing.row.program}: ${tokens(standing.kept[1])} tokens, ${DOING[standing.doing].name}`}
            onClick={() => props.choose(standing.row.program)}
          />
        ))}
        {rest > 0 && <i class="rest" style={{ width: `${(100 * rest) / whole}%` }} title={`${holding.length - NAMED} others: ${tokens(rest)}`} />}
        {cached > 0 && <i class="cached" style={{ width: `${(100 * cached) / whole}%` }} title={`${tokens(cached)} of programs that have ended, or shared: free to take`} />}
      </div>
      <ul class="rows">
        {holding.slice(0, 4).map((standing) => (
          <li key={standing.row.program} onClick={() => props.choose(standing.row.program)}>
            <i class={`mark ${standing.doing}`} />
            <b title={standing.row.program}>{short(standing.row.program, 22)}</b>
            <span>{tokens(standing.kept[1])}</span>
            <em>{percent(standing.kept[1] / whole)}</em>
            <small>{DOING[standing.doing].brief}</small>
          </li>
        ))}
        {holding.length > 4 && <li class="more"><i class="mark rest" /><span>{holding.length - 4} {holding.length === 5 ? "other" : "others"}: {tokens(held - holding.slice(0, 4).reduce((sum, one) => sum + one.kept[1], 0))}{cached > 64 && `, ${tokens(cached)} of ended programs`}</span></li>}
        {holding.length === 0 && <li class="more">Nothing is held.</li>}
      </ul>
      <Tenants programs={holding} whole={whole} />
    </section>
  );
}

function Tenants({ programs, whole }: { programs: Standing[]; whole: number }): VNode | null {
  const held = new Map<string, number>();
  for (const { row, kept } of programs) held.set(row.tenant, (held.get(row.tenant) ?? 0) + kept[1]);
  if (held.size < 2) return null;
  const sorted = [...held].sort((a, b) => b[1] - a[1]);
  return (
    <p class="tenants">
      By tenant: {sorted.slice(0, 5).map(([tenant, amount]) => `${tenant} ${tokens(amount)} (${percent(amount / whole)})`).join(", ")}
      {sorted.length > 5 && `, ${sorted.length - 5} more`}
    </p>
  );
}

function Waiting(props: { store: Store; moment: Moment; choose(program: string): void; filter: Doing | null; setFilter(doing: Doing | null): void }): VNode {
  const { moment, filter, setFilter } = props;
  const counts = new Map<Doing, number>();
  for (const { doing } of moment.programs) counts.set(doing, (counts.get(doing) ?? 0) + 1);
  const waiting = firstInLine(moment.programs);
  const alive = moment.programs.length - (counts.get("ended") ?? 0);
  return (
    <section class="card waiting" aria-label="Who waits for what">
      <h2>Who waits for what <small>· {alive} {alive === 1 ? "program" : "programs"}</small></h2>
      <div class="counts">
        {SHOWN.map((doing) => (
          <button
            type="button"
            key={doing}
            class={filter === doing ? "on" : ""}
            aria-pressed={filter === doing}
            title={`${DOING[doing].says}. Click: show these alone`}
            onClick={() => setFilter(filter === doing ? null : doing)}
          >
            <i class={`mark ${doing}`} />
            <b>{counts.get(doing) ?? 0}</b>
            <span>{DOING[doing].brief}</span>
          </button>
        ))}
      </div>
      <ul class="rows">
        {waiting.map((standing) => (
          <li key={standing.row.program} class="wait" onClick={() => props.choose(standing.row.program)} title={standing.waits}>
            <p>
              <i class={`mark ${standing.doing}`} /> <b>{short(standing.row.program, 24)}</b> {standing.doing === "gateway" ? "has waited" : `is queued in ${standing.row.home ?? "the engine"} for`}{" "}
              <span>{seconds(moment.at_s - standing.since_s)}</span>: {reason(standing, moment.live)}
            </p>
          </li>
        ))}
        <li class="more">{others(counts, waiting)}</li>
      </ul>
    </section>
  );
}

function reason({ doing, waits, kept }: Standing, live: boolean): string {
  const [, device, host, context] = kept;
  if (doing === "gateway") return waits || (live ? "its turn has not come" : "nobody asked why then");
  return context > device + host ? `${tokens(context - device - host)} of its context are to be read` : "others are computed first";
}

function others(counts: Map<Doing, number>, shown: Standing[]): string {
  const more = (doing: Doing): number => (counts.get(doing) ?? 0) - shown.filter((standing) => standing.doing === doing).length;
  const says = [];
  if (more("gateway") > 0) says.push(`${more("gateway")} more wait for a place`);
  if (more("queue") > 0) says.push(`${more("queue")} more are queued in engines`);
  return says.join(", ") || (shown.length === 0 ? "Nobody waits." : "");
}

/** Of who waits, two: those that hold up the others before all, and of equals who has waited longest. */
function firstInLine(programs: Standing[]): Standing[] {
  let first: Standing | undefined;
  let second: Standing | undefined;
  for (const standing of programs) {
    if (standing.doing !== "gateway" && standing.doing !== "queue") continue;
    if (first === undefined || isBefore(standing, first)) [first, second] = [standing, first];
    else if (second === undefined || isBefore(standing, second)) second = standing;
  }
  return [first, second].filter((standing) => standing !== undefined);
}

const isBefore = (one: Standing, other: Standing): boolean => rank(one) - rank(other) < 0 || (rank(one) === rank(other) && one.since_s < other.since_s);

function rank({ doing, waits }: Standing): number {
  return doing === "queue" ? 2 : isBehind(waits) ? 1 : 0;
}
