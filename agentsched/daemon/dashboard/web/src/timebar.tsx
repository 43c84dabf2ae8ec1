// Time travel: a slider over what is known.
import type { VNode } from "preact";
import { useMemo } from "preact/hooks";
import type { Store } from "./store";
import { clock, seconds } from "./words";

interface Props {
  store: Store;
  at_s: number | null;
  now_s: number;
  travel(at_s: number | null): void;
  /** What the event log has of earlier; undefined where there is none. */
  earlier: (() => void) | undefined;
  loading: string;
  leave: (() => void) | undefined;
}

const BINS = 160;

export function Timebar(props: Props): VNode {
  const { store, at_s, now_s, travel } = props;
  const begin = store.begin();
  const length = Math.max(1, now_s - begin);
  const when = at_s ?? now_s;
  const second = Math.floor(now_s);
  const density = useMemo(
    () => (
      <svg viewBox={`0 0 ${BINS} 20`} preserveAspectRatio="none" aria-hidden="true">
        <path d={bins(store, begin, begin + length).map((height, bin) => (height > 0 ? `M${bin} 20v-${height.toFixed(1)}h.8v${height.toFixed(1)}z` : "")).join("")} />
      </svg>
    ),
    [store, second],
  );
  return (
    <footer class="timebar" aria-label="Time travel">
      {props.leave !== undefined ? (
        <button type="button" class="live" onClick={props.leave}>back to live</button>
      ) : store.recorded ? (
        <span class="live recorded">recorded</span>
      ) : (
        <button type="button" class={`live ${at_s === null ? "on" : ""}`} onClick={() => travel(at_s === null ? now_s : null)} title="Space">
          {at_s === null ? "● live" : "go live"}
        </button>
      )}
      {props.earlier && (
        <button type="button" class="plain" onClick={props.earlier} disabled={props.loading !== ""} title="Replay the hour before from the event log">
          {props.loading || "◂ earlier, from the log"}
        </button>
      )}
      <span class="from">{clock(store.unix(begin))}</span>
      <div class="slide">
        {density}
        <input
          type="range"
          min={0}
          max={1000}
          value={Math.round((1000 * (when - begin)) / length)}
          aria-label="Moment that is shown"
          aria-valuetext={clock(store.unix(when))}
          onInput={(event) => {
            const value = Number(event.currentTarget.value);
            travel(value >= 1000 && !store.recorded ? null : begin + (length * value) / 1000);
          }}
        />
      </div>
      <span class="then">
        {clock(store.unix(when))}
        {at_s !== null && !store.recorded && <small> {seconds(now_s - at_s)} ago</small>}
      </span>
    </footer>
  );
}

/** How much was decided when, as heights. */
function bins(store: Store, from_s: number, to_s: number): number[] {
  const counts = new Array<number>(BINS).fill(0);
  for (const item of store.view.items) {
    if (item.kind === "rank" || item.kind === "retain") continue;
    const bin = Math.floor((BINS * (item.at_s - from_s)) / (to_s - from_s));
    if (bin >= 0 && bin < BINS) counts[bin]!++;
  }
  const most = Math.max(1, ...counts);
  return counts.map((count) => (count === 0 ? 0 : 2 + (18 * count) / most));
}
