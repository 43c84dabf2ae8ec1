// What a program does, in one line.
import type { Standing } from "./store";
import { DOING, lasting, shortWait, tokens, toolName } from "./words";

export function sentence(standing: Standing, at_s: number): string {
  const { row, doing, tools } = standing;
  const lasted = lasting(at_s - standing.since_s);
  const call = row.calls.at(-1);
  switch (doing) {
    case "gateway":
      return shortWait(standing.waits, lasted);
    case "queue":
      return `queued in ${row.home ?? "the engine"} for ${lasted}`;
    case "prefill": {
      const left = call ? call.prompt_tokens - (call.cached_tokens ?? 0) : 0;
      return call && left > 0 ? `reads ${tokens(left)} new of ${tokens(call.prompt_tokens)} prompt tokens, ${lasted}` : `reads its prompt, ${lasted}`;
    }
    case "decode":
      return `writes its answer, ${lasted}`;
    case "tool": {
      const tool = tools[0];
      if (tool === undefined) return `runs a tool, ${lasted}`;
      const done = tool.done_fraction === undefined || tool.ended_s !== undefined ? "" : `, ${(100 * tool.done_fraction).toFixed(0)} % done`;
      const more = tools.length > 1 ? ` and ${tools.length - 1} more` : "";
      return `runs ${toolName(tool)}${more} for ${lasting(at_s - tool.began_s)}${done}`;
    }
    case "ended":
      return `ended ${lasted} ago`;
    default:
      return `${DOING[doing].name}, ${lasted}`;
  }
}
