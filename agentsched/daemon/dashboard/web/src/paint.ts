// Draws the timelines of the programs in sight on one canvas.
import { indexAt, type Standing } from "./store";
import type { Doing } from "./types";

export interface Colours {
  doing: Record<Doing, string>;
  device: string;
  host: string;
  nowhere: string;
  grid: string;
  chosen: string;
  paper: string;
}

const DOINGS: Doing[] = ["gateway", "queue", "prefill", "decode", "tool", "agent", "ended"];

export function colours(): Colours {
  const style = getComputedStyle(document.documentElement);
  const get = (name: string): string => style.getPropertyValue(`--${name}`).trim();
  const doing = Object.fromEntries(DOINGS.map((name) => [name, get(name)])) as Record<Doing, string>;
  return {
    doing, device: get("device"), host: get("kv-host"), nowhere: get("nowhere"),
    grid: get("grid"), chosen: get("chosen"), paper: get("paper"),
  };
}

/** What waits is thin, what a tool does higher, what computes fills the row: so it is told without colours. */
const HEIGHT: Record<Doing, number> = {
  gateway: 5, queue: 8, prefill: 13, decode: 13, tool: 9, agent: 3, ended: 0,
};

export interface Scale {
  from_s: number;
  to_s: number;
}

export interface Lane {
  standing: Standing;
  top_px: number;
  row_px: number;
}

export function paint(canvas: HTMLCanvasElement, size: { width: number; height: number }, lanes: Lane[], scale: Scale, colour: Colours, ticks: number[]): void {
  const ratio = window.devicePixelRatio || 1;
  const { width, height } = size;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  if (pen === null || width === 0) return;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  // Whole pixels of the device: neighbours leave no seam.
  const px = (at_s: number): number =>
    Math.round(((at_s - scale.from_s) / (scale.to_s - scale.from_s)) * width * ratio) / ratio;
  pen.fillStyle = colour.grid;
  for (const tick of ticks) pen.fillRect(Math.round(px(tick)), 0, 1, height);
  for (const lane of lanes) {
    activity(pen, lane, scale, px, colour);
    placement(pen, lane, scale, px, colour);
  }
}

function activity(pen: CanvasRenderingContext2D, lane: Lane, scale: Scale, px: (at_s: number) => number, colour: Colours): void {
  const { spans, ended_s } = lane.standing.row;
  const middle = lane.top_px + 11;
  const end_s = Math.min(scale.to_s, ended_s ?? scale.to_s);
  for (let at = Math.max(0, indexAt(spans, scale.from_s)); at < spans.length; at++) {
    const [start_s, doing] = spans[at]!;
    if (start_s >= end_s) break;
    const stop_s = Math.min(end_s, spans[at + 1]?.[0] ?? end_s);
    const left = px(Math.max(scale.from_s, start_s));
    const high = HEIGHT[doing];
    pen.fillStyle = colour.doing[doing];
    pen.fillRect(left, middle - high / 2, Math.max(1, px(stop_s) - left), high);
  }
  if (ended_s !== null && ended_s <= scale.to_s && ended_s >= scale.from_s) {
    pen.fillStyle = colour.doing.ended;
    pen.fillRect(px(ended_s), middle - 7, 2, 14);
  }
}

const KV_PX = 5;

/** Below: the context in proportion, on the device, in host memory, and nowhere. */
function placement(pen: CanvasRenderingContext2D, lane: Lane, scale: Scale, px: (at_s: number) => number, colour: Colours): void {
  const { kept, ended_s } = lane.standing.row;
  const base = lane.top_px + lane.row_px - 4;
  const end_s = Math.min(scale.to_s, ended_s ?? scale.to_s);
  for (let at = Math.max(0, indexAt(kept, scale.from_s)); at < kept.length; at++) {
    const [start_s, device, host, context] = kept[at]!;
    if (start_s >= end_s) break;
    const left = px(Math.max(scale.from_s, start_s));
    const width = px(Math.min(end_s, kept[at + 1]?.[0] ?? end_s)) - left;
    const whole = Math.max(context, device + host);
    if (whole === 0 || width <= 0) continue;
    const onDevice = (KV_PX * device) / whole;
    const onHost = (KV_PX * host) / whole;
    pen.fillStyle = colour.nowhere;
    pen.fillRect(left, base - KV_PX, width, KV_PX);
    pen.fillStyle = colour.host;
    pen.fillRect(left, base - onDevice - onHost, width, onHost);
    pen.fillStyle = colour.device;
    pen.fillRect(left, base - onDevice, width, onDevice);
  }
}

const STEPS = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400];

/** Seconds between ticks so that no more than `most` of them are seen. */
export function tickStep(span_s: number, most: number): number {
  return STEPS.find((step) => span_s / step <= most) ?? 86400;
}
