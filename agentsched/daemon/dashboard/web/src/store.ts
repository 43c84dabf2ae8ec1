// What is known, and how it stood at any moment of it. Live or recorded, the page shows `at(t)`.
import type { CallRow, Delta, Doing, EngineRow, Gauge, Item, Kept, ProgramRow, Span, ToolRow, View } from "./types";

/** Lists may be longer than they should by this share, so that they are not moved for each that is new. */
const SPARE = 1.1;

/** One program as it stood at a moment. */
export interface Standing {
  row: ProgramRow;
  doing: Doing;
  since_s: number;
  kept: Kept;
  tools: ToolRow[];
  waits: string;
}

export interface EngineStanding {
  row: EngineRow;
  gauge: Gauge;
  /** Of the prompt tokens read in the last minute, those that had been held once. */
  recomputed: { share: number; tokens: number } | null;
}

export interface Moment {
  at_s: number;
  live: boolean;
  programs: Standing[];
  engines: EngineStanding[];
}

export class Store {
  view: View;
  readonly programs = new Map<string, ProgramRow>();
  /** As they stand now: the same until something is heard of them. */
  private readonly standings = new Map<string, Standing>();
  private heardAt_ms: number;
  private readonly unixOrigin_s: number;

  constructor(view: View, readonly recorded: boolean) {
    this.view = view;
    this.heardAt_ms = performance.now();
    this.unixOrigin_s = view.unix_s - view.at_s;
    for (const row of view.programs) this.programs.set(row.program, row);
    view.programs = []; // or those that are gone would be kept
  }

  /** Now, on the daemon's clock; the end of what is recorded. */
  now(): number {
    if (this.recorded) return this.view.at_s;
    return this.view.at_s + Math.min(2, (performance.now() - this.heardAt_ms) / 1000);
  }

  /** Seconds since anything was heard. */
  silence(): number {
    return this.recorded ? 0 : (performance.now() - this.heardAt_ms) / 1000;
  }

  unix(at_s: number): number {
    return this.unixOrigin_s + at_s;
  }

  /** Where what is known begins. */
  begin(): number {
    const { since_s, at_s, keep } = this.view;
    return Math.max(since_s, at_s - (keep.past_s ?? Infinity));
  }

  apply(delta: Delta): void {
    const view = this.view;
    this.heardAt_ms = performance.now();
    view.at_s = delta.at_s;
    view.engaged = delta.engaged;
    view.pace_s = delta.pace_s;
    view.hosts = delta.hosts;
    for (const news of delta.programs) this.patch(news);
    for (const name of delta.gone) {
      this.programs.delete(name);
      this.standings.delete(name);
    }
    for (const item of delta.items) if (!replace(view.items, item)) view.items.push(item);
    cut(view.items, view.keep.items);
    for (const news of delta.engines) this.patchEngine(news);
  }

  /** What was decided about it, until then. */
  itemsOf(program: string, until_s: number): Item[] {
    return this.view.items.filter((item) => item.program === program && item.at_s <= until_s);
  }

  /** What each program was last said to wait for, until then. */
  private waitsUntil(when: number): Map<string, Item> {
    const said = new Map<string, Item>();
    for (const item of this.view.items)
      if (item.kind === "wait" && item.program && item.at_s <= when) said.set(item.program, item);
    return said;
  }

  private patch(news: ProgramRow): void {
    this.standings.delete(news.program);
    const known = this.programs.get(news.program);
    if (known === undefined || known.opened_s !== news.opened_s) {
      this.programs.set(news.program, news);
      return;
    }
    const { spans, kept, calls, tools } = known;
    const { keep } = this.view;
    extend(spans, news.spans, keep.spans, this.begin());
    extend(kept, news.kept, keep.kept, this.begin());
    upsert(calls, news.calls, (call) => call.call, keep.calls);
    upsert(tools, news.tools, (tool) => tool.tool_call, keep.tools);
    Object.assign(known, news, { spans, kept, calls, tools });
  }

  private patchEngine(news: EngineRow): void {
    const known = this.view.engines.find((engine) => engine.engine === news.engine);
    if (known === undefined) {
      this.view.engines.push(news);
      return;
    }
    const gauges = known.gauges;
    extend(gauges, news.gauges, this.view.keep.gauges, this.begin());
    Object.assign(known, news, { gauges });
  }

