// Builds ../static from src, and notes there of which sources it is: a test compares that without node.
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const out = "../static";
mkdirSync(out, { recursive: true });
await build({
  entryPoints: { dashboard: "src/main.tsx" },
  outdir: out,
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
});
copyFileSync("src/index.html", `${out}/index.html`);
copyFileSync("src/icon.svg", `${out}/icon.svg`);

const hash = createHash("sha256");
const sources = ["build.mjs", "package-lock.json", "package.json", "tsconfig.json"];
for (const name of [...sources, ...readdirSync("src").map((file) => `src/${file}`)].sort()) {
  hash.update(`${name}\0`).update(readFileSync(name)).update("\0");
}
writeFileSync(`${out}/SOURCES.sha256`, `${hash.digest("hex")}\n`);
