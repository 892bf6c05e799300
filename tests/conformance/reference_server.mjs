// The npm package `sockjs` as a server beside ours: the same base path, and an application that says what ours says.
import { once } from "node:events";
import { createServer } from "node:http";

import sockjs from "sockjs";

/** `reply` takes a client's message: texts to write, a `channel` to be in, or a close with code and reason. */
export async function startReferenceServer({ reply, script, jsessionid = false }) {
  const members = new Map();
  const server = createServer((_, response) => response.writeHead(404).end());
  const app = sockjs.createServer({ prefix: "/pusher", sockjs_url: script, jsessionid, log: () => {} });
  app.on("connection", (connection) => {
    if (!connection) return;
    const channels = [];
    connection.on("close", () => channels.forEach((channel) => members.get(channel).delete(connection)));
    connection.on("data", (message) => {
      const { texts = [], channel, close } = reply(typeof message === "string" ? message : JSON.stringify(message));
      if (channel) {
        channels.push(channel);
        members.set(channel, (members.get(channel) ?? new Set()).add(connection));
      }
      for (const text of texts) connection.write(text);
      if (close) connection.close(...close);
    });
  });
  app.installHandlers(server);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: server.address().port,
    publish: (channel, text) => members.get(channel)?.forEach((connection) => connection.write(text)),
    stop: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}
