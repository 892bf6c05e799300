// The page of a rehearsal: one pusher-js client, and the webhooks as they arrive.
"use strict";

const element = (id) => document.getElementById(id);
const PUSHER_NAMES = { websocket: "ws", xhr_streaming: "xhr_streaming", xhr_polling: "xhr_polling" };
const MOST_ROWS = 200;

let config = null;
let pusher = null;
let sent = 0;

function row(list, time, name, about) {
  list.querySelector(".empty")?.remove();
  const item = document.createElement("li");
  for (const [kind, text] of [["time", time.toLocaleTimeString()], ["name", name], ["about", about]]) {
    const cell = document.createElement("span");
    cell.className = kind;
    cell.textContent = text;
    item.append(cell);
  }
  list.prepend(item);
  while (list.children.length > MOST_ROWS) list.lastElementChild.remove();
}

function empty(list, text) {
  const item = document.createElement("li");
  item.className = "empty";
  item.textContent = text;
  list.append(item);
}

const log = (name, about = "") => row(element("log"), new Date(), name, about);

function showVerdict(verdict) {
  const word = element("verdict-word");
  word.textContent = verdict ? (verdict.ready ? "Ready" : "not Ready") : "proving";
  word.className = `badge ${verdict ? (verdict.ready ? "good" : "bad") : ""}`;
  if (!verdict) return;
  element("verdict-message").textContent = verdict.message;
  element("transports").replaceChildren(...verdict.transports.map((transport) => {
    const item = document.createElement("li");
    const state = document.createElement("span");
    state.className = `state ${transport.state}`;
    state.textContent = transport.state;
    const hop = transport.hop ? ` at hop ${transport.hop}` : "";
    const ms = transport.latencyMs.delivery;
    item.append(`${transport.name} `, state, hop || (ms === undefined ? "" : `, webhook after ${ms} ms`));
    return item;
  }));
}

async function refresh() {
  try {
    config = await (await fetch("/config.json")).json();
    showVerdict(config.verdict);
  } catch {
    element("verdict-word").textContent = "stopped";
    element("verdict-message").textContent = "The rehearsal does not answer: was it stopped?";
  }
}

function connect(transport) {
  pusher?.disconnect();
  const websocket = config.websocket ?? config.sockjs;
  const fallback = config.sockjs ?? config.websocket;
  element("log").replaceChildren();
  pusher = new Pusher(config.key, {
    cluster: "",
    wsHost: websocket.host,
    wsPort: websocket.port,
    httpHost: fallback.host,
    httpPort: fallback.port,
    forceTLS: false,
    enableStats: false,
    enabledTransports: [PUSHER_NAMES[transport]],
    channelAuthorization: { endpoint: "/auth" },
  });
  for (const button of document.querySelectorAll("[data-transport]")) {
    button.setAttribute("aria-pressed", String(button.dataset.transport === transport));
  }
  pusher.connection.bind("state_change", ({ current }) => {
    element("state").textContent = current;
    element("transport").textContent = current === "connected" ? transport : "–";
    element("socket").textContent = current === "connected" ? pusher.connection.socket_id : "–";
    element("disconnect").disabled = current !== "connected";
    if (current !== "connected") element("send").disabled = true;
    log(current);
  });
  pusher.connection.bind("error", (error) => log("error", JSON.stringify(error.data ?? error.error ?? error)));
  const channel = pusher.subscribe("private-demo");
  channel.bind("pusher:subscription_succeeded", () => {
    element("send").disabled = false;
    log("subscribed", "private-demo");
  });
  channel.bind("client-hello", (data) => log("client-hello", JSON.stringify(data)));
  const presence = pusher.subscribe("presence-demo");
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
element("disconnect").addEventListener("click", () => pusher.disconnect());
for (const button of document.querySelectorAll("[data-transport]")) {
  button.addEventListener("click", () => connect(button.dataset.transport));
}

// The last webhooks come again with every connection, and a webhook may come twice anyway.
const shown = new Set();
new EventSource("/webhooks").addEventListener("message", (message) => {
  const { body } = JSON.parse(message.data);
  for (const event of body.events) {
    if (shown.has(event.id)) continue;
    shown.add(event.id);
    const more = [event.user_id, event.event, event.data].filter(Boolean).join(" ");
    row(element("webhooks"), new Date(body.time_ms), event.name, `${event.channel} ${more}`);
  }
  element("webhook-count").textContent = String(shown.size);
});
empty(element("webhooks"), "None yet. Connect, and the first arrive.");
empty(element("log"), "Choose a transport.");

refresh().then(() => {
  setInterval(refresh, 2000);
  for (const button of document.querySelectorAll("[data-transport]")) {
    button.disabled = !(button.dataset.transport === "websocket" ? config?.websocket : config?.sockjs);
  }
  const wanted = new URLSearchParams(location.search).get("transport");
  if (config && PUSHER_NAMES[wanted]) connect(wanted);
});
