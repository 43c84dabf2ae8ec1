// Server-sent events by fetch: EventSource cannot send a key. Goes on where it was after a loss.
import type { Delta, View } from "./types";

export type Link = "connecting" | "live" | "lost" | "locked" | "refused";

interface Heard {
  view(view: View): void;
  delta(delta: Delta): void;
  link(link: Link, says: string): void;
}

const KEY = "agentsched.key";
const LONGEST_WAIT_MS = 10_000;
const SILENT_MS = 25_000;

export function key(): string {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setKey(value: string): void {
  sessionStorage.setItem(KEY, value);
}

export function headers(): Record<string, string> {
  return key() ? { Authorization: `Bearer ${key()}` } : {};
}

/** Calls back until `signal` says stop. */
export async function listen(path: string, heard: Heard, signal: AbortSignal): Promise<void> {
  let lastId = "";
  let wait_ms = 250;
  while (!signal.aborted) {
    heard.link("connecting", "");
    const silence = new AbortController();
    try {
      const sent = { ...headers(), ...(lastId ? { "Last-Event-ID": lastId } : {}) };
      const answer = await fetch(path, { headers: sent, cache: "no-store", signal: AbortSignal.any([signal, silence.signal]) });
      if (answer.status === 401 || answer.status === 403) {
        heard.link(answer.status === 401 ? "locked" : "refused", await failure(answer));
        return;
      }
      if (!answer.ok || answer.body === null) throw new Error(await failure(answer));
      heard.link("live", "");
      wait_ms = 250;
      for await (const [id, event, data] of messages(answer.body, silence)) {
        if (event === "view") heard.view(JSON.parse(data) as View);
        else if (event === "delta") heard.delta(JSON.parse(data) as Delta);
        lastId = id;
      }
    } catch (error) {
      if (signal.aborted) return;
      heard.link("lost", error instanceof Error ? error.message : String(error));
    }
    await new Promise((done) => setTimeout(done, wait_ms));
    wait_ms = Math.min(LONGEST_WAIT_MS, 2 * wait_ms);
  }
}

async function failure(answer: Response): Promise<string> {
  try {
    const body = (await answer.json()) as { error?: { message?: string } };
    return body.error?.message ?? answer.statusText;
  } catch {
    return `${answer.status} ${answer.statusText}`;
  }
}

async function* messages(body: ReadableStream<Uint8Array>, silence: AbortController): AsyncGenerator<[string, string, string]> {
  const reader = body.pipeThrough(new TextDecoderStream() as unknown as TransformStream<Uint8Array, string>).getReader();
  let rest = "";
  for (;;) {
    const timer = setTimeout(() => silence.abort(new Error("the daemon is silent")), SILENT_MS);
    const { done, value } = await reader.read();
    clearTimeout(timer);
    if (done) return;
    rest += value;
    let end: number;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const message = rest.slice(0, end);
      rest = rest.slice(end + 2);
      let id = "";
      let event = "";
      let data = "";
      for (const line of message.split("\n")) {
        if (line.startsWith("id: ")) id = line.slice(4);
        else if (line.startsWith("event: ")) event = line.slice(7);
        else if (line.startsWith("data: ")) data += line.slice(6);
      }
      if (event) yield [id, event, data];
    }
  }
}
