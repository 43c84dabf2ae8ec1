// The programs: who, what now, and their time from left to right.
import { Component, type VNode } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { List } from "./list";
import { colours, paint, tickStep, type Lane, type Scale } from "./paint";
import { sentence } from "./sentence";
import type { Standing, Store } from "./store";
import { DOING, clock, seconds, short, tokens } from "./words";

export const ROW_PX = 34;

interface Props {
  store: Store;
  programs: Standing[];
  at_s: number;
  live: boolean;
  span_s: number;
  chosen: string | null;
  theme: string;
  choose(program: string | null): void;
  empty: VNode;
}

export function Timeline(props: Props): VNode {
  const { store, programs, at_s, span_s, chosen } = props;
  const canvas = useRef<HTMLCanvasElement>(null);
  const size = useSize(canvas, () => draw());
  const sight = useRef({ first: 0, end: 0, offset_px: 0 });
  const palette = useMemo(colours, [props.theme]);
  const [hint, setHint] = useState<{ x: number; y: number; text: string } | null>(null);
  const scale: Scale = { from_s: at_s - span_s, to_s: at_s };
  const step = tickStep(span_s, Math.max(1, Math.min(7, Math.floor((size.current.width || 500) / (props.live ? 68 : 84)))));
  const ticks: number[] = [];
  for (let back = step; back < span_s; back += step) ticks.push(at_s - back);
  const named = ticks.filter((tick) => at_s - tick > 0.14 * span_s && tick - scale.from_s > 0.05 * span_s);

  const draw = (): void => {
    const { first, end, offset_px } = sight.current;
    const lanes: Lane[] = programs.slice(first, end).map((standing, index) => ({
      standing, top_px: index * ROW_PX - offset_px, row_px: ROW_PX,
    }));
    if (canvas.current !== null) paint(canvas.current, size.current, lanes, scale, palette, ticks);
  };

  const point = (event: MouseEvent): void => {
    const lane = canvas.current!.getBoundingClientRect();
    const x = event.clientX - lane.left;
    if (x < 0 || event.clientY < lane.top) return setHint(null);
    const { first, offset_px } = sight.current;
    const standing = programs[first + Math.floor((event.clientY - lane.top + offset_px) / ROW_PX)];
    const when = scale.from_s + (x / lane.width) * span_s;
    if (standing === undefined) return setHint(null);
    const text = told(store, standing, when);
    setHint(text ? { x: event.clientX, y: event.clientY, text } : null);
  };

  const chosenAt = chosen === null ? -1 : programs.findIndex((standing) => standing.row.program === chosen);
  return (
    <section class="timeline" aria-label="Programs">
      <div class="axis" aria-hidden="true">
        <span class="who">program</span>
        <span class="what">{props.live ? "now" : "then"}</span>
        <span class="kv">KV</span>
        <span class="when">
          {named.map((tick) => (
            <i key={tick - at_s} style={{ left: `${(100 * (tick - scale.from_s)) / span_s}%` }}>
              {props.live ? `−${seconds(at_s - tick).replace(".0", "")}` : clock(store.unix(tick))}
            </i>
          ))}
          <i class="end">{props.live ? "now" : clock(store.unix(at_s))}</i>
        </span>
      </div>
      <div class="lanes" onMouseMove={point} onMouseLeave={() => setHint(null)}>
        <canvas ref={canvas} aria-hidden="true" />
        <List
          items={programs}
          row_px={ROW_PX}
          keyOf={(standing) => standing.row.program}
          label="Programs"
          role="listbox"
          empty={props.empty}
          {...(chosenAt >= 0 ? { show: chosenAt } : {})}
          onSight={(first, end, offset_px) => {
            sight.current = { first, end, offset_px };
            draw();
          }}
          render={(standing) => (
            <Row standing={standing} says={sentence(standing, at_s)} chosen={standing.row.program === chosen} choose={props.choose} />
          )}
        />
      </div>
      <p class="meaning" aria-hidden="true">
        <span>above: what it does, in the colours of <b>Who waits for what</b></span>
        <span>below: its context <i class="swatch device" />on the device <i class="swatch host" />in host memory <i class="swatch nowhere" />gone, to be read again</span>
      </p>
      {hint && <div class="hint" style={place(hint.x, hint.y)}>{hint.text}</div>}
    </section>
  );
}

