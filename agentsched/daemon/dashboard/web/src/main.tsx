// Starts the page: of what is recorded in it, or live from the daemon.
import { render, type VNode } from "preact";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { App, type Connection } from "./app";
import { Store } from "./store";
import { headers, key, listen, setKey } from "./stream";
import { FORMAT, type View } from "./types";
import "./style.css";

const VIEW = "agentsched/v1/view";
const EARLIER_S = 3600;
/** Times go on though nothing happens. */
const CLOCK_MS = 500;

function Live(): VNode | null {
  const store = useRef<Store | null>(null);
  const [version, setVersion] = useState(0);
  const [connection, setConnection] = useState<Connection>({ link: "connecting", says: "" });
  const [attempt, setAttempt] = useState(0);
  const [past, setPast] = useState<Store | null>(null);
  const [loading, setLoading] = useState("");
  const due = useRef(false);
  const shown_ms = useRef(0);

  const show = useCallback(() => {
    if (due.current) return;
    due.current = true;
    requestAnimationFrame(() => {
      due.current = false;
      shown_ms.current = performance.now();
      setVersion((known) => known + 1);
    });
  }, []);

  useEffect(() => {
    const stop = new AbortController();
    void listen(`${VIEW}/stream`, {
      view(view) {
        if (view.format !== FORMAT) return location.reload();
        store.current = new Store(view, false);
        show();
      },
      delta(delta) {
        store.current?.apply(delta);
        show();
      },
      link: (link, says) => setConnection({ link, says }),
    }, stop.signal);
    const clock = setInterval(() => performance.now() - shown_ms.current > CLOCK_MS && show(), CLOCK_MS / 2);
    return () => {
      stop.abort();
      clearInterval(clock);
    };
  }, [attempt]);

  const earlier = async (from_s: number): Promise<void> => {
    setLoading("replaying…");
    try {
      const answer = await fetch(`${VIEW}/recorded?from_s=${from_s - EARLIER_S}&to_s=${from_s + 60}`, { headers: headers() });
      const body = (await answer.json()) as View & { error?: { message: string } };
      if (!answer.ok) setLoading(answer.status === 404 ? "nothing earlier is on record" : (body.error?.message ?? "failed"));
      else {
        setPast(new Store(body, true));
        setLoading("");
      }
    } catch (error) {
      setLoading(String(error));
    }
  };

  if (connection.link === "locked" || connection.link === "refused")
    return <Key says={connection.says} again={() => setAttempt(attempt + 1)} />;
  const shown = past ?? store.current;
  if (shown === null) return <p class="starting">{connection.link === "lost" ? `The daemon does not answer: ${connection.says}` : "agentsched"}</p>;
  return (
    <App
      key={past ? "past" : "live"} store={shown} version={version} connection={connection} loading={loading}
      earlier={past || !shown.view.logged ? undefined : (from_s) => void earlier(from_s)} leave={past ? () => setPast(null) : undefined}
    />
  );
}

function Key(props: { says: string; again(): void }): VNode {
  return (
    <form
      class="dialog key"
      onSubmit={(event) => {
        event.preventDefault();
        setKey(new FormData(event.currentTarget).get("key") as string);
        props.again();
      }}
    >
      <h2>{key() ? "This key does not do" : "This daemon asks for a key"}</h2>
      <p>{props.says}</p>
      <p>A tenant's key shows its own programs, an admin's key everything. It is kept for this tab only.</p>
      <input type="password" name="key" placeholder="API key" aria-label="API key" autofocus autocomplete="off" />
      <button type="submit">Show</button>
    </form>
  );
}

/** A report has its view in the page: gzip, in base64. */
async function recorded(): Promise<View | null> {
  const held = document.getElementById("recorded")?.textContent;
  if (!held) return null;
  const packed = Uint8Array.from(atob(held.trim()), (char) => char.charCodeAt(0));
  const text = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  return JSON.parse(text) as View;
}

async function start(): Promise<void> {
  const root = document.getElementById("app")!;
  const view = await recorded();
  root.replaceChildren();
  const still: Connection = { link: "live", says: "" };
  render(
    view === null ? <Live /> : <App store={new Store(view, true)} version={0} connection={still} earlier={undefined} loading="" leave={undefined} />,
    root,
  );
}

void start();
