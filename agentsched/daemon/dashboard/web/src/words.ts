// Amounts and states in plain words.
import type { Doing, ToolRow } from "./types";

export function tokens(count: number): string {
  if (count < 1000) return count.toFixed(0);
  if (count < 9950) return `${(count / 1000).toFixed(1)}k`;
  if (count < 999_500) return `${(count / 1000).toFixed(0)}k`;
  return `${(count / 1e6).toFixed(2)}M`;
}

export function seconds(count: number): string {
  if (count < 9.95) return `${Math.max(0, count).toFixed(1)} s`;
  if (count < 120) return `${count.toFixed(0)} s`;
  if (count < 7200) return `${(count / 60).toFixed(count < 600 ? 1 : 0)} min`;
  return `${(count / 3600).toFixed(1)} h`;
}

/** The same without tenths: it changes once a second. */
export function lasting(count: number): string {
  return count < 120 ? `${Math.max(0, Math.floor(count))} s` : seconds(count);
}

export function bytes(count: number): string {
  if (count < 1e6) return `${(count / 1e3).toFixed(0)} kB`;
  if (count < 1e9) return `${(count / 1e6).toFixed(0)} MB`;
  return `${(count / 1e9).toFixed(1)} GB`;
}

export const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;

export const DOING: Record<Doing, { brief: string; name: string; says: string }> = {
  gateway: { brief: "no place", name: "waits for a place", says: "Its call is held at the gateway until its program is let in" },
  queue: { brief: "queued", name: "queued in engine", says: "Let in; the engine has not begun its call yet" },
  prefill: { brief: "reading", name: "reads its prompt", says: "The engine computes what of the prompt it does not hold (prefill)" },
  decode: { brief: "writing", name: "writes its answer", says: "The engine produces tokens (decode)" },
  tool: { brief: "in a tool", name: "runs a tool", says: "Between two calls: a tool that its last answer asked for is not done" },
  agent: { brief: "agent", name: "agent is busy", says: "Between two calls, and no tool is known to run" },
  ended: { brief: "ended", name: "ended", says: "It will make no more calls" },
};

export const SHOWN: Doing[] = ["gateway", "queue", "prefill", "decode", "tool", "agent"];

/** The kinds of what happened, in the order of the filter; those that are off at first are many. */
export const KINDS: { kind: string; name: string; off?: boolean; kinds: string[] }[] = [
  { kind: "places", name: "places", kinds: ["admit", "pass", "pause", "reject"] },
  { kind: "waits", name: "waits", kinds: ["wait"] },
  { kind: "evictions", name: "evictions", kinds: ["evict", "demote", "restore", "broken", "preempt", "prefetch"] },
  { kind: "worth", name: "worth of KV", off: true, kinds: ["retain", "release", "terms"] },
  { kind: "order", name: "order", off: true, kinds: ["rank"] },
  { kind: "events", name: "events", kinds: ["opened", "closed", "failed", "engine", "host", "engaged"] },
];

const BEHIND = /^(.*) stands? before it in line$/;

/** Of why a program waits for a place: another one is to have one first. */
export const isBehind = (waits: string): boolean => BEHIND.test(waits);

/** Another reason: what it holds would not fit beside what the others hold now. */
export const isTooLarge = (waits: string): boolean => waits.startsWith("programs would hold ");

/** For how long and why, in few words. */
export function shortWait(waits: string, lasted: string): string {
  const other = BEHIND.exec(waits)?.[1];
  if (other !== undefined) return `waits ${lasted} behind ${short(other, 14)}`;
  return waits ? `waits ${lasted}: ${waits}` : `waits ${lasted} for a place`;
}

/** Models may ask for tools of any name. */
export function toolName(tool: ToolRow): string {
  const name = tool.command && tool.command !== tool.tool ? `${tool.tool} ${tool.command}` : tool.tool;
  return short(name.replace(/\p{C}/gu, "\u00b7"), 32);
}

/** Long names keep their beginning and their end. */
export function short(name: string, most = 26): string {
  const bare = name.startsWith("//") ? name.slice(name.indexOf("/", 2) + 1) : name;
  if (bare.length <= most) return bare;
  const head = Math.ceil(most / 2) - 1;
  return `${bare.slice(0, head)}…${bare.slice(head - most + 1)}`;
}

const two = (count: number): string => String(count).padStart(2, "0");

/** The time of day. Intl would take as long as all else that is drawn. */
export function clock(unix_s: number): string {
  const time = new Date(unix_s * 1000);
  return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
}
