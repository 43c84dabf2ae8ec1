// Mirrors agentsched/daemon/dashboard/rows.py, which says what the fields mean.

export const FORMAT = 2;

export type Doing = "gateway" | "queue" | "prefill" | "decode" | "tool" | "agent" | "ended";

/** [start_s, doing] */
export type Span = [number, Doing];
/** [at_s, device, host, context tokens] */
export type Kept = [number, number, number, number];
/** [at_s, used, running, queued, prefilled, recomputed, evicted, need, peak, bound] */
export type Gauge = [
  number, number, number, number, number, number, number,
  number | null, number | null, number | null,
];

export interface CallRow {
  call: string;
  arrived_s: number;
  prompt_tokens: number;
  sent_s?: number;
  started_s?: number;
  first_token_s?: number;
  ended_s?: number;
  cached_tokens?: number;
  output_tokens?: number;
  recomputed_tokens?: number;
  failed?: string;
  asks?: string[];
}

export interface ToolRow {
  tool_call: string;
  tool: string;
  began_s: number;
  told?: boolean;
  command?: string;
  ended_s?: number;
  exit_status?: number;
  cpu_s?: number;
  cores?: number;
  memory_bytes?: number;
  expected_bytes?: number;
  done_fraction?: number;
}

export interface ProgramRow {
  program: string;
  tenant: string;
  opened_s: number;
  parent: string;
  host: string;
  ended_s: number | null;
  due_s: number | null;
  seat: string | null;
  home: string | null;
  calls_done: number;
  expected_calls: number;
  why: string;
  waits: string;
  spans: Span[];
  kept: Kept[];
  calls: CallRow[];
  tools: ToolRow[];
}

export interface Item {
  number: number;
  at_s: number;
  kind: string;
  text: string;
  program?: string;
  tenant?: string;
  engine?: string;
  advice?: boolean;
}

export interface EngineRow {
  engine: string;
  capacity_tokens: number;
  host_capacity_tokens: number;
  attached: boolean;
  room_tokens: number | null;
  peak_calls: number | null;
  price: number | null;
  gauges: Gauge[];
}

export interface HostRow {
  host: string;
  memory_bytes: number;
}

export interface Keep {
  past_s: number | null;
  spans: number | null;
  kept: number | null;
  calls: number | null;
  tools: number | null;
  gauges: number | null;
  items: number | null;
}

export interface Delta {
  at_s: number;
  engaged: boolean;
  pace_s: number | null;
  programs: ProgramRow[];
  gone: string[];
  items: Item[];
  engines: EngineRow[];
  hosts: HostRow[];
}

export interface View extends Omit<Delta, "gone"> {
  agentsched: string;
  policy: string;
  unix_s: number;
  since_s: number;
  keep: Keep;
  scope: string | null;
  notes: string[];
  logged: boolean;
  format: number;
}
