// Parts of the page take turns: as time passes each is drawn in a frame of its own, so that none has all the work.
import type { VNode } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";

interface Props {
  /** Of what is shown. What somebody does changes none of it, and shows at once. */
  version: number;
  children(): VNode;
}

export function Later({ version, children }: Props): VNode {
  const shown = useRef<{ version: number; part: VNode } | null>(null);
  const seen = useRef(version);
  const [, turn] = useState(0);
  // Drawn again with nothing new: somebody did something, or it is this part's turn.
  if (shown.current === null || seen.current === version) shown.current = { version, part: children() };
  seen.current = version;
  const late = shown.current.version !== version;
  useLayoutEffect(() => {
    if (late) return inTurn(() => turn((known) => known + 1));
    return undefined;
  }, [late]);
  return shown.current.part;
}

const waiting: (() => void)[] = [];

/** One of those that wait a frame; returns what withdraws it. */
function inTurn(does: () => void): () => void {
  if (waiting.push(does) === 1) requestAnimationFrame(next);
  return () => {
    const at = waiting.indexOf(does);
    if (at >= 0) waiting.splice(at, 1);
  };
}

function next(): void {
  waiting.shift()?.();
  if (waiting.length > 0) requestAnimationFrame(next);
}
