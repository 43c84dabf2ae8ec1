// Dark or light: as the system is, until somebody says otherwise. The root always says which of them it is.
import { useEffect, useState } from "preact/hooks";

export type Theme = "dark" | "light";

const KEPT = "agentsched.theme";
const system = matchMedia("(prefers-color-scheme: dark)");

/** What it is, and what makes it the other one, for the next visits, too. */
export function useTheme(): [Theme, () => void] {
  const [theme, set] = useState(shown);
  useEffect(() => {
    const follow = (): void => set(shown());
    follow();
    system.addEventListener("change", follow);
    return () => system.removeEventListener("change", follow);
  }, []);
  return [theme, () => set(keep(show(theme === "dark" ? "light" : "dark")))];
}

const shown = (): Theme => document.documentElement.dataset["theme"] as Theme;

function show(theme: Theme): Theme {
  document.documentElement.dataset["theme"] = theme;
  return theme;
}

function keep(theme: Theme): Theme {
  try {
    localStorage.setItem(KEPT, theme);
  } catch {
    // a page from a file may have no storage
  }
  return theme;
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

show(kept() ?? ofSystem());
system.addEventListener("change", () => show(kept() ?? ofSystem()));
