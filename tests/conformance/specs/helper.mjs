// What the specs of pusher-js ask of a backend: signatures, and events published through the server SDK. Also serves
// the page in which they run in a browser, and the SockJS client of the release, as Pusher's own site would.
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";

import Pusher from "pusher";

const SOCKJS = new URL("../node_modules/pusher-js/dist/web/sockjs.js", import.meta.url);

/** Where the SockJS client stands, as pusher-js names it below the root of its scripts. */
export const SOCKJS_PATH = "/8.6.0/sockjs.js";

/** Answers in the forms of the package's own helper; `publisher` has host, port, key and secret of the app. */
export async function startHelper() {
  const state = { publisher: undefined, failures: [] };
  const server = createServer((request, response) => {
    answer(state, request, response).catch((error) => {
      state.failures.push(String(error));
      response.writeHead(500).end();
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    /** What went wrong in the helper itself: a spec that waits for nothing to arrive would not notice. */
    failures: state.failures,
    publishWith: (options) => (state.publisher = new Pusher({ appId: "1001", useTLS: false, ...options })),
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}

async function answer({ publisher }, request, response) {
  const { pathname, searchParams } = new URL(request.url, "http://helper");
  response.setHeader("Access-Control-Allow-Origin", "*");
  response.setHeader("Access-Control-Allow-Headers", "content-type");
  if (request.method === "OPTIONS") return response.end();
  if (pathname === "/") {
    return response.setHeader("Content-Type", "text/html").end("<!doctype html><meta charset=utf-8><title>specs</title>");
  }
  if (pathname === "/auth" && request.method === "POST") {
    const form = new URLSearchParams(await text(request));
    return response.setHeader("Content-Type", "application/json").end(authorize(publisher, form));
  }
  response.setHeader("Content-Type", "text/javascript");
  if (pathname === SOCKJS_PATH) return response.end(await readFile(SOCKJS));
  if (pathname === "/auth") {
    return response.end(`${searchParams.get("callback")}(${authorize(publisher, searchParams)});`);
  }
  const [, receiver] = pathname.match(/^\/v2\/send\/(\d+)$/) ?? [];
  if (receiver === undefined) return response.writeHead(404).end();
  const field = (name) => Buffer.from(searchParams.get(name), "base64").toString();
  await publisher.trigger(field("channel"), field("event"), JSON.parse(field("data")));
  return response.end(`Pusher.Integration.ScriptReceivers[${receiver}](null, {});`);
}

/** Everyone is a user named by the socket; private channels are signed with `channel_data` too. */
function authorize(publisher, form) {
  const socket = form.get("socket_id");
  const user = { name: `Integration ${socket}`, email: `integration-${socket}@example.com` };
  return JSON.stringify(publisher.authorizeChannel(socket, form.get("channel_name"), { user_id: socket, user_info: user }));
}

async function text(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}
