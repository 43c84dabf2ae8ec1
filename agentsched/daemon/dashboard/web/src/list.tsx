// A list of equal rows of which only those in sight exist.
import type { ComponentChildren, VNode } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";

const SPARE = 4;

interface Props<T> {
  items: T[];
  row_px: number;
  keyOf(item: T): string | number;
  render(item: T, index: number): VNode;
  /** The index that has to be in sight. */
  show?: number;
  label: string;
  class?: string;
  empty: ComponentChildren;
  /** Told which rows are in sight, and by how many pixels the first one is scrolled off. */
  onSight?(first: number, end: number, offset_px: number): void;
  role?: "listbox" | "list";
}

export function List<T>(props: Props<T>): VNode {
  const { items, row_px, keyOf, render, show, onSight } = props;
  const box = useRef<HTMLDivElement>(null);
  const [scroll, setScroll] = useState(0);
  const height = useHeight(box);
  useInSight(box, show, row_px);

  const most = Math.max(0, items.length * row_px - height);
  const at = Math.min(scroll, most);
  const first = Math.max(0, Math.floor(at / row_px) - SPARE);
  const end = Math.min(items.length, Math.ceil((at + height) / row_px) + SPARE);

  useLayoutEffect(() => onSight?.(first, end, at - first * row_px));

  return (
    <div
      class={`list ${props.class ?? ""}`}
      ref={box}
      role={props.role ?? "list"}
      aria-label={props.label}
      tabIndex={0}
      onScroll={(event) => setScroll(event.currentTarget.scrollTop)}
    >
      {items.length === 0 ? (
        <div class="empty">{props.empty}</div>
      ) : (
        <div class="all" style={{ height: `${items.length * row_px}px` }}>
          <div class="sight" style={{ transform: `translateY(${first * row_px}px)` }}>
            {items.slice(first, end).map((item, index) => (
              <div key={keyOf(item)} style={{ height: `${row_px}px` }}>
                {render(item, first + index)}
              </div>
            ))}
          </div>
        </div>
      )}
    </div>
  );
}

// Hooks apart from the list: an effect keeps all that stood around it when it was made, old items too.

function useInSight(box: { current: HTMLElement | null }, show: number | undefined, row_px: number): void {
  useLayoutEffect(() => {
    const element = box.current!;
    if (show === undefined || show < 0) return;
    const top = show * row_px;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top + row_px > element.scrollTop + element.clientHeight) element.scrollTop = top + row_px - element.clientHeight;
  }, [show, row_px]);
}

function useHeight(box: { current: HTMLElement | null }): number {
  const [height, setHeight] = useState(0);
  useLayoutEffect(() => {
    const element = box.current!;
    const observer = new ResizeObserver(() => setHeight(element.clientHeight));
    observer.observe(element);
    setHeight(element.clientHeight);
    return () => observer.disconnect();
  }, []);
  return height;
}