  /** How everything stood at `at_s`; null: now. */
  at(at_s: number | null): Moment {
    const when = at_s ?? this.now();
    const live = at_s === null;
    const programs: Standing[] = [];
    const asItIs = live || (this.recorded && when >= this.view.at_s);
    const said = asItIs ? null : this.waitsUntil(when);
    for (const row of this.programs.values()) {
      if (live) programs.push(this.standingNow(row, when));
      else if (row.opened_s <= when) programs.push(this.standing(row, when, live, said));
    }
    const engines: EngineStanding[] = [];
    for (const row of this.view.engines) {
      const gauge = last(row.gauges, when);
      if (gauge === undefined || (live && !row.attached)) continue;
      engines.push({ row, gauge, recomputed: recomputed(row.gauges, gauge) });
    }
    return { at_s: when, live, programs, engines };
  }

  private standingNow(row: ProgramRow, now_s: number): Standing {
    let known = this.standings.get(row.program);
    if (known === undefined) {
      known = this.standing(row, now_s, true, null);
      this.standings.set(row.program, known);
    }
    return known;
  }

  private standing(row: ProgramRow, when: number, live: boolean, said: Map<string, Item> | null): Standing {
    const span = last(row.spans, when) ?? row.spans[0];
    const ended = row.ended_s !== null && row.ended_s <= when;
    const doing = ended ? "ended" : (span?.[1] ?? "agent");
    const tools = ended ? [] : runningAt(row.tools, when, live ? 24 : row.tools.length);
    let waits = "";
    if (doing === "gateway") {
      const item = said?.get(row.program);
      if (said === null) waits = row.waits;
      else if (item !== undefined && item.at_s >= (span?.[0] ?? 0) - 1)
        waits = item.text.replace(/^waits: /, "").replace(/^.* stands before it in line$/, "others stand before it in line");
    }
    const kept: Kept = ended ? [when, 0, 0, 0] : (last(row.kept, when) ?? [when, 0, 0, 0]);
    return { row, doing, since_s: ended ? row.ended_s! : (span?.[0] ?? row.opened_s), kept, tools, waits };
  }
}

/** Of the latest `most`, those that run then. */
function runningAt(tools: ToolRow[], when: number, most: number): ToolRow[] {
  const found: ToolRow[] = [];
  for (let at = Math.max(0, tools.length - most); at < tools.length; at++) {
    const tool = tools[at]!;
    if (tool.began_s <= when && (tool.ended_s === undefined || tool.ended_s > when)) found.push(tool);
  }
  return found;
}

/** The last element that begins at or before `when`. */
export function last<T extends Span | Kept | Gauge>(list: T[], when: number): T | undefined {
  return list[indexAt(list, when)];
}

export function indexAt(list: (Span | Kept | Gauge)[], when: number): number {
  let low = 0;
  let high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle]![0] <= when) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Put it in the place of one that it tells more of. */
function replace(list: Item[], item: Item): boolean {
  for (let at = list.length - 1; at >= 0 && list[at]!.number >= item.number; at--) {
    if (list[at]!.number === item.number) {
      list[at] = item;
      return true;
    }
  }
  return false;
}

function recomputed(gauges: Gauge[], now: Gauge): EngineStanding["recomputed"] {
  const before = gauges[Math.max(0, indexAt(gauges, now[0] - 60))];
  if (before === undefined || now[4] - before[4] < 1) return null;
  const tokens = now[5] - before[5];
  return { tokens, share: tokens / (now[4] - before[4]) };
}

function extend<T extends Span | Kept | Gauge>(list: T[], news: T[], most: number | null, begin_s: number): void {
  for (const one of news) {
    if (list.at(-1)?.[0] === one[0]) list[list.length - 1] = one;
    else list.push(one);
  }
  cut(list, most);
  const over = indexAt(list, begin_s);
  if (over > 0 && list.length > SPARE * (list.length - over)) list.splice(0, over);
}

function upsert<T extends CallRow | ToolRow>(list: T[], news: T[], key: (one: T) => string, most: number | null): void {
  for (const one of news) {
    let at = list.length - 1;
    while (at >= 0 && key(list[at]!) !== key(one)) at--;
    if (at >= 0) list[at] = one;
    else list.push(one);
  }
  cut(list, most);
}

/** Only the latest `most`. */
function cut(list: unknown[], most: number | null): void {
  if (most !== null && list.length > SPARE * most) list.splice(0, list.length - most);
}
