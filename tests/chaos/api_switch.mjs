// A switch between the dispatchers and the API server: a relay of TCP, so that the certificate is the API server's own.
import { readFileSync, writeFileSync } from "node:fs";
import { once } from "node:events";
import { connect, createServer } from "node:net";

/** Starts it before the API server of a kubeconfig, and writes a kubeconfig that goes through it to `file`. */
export async function startApiSwitch(kubeconfig, file) {
  const text = readFileSync(kubeconfig, "utf8");
  const [address, port] = text.match(/https:\/\/127\.0\.0\.1:(\d+)/);
  const sockets = new Set();
  let state = "works";
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.once("close", () => sockets.delete(socket));
    if (state === "closes") return socket.destroy();
    // What is sent to a silent one is taken, and never answered.
    if (state === "silent") return socket.resume();
    const behind = connect(Number(port), "127.0.0.1");
    behind.on("error", () => socket.destroy());
    behind.once("close", () => socket.destroy());
    socket.once("close", () => behind.destroy());
    return socket.pipe(behind).pipe(socket);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  writeFileSync(file, text.replace(address, `https://127.0.0.1:${server.address().port}`));
  return {
    /** Ends all connections; new ones are served (`works`), ended (`closes`) or never answered (`silent`). */
    set(value) {
      state = value;
      for (const socket of sockets) socket.destroy();
    },
    close() {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}
