// The page of a rehearsal: the verdict as a picture, one pusher-js client, the webhooks as they arrive, and the faults.
"use strict";

const element = (id) => document.getElementById(id);
/** How pusher-js names a transport; a SockJS transport is chosen in the SockJS client. */
const PUSHER_NAMES = { websocket: "ws", xhr_streaming: "xhr_streaming", xhr_polling: "xhr_polling" };
/** The places of the picture, each with its number of hops in the order of the path. */
const PLACES = [["client", 3], ["edge →", 3], ["stream →", 1], ["dispatcher →", 1], ["webhook", 3]];
const MOST_ROWS = 200;

let config = null;
let pusher = null;
let sent = 0;
let stopped = false;

function make(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function row(list, time, name, about, route) {
  list.querySelector(".empty")?.remove();
  const cell = (kind, text) => make("span", { className: kind, textContent: text });
  const item = make("li", {}, cell("time", time.toLocaleTimeString()), cell("name", name), cell("about", about));
  if (route) item.append(route);
  list.prepend(item);
  while (list.children.length > MOST_ROWS) list.lastElementChild.remove();
}

const empty = (list, text) => list.append(make("li", { className: "empty", textContent: text }));
const log = (name, about = "") => row(element("log"), new Date(), name, about);

// The verdict.

/** The message, and the differing variables out of it, so that each is said once. */
function splitMessage(message) {
  const drifts = [];
  const parts = message.split("; ").filter((part) => {
    const found = /(?:^|on \S+, )(\S+) differs: want (.*), pod runs (.*)$/.exec(part);
    if (found) drifts.push(found.slice(1));
    return !found;
  });
  return { text: parts.join("; "), drifts };
}

/** The state of one hop: as the verdict has it, and before a verdict as the journeys passed it. */
function hopState(index, transport, seen) {
  const name = config.hopNames[index];
  if (transport?.notApplicable.includes(name)) return "not-applicable";
  const broken = config.hopNames.indexOf(transport?.hop);
  if (transport?.state === "Passing") return "passed";
  if (transport?.state === "Failing" && broken >= 0) {
    return index < broken ? "passed" : index === broken ? "broken" : "";
  }
  // The end of an older journey may be noted after a fault was switched: only hops without a gap before them count.
  const gap = config.hopNames.findIndex((hop) => !seen?.[hop]);
  return gap < 0 || index < gap ? seen[name].state : "";
}

function transportRow(name) {
  const transport = config.verdict?.transports.find((found) => found.name === name);
  const seen = config.hops[name];
  const first = new Set(PLACES.reduce((starts, [, count]) => [...starts, starts.at(-1) + count], [0]));
  const item = make("tr", {}, make("th", { scope: "row", textContent: name }));
  item.dataset.name = name;
  config.hopNames.forEach((hop, index) => {
    const state = hopState(index, transport, seen);
    const ms = transport?.latencyMs[hop] ?? seen?.[hop]?.ms;
    const said = { passed: "passed", broken: "broken", "not-applicable": "does not apply" }[state] ?? "not reached";
    const title = `${hop}: ${said}${state === "passed" && ms !== undefined ? `, ${ms} ms` : ""}`;
    const light = make("span", { className: `light ${state}`, title, role: "img", ariaLabel: title });
    light.dataset.hop = hop;
    item.append(make("td", { className: first.has(index) ? "first" : "" }, light));
  });
  const delivery = transport?.latencyMs.delivery ?? seen?.delivery?.ms;
  const passes = transport ? transport.state === "Passing" : delivery !== undefined;
  const broken = transport?.state === "Failing";
  const end = broken ? `at ${transport.hop}` : passes && delivery !== undefined ? `${delivery} ms` : "";
  item.append(make("td", { className: `latency ${broken ? "bad" : ""}`, textContent: end }));
  return item;
}

function showPicture() {
  const places = make("tr", {}, make("th", { className: "corner" }));
  PLACES.forEach(([place, count], index) => {
    const cell = make("th", { className: "place first", colSpan: count, textContent: place });
    cell.style.gridColumn = `span ${count}`;
    places.append(cell);
    if (index === 0) cell.textContent = "client →";
  });
  places.append(make("th", { className: "latency", textContent: "webhook after" }));
  const hops = make("tr", {}, make("th", { className: "corner" }),
    ...config.hopNames.map((hop) => make("th", { className: "hop", textContent: hop })), make("th", { className: "latency" }));
  element("transports").tHead.replaceChildren(places, hops);
  element("transports").tBodies[0].replaceChildren(...config.transports.map(transportRow));
}

function showVerdict() {
  const { verdict } = config;
  const word = element("verdict-word");
  word.textContent = verdict ? (verdict.ready ? "Ready" : "not Ready") : "proving";
  word.className = `badge ${verdict ? (verdict.ready ? "good" : "bad") : ""}`;
  const { text, drifts } = splitMessage(verdict?.message ?? "The first journeys are under way.");
  element("verdict-message").textContent = verdict && !verdict.ready ? `${verdict.reason}: ${text}` : text;
  element("blame").hidden = drifts.length === 0;
  element("blame").tBodies[0].replaceChildren(
    ...drifts.map((cells) => make("tr", {}, ...cells.map((textContent) => make("td", { textContent })))));
  showPicture();
  // Before a verdict, the latest cause that a journey met; the verdict says its own.
  const causes = verdict ? [] : Object.values(config.hops).flatMap((hops) => Object.values(hops).map(({ detail }) => detail));
  const cause = causes.find(Boolean);
  element("hop-detail").hidden = !cause;
  element("hop-detail").textContent = cause ?? "";
}

// The faults.

async function switchFault(name, on) {
  element("fault-error").hidden = true;
  try {
    const answer = await fetch(`/faults/${name}`, { method: "POST", body: on ? "on" : "off" });
    if (answer.ok) return;
    element("fault-error").textContent = await answer.text();
  } catch {
    element("fault-error").textContent = "The rehearsal does not answer.";
  }
  element("fault-error").hidden = false;
}

function showFaults() {
  const list = element("faults");
  if (!list.children.length) {
    list.append(...config.faults.map(({ name, help }) => {
      const button = make("button", { type: "button", textContent: name });
      button.dataset.fault = name;
      button.addEventListener("click", async () => {
        button.disabled = true;
        await switchFault(name, button.getAttribute("aria-pressed") !== "true");
        button.disabled = stopped;
      });
      return make("li", {}, button, help);
    }));
  }
  for (const { name, on } of config.faults) {
    list.querySelector(`[data-fault="${name}"]`).setAttribute("aria-pressed", String(on));
  }
}

// The client.

const server = (transport) => (transport === "websocket" ? config.websocket : config.sockjs);

function press(transport) {
  for (const button of document.querySelectorAll("[data-transport]")) {
    button.setAttribute("aria-pressed", String(button.dataset.transport === transport));
  }
}

function connect(transport) {
  pusher?.disconnect();
  const address = server(transport);
  element("log").replaceChildren();
  if (transport.startsWith("sockjs_")) SockJS.transport = transport.slice("sockjs_".length);
  const own = new Pusher(config.key, {
    cluster: "",
    wsHost: address.host,
    wsPort: address.port,
    httpHost: address.host,
    httpPort: address.port,
    forceTLS: false,
    enableStats: false,
    enabledTransports: [PUSHER_NAMES[transport] ?? "sockjs"],
    channelAuthorization: { endpoint: "/auth" },
  });
  pusher = own;
  press(transport);
  own.connection.bind("state_change", ({ current }) => {
    // A client that was replaced says nothing more.
    if (own !== pusher) return;
    element("state").textContent = current;
    element("transport").textContent = current === "connected" ? transport : "–";
    element("socket").textContent = current === "connected" ? own.connection.socket_id : "–";
    element("disconnect").disabled = current === "disconnected";
    if (current !== "connected") element("send").disabled = true;
    if (current === "disconnected") press(null);
    log(current);
  });
  own.connection.bind("error", (error) => {
    const cause = error.data ?? error.error?.data ?? error.error ?? error;
    if (own === pusher) log("error", cause.message ? `${cause.code ?? ""} ${cause.message}`.trim() : JSON.stringify(cause));
  });
  const channel = own.subscribe("private-demo");
  channel.bind("pusher:subscription_succeeded", () => {
    element("send").disabled = false;
    log("subscribed", "private-demo");
  });
  channel.bind("client-hello", (data) => log("client-hello", JSON.stringify(data)));
  const presence = own.subscribe("presence-demo");
  presence.bind("pusher:subscription_succeeded", (members) => log("subscribed", `presence-demo, ${members.count} here`));
  presence.bind("pusher:member_added", (member) => log("member_added", member.id));
  presence.bind("pusher:member_removed", (member) => log("member_removed", member.id));
}

element("send").addEventListener("click", () => {
  sent += 1;
  const data = { text: "hello", number: sent, from: pusher.connection.socket_id };
  const accepted = pusher.channel("private-demo").trigger("client-hello", data);
  log(accepted ? "sent" : "not sent", `client-hello ${JSON.stringify(data)}`);
});
element("disconnect").addEventListener("click", () => pusher?.disconnect());

function showClient() {
  const buttons = element("transport-buttons");
  if (!buttons.children.length) {
    buttons.append(...config.transports.map((transport) => {
      const button = make("button", { type: "button", textContent: transport });
      button.dataset.transport = transport;
      button.addEventListener("click", () => connect(transport));
      return button;
    }));
    press(null);
  }
  for (const button of buttons.children) button.disabled = stopped || !server(button.dataset.transport);
  element("app").textContent = config.app;
  element("key").textContent = config.key;
  const endpoints = config.endpoints.map(({ name, url }) => `${name}: ${url}`);
  element("endpoint").textContent = endpoints.join(", ") || "none: this app's events are recorded and sent nowhere";
}

// The webhooks. The last ones come again with every connection, and a webhook may come twice anyway.

const shown = new Set();
const webhooks = new EventSource("/webhooks");
webhooks.addEventListener("message", (message) => {
  const { endpoint, url, status, error, body } = JSON.parse(message.data);
  for (const event of body.events) {
    // An attempt that failed is repeated: each of its answers is a row.
    const key = `${event.id} ${endpoint} ${status ?? error}`;
    if (shown.has(key)) continue;
    shown.add(key);
    const more = [event.user_id, event.event, event.data].filter(Boolean).join(" ");
    const good = status >= 200 && status < 300;
    const answer = make("b", { textContent: status ? `answered ${status}` : "no answer" });
    const route = make("span", { className: `route ${good ? "" : "refused"}` }, `→ ${endpoint} ${url ?? ""} `, answer,
      error ? `: ${error}` : "");
    row(element("webhooks"), new Date(body.time_ms), event.name, `${event.channel} ${more}`, route);
  }
  element("webhook-count").textContent = String(shown.size);
});

// The state.

function show(state) {
  config = state;
  showVerdict();
  showFaults();
  showClient();
}

/** Once: nothing asks a process again that has ended. */
function showStopped() {
  if (stopped) return;
  stopped = true;
  states.close();
  webhooks.close();
  pusher?.disconnect();
  element("verdict-word").textContent = "stopped";
  element("verdict-word").className = "badge";
  element("verdict-message").textContent = "The rehearsal was stopped. Start it again and reload this page.";
  element("blame").hidden = true;
  for (const button of document.querySelectorAll("button")) button.disabled = true;
}

const states = new EventSource("/state");
states.addEventListener("message", ({ data }) => {
  const first = config === null;
  show(JSON.parse(data));
  const wanted = new URLSearchParams(location.search).get("transport");
  if (first && config.transports.includes(wanted)) connect(wanted);
  if (first && !config.endpoints.length) {
    element("webhooks").replaceChildren();
    empty(element("webhooks"), `App ${config.app} has no endpoint, so that no webhook is sent for it.`);
  }
});
states.addEventListener("error", showStopped);
empty(element("webhooks"), "None yet. Connect, and the first arrive.");
empty(element("log"), "Choose a transport.");
