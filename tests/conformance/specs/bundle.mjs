// Makes one script of pusher-js's own integration specs, from its npm package, that talks to a server of ours. What is
// changed in them stands here: the address of their helper, the app's key and the addresses of the servers.
import { existsSync, realpathSync, statSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

// The packages are linked from a cache.
const PACKAGE = realpathSync(fileURLToPath(new URL("../node_modules/pusher-js/", import.meta.url)));
const HELPERS = join(PACKAGE, "spec/javascripts/helpers");
const SPECS = join(PACKAGE, "spec/javascripts/integration/core/pusher_spec");

/** What a name means in each runtime, as the package's own webpack configuration has it. */
const ALIASES = {
  node: {
    integration: join(HELPERS, "node/integration.js"),
    pusher_integration: join(PACKAGE, "src/core/pusher.js"),
    "dom/dependencies": join(HELPERS, "node/mock-dom-dependencies.ts"),
    "dom/dependency_loader": join(HELPERS, "node/mock-dom-dependencies.ts"),
  },
  web: {
    integration: join(HELPERS, "web/integration.js"),
    pusher_integration: join(HELPERS, "pusher_integration.js"),
  },
};

/** By file: a text, what it becomes, and how often it must be there, so that another release is not tested by half. */
function substitutions({ helper, key, websocket, sockjs }) {
  const hosts = `wsHost: ${JSON.stringify(websocket.host)}, wsPort: ${websocket.port}, `
    + `httpHost: ${JSON.stringify(sockjs.host)}, httpPort: ${sockjs.port}`;
  const url = [['"http://localhost:3000"', JSON.stringify(helper), 1]];
  return {
    "spec/javascripts/helpers/node/integration.js": url,
    "spec/javascripts/helpers/web/integration.js": url,
    "spec/javascripts/integration/core/pusher_spec/test_builder.js": [
      ['"c49a449b916bb4246729"', JSON.stringify(key), 2],
      ['cluster: "mt1"', `cluster: "mt1", ${hosts}`, 2],
    ],
  };
}

/** The specs of one transport for `node` or `web`, as the text of one script. */
export async function bundle(runtime, transport, servers) {
  const entry = `require("core/pusher");\n`
    + `require(${JSON.stringify(join(SPECS, "index.js"))})([{ transport: ${JSON.stringify(transport)}, forceTLS: false }]);\n`;
  const substituted = new Set();
  const { outputFiles } = await build({
    stdin: { contents: entry, resolveDir: PACKAGE, loader: "js" },
    bundle: true,
    write: false,
    format: runtime === "node" ? "cjs" : "iife",
    platform: runtime === "node" ? "node" : "browser",
    logLevel: "error",
    define: {
      VERSION: '"8.6.0"',
      // From here hidden frames load the SockJS client.
      CDN_HTTP: JSON.stringify(servers.helper),
      CDN_HTTPS: '""',
      DEPENDENCY_SUFFIX: '""',
      RUNTIME: JSON.stringify(runtime),
      ...(runtime === "web" && { global: "window" }),
    },
    plugins: [resolve(runtime), substitute(substitutions(servers), substituted)],
  });
  if (substituted.size !== 2) throw new Error(`only ${[...substituted]} met their substitutions`);
  return outputFiles[0].text;
}

/** The package's sources name each other from several roots, and mean TypeScript where both are there. */
function resolve(runtime) {
  const roots = ["src", "src/runtimes", `src/runtimes/${runtime}`].map((root) => join(PACKAGE, root));
  const file = (base) => ["", ".ts", ".js", "/index.ts"].map((end) => base + end).find(isFile);
  return {
    name: "resolve",
    setup({ onResolve, onLoad }) {
      onResolve({ filter: /^[a-z.]/ }, ({ path, resolveDir }) => {
        if (!`${resolveDir}/`.startsWith(PACKAGE)) return undefined;
        if (path === "testenv") return { path, namespace: "testenv" };
        const from = path.startsWith(".") ? [resolveDir] : roots;
        const found = ALIASES[runtime][path] ?? from.map((root) => file(join(root, path))).find(Boolean);
        return found && { path: found };
      });
      onLoad({ filter: /.*/, namespace: "testenv" }, () => ({ contents: `module.exports = ${JSON.stringify(runtime)}` }));
    },
  };
}

function isFile(path) {
  return existsSync(path) && statSync(path).isFile();
}

function substitute(files, done) {
  return {
    name: "substitute",
    setup({ onLoad }) {
      onLoad({ filter: /[\\/]spec[\\/].*\.js$/ }, async ({ path }) => {
        const name = relative(PACKAGE, path);
        let contents = await readFile(path, "utf8");
        for (const [from, to, times] of files[name] ?? []) {
          const found = contents.split(from).length - 1;
          if (found !== times) throw new Error(`${name} has ${from} ${found} times, not ${times}`);
          contents = contents.replaceAll(from, () => to);
          done.add(name);
        }
        return { contents, loader: "js" };
      });
    },
  };
}
