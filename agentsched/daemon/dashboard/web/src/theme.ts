// Dark or light: as the system is, until somebody says otherwise. The root always says which of them it is.
export type Theme = "dark" | "light";

const KEPT = "agentsched.theme";
const system = matchMedia("(prefers-color-scheme: dark)");

export function theme(): Theme {
  return document.documentElement.dataset["theme"] as Theme;
}

export function setTheme(to: Theme): void {
  document.documentElement.dataset["theme"] = to;
}

/** For the next visits, too. */
export function keepTheme(to: Theme): void {
  setTheme(to);
  try {
    localStorage.setItem(KEPT, to);
  } catch {
    // a page from a file may have no storage
  }
}

/** Called back when the system changes and nobody has said otherwise; returns what ends that. */
export function followSystem(changed: (to: Theme) => void): () => void {
  const follow = (): void => {
    if (kept() !== null) return;
    setTheme(ofSystem());
    changed(ofSystem());
  };
  system.addEventListener("change", follow);
  return () => system.removeEventListener("change", follow);
}

const ofSystem = (): Theme => (system.matches ? "dark" : "light");

function kept(): Theme | null {
  try {
    const said = localStorage.getItem(KEPT);
    return said === "dark" || said === "light" ? said : null;
  } catch {
    return null;
  }
}

setTheme(kept() ?? ofSystem());