function place(x: number, y: number): Record<string, string> {
  const right = x > window.innerWidth - 280;
  const down = y < window.innerHeight - 120;
  return {
    [right ? "right" : "left"]: `${right ? window.innerWidth - x + 12 : x + 14}px`,
    [down ? "top" : "bottom"]: `${down ? y + 16 : window.innerHeight - y + 12}px`,
  };
}

interface Size {
  width: number;
  height: number;
}

/** Kept, since to ask the canvas would have the browser lay out the page in mid-change. */
function useSize(canvas: { current: HTMLCanvasElement | null }, changed: () => void): { current: Size } {
  const size = useRef<Size>({ width: 0, height: 0 });
  const latest = useRef(changed);
  latest.current = changed;
  useEffect(() => {
    const observer = new ResizeObserver(([seen]) => {
      size.current = { width: seen!.contentRect.width, height: seen!.contentRect.height };
      latest.current();
    });
    observer.observe(canvas.current!);
    return () => observer.disconnect();
  }, []);
  return size;
}

interface RowProps {
  standing: Standing;
  says: string;
  chosen: boolean;
  /** Always the same, or rows that are left alone would keep what it knew when they were made. */
  choose(program: string | null): void;
}

/** Made anew only if it differs. */
class Row extends Component<RowProps> {
  override shouldComponentUpdate(next: RowProps): boolean {
    const { standing, says, chosen } = this.props;
    return next.standing !== standing || next.says !== says || next.chosen !== chosen;
  }

  override render({ standing, says, chosen, choose }: RowProps): VNode {
    const { row, doing, kept } = standing;
    const [, device, host, context] = kept;
    const nowhere = Math.max(0, context - device - host);
    const held = device + host > 0 || doing !== "ended" ? tokens(device) : "";
    return (
      <div
        class={`program ${chosen ? "chosen" : ""} ${doing === "ended" ? "over" : ""}`}
        role="option"
        aria-selected={chosen}
        onClick={() => choose(chosen ? null : row.program)}
      >
        <span class="who" title={`${row.program}${row.tenant ? ` of ${row.tenant}` : ""}`}>
          <b>{short(row.program)}</b>
          <small>{row.tenant !== "default" ? row.tenant : ""}</small>
        </span>
        <span class="what" title={standing.waits || says}>
          <i class={`mark ${doing}`} />
          <span>{says}</span>
        </span>
        <span class="kv" title={`${tokens(device)} on the device, ${tokens(host)} in host memory, ${tokens(nowhere)} of its context nowhere`}>
          {held}
          {host > 0 && <small>+{tokens(host)} host</small>}
          {host === 0 && nowhere > 64 && doing !== "ended" && <small>of {tokens(context)}</small>}
        </span>
        <span class="when" />
      </div>
    );
  }
}

function told(store: Store, standing: Standing, when: number): string {
  const { row } = standing;
  if (when < row.opened_s || (row.ended_s !== null && when > row.ended_s)) return "";
  const spans = row.spans;
  let at = spans.length - 1;
  while (at > 0 && spans[at]![0] > when) at--;
  const span = spans[at];
  if (span === undefined || span[0] > when) return "";
  const until = spans[at + 1]?.[0] ?? Math.min(row.ended_s ?? store.now(), store.now());
  let sample = row.kept.length - 1;
  while (sample > 0 && row.kept[sample]![0] > when) sample--;
  const kept = row.kept[sample];
  const where = kept
    ? `\nKV: ${tokens(kept[1])} device, ${tokens(kept[2])} host, ${tokens(Math.max(0, kept[3] - kept[1] - kept[2]))} nowhere`
    : "";
  return `${clock(store.unix(when))}  ${DOING[span[1]].name}, ${seconds(until - span[0])} in all${where}`;
}
