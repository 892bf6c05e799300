// A SockJS client with the part of the interface that pusher-js uses. SockJS.transport chooses one of the four protocols,
// which the usual client chooses by itself.
"use strict";

class SockJS {
  static transport = "websocket";

  constructor(url) {
    const letters = (count) => Array.from({ length: count }, () => "abcdefghijklmnopqrstuvwxyz"[Math.floor(Math.random() * 26)]).join("");
    this.base = `${url}/${Math.floor(Math.random() * 1000)}/${letters(8)}`;
    this.readyState = 0;
    this.sent = Promise.resolve();
    this.stopped = new AbortController();
    // After the constructor, when the callbacks are set.
    queueMicrotask(() => {
      const run = { websocket: this.runSocket, xhr_streaming: this.runStream, xhr: this.runPolls, eventsource: this.runEvents };
      run[SockJS.transport].call(this);
    });
  }

  accept(frame) {
    if (this.readyState > 1) return;
    if (frame[0] === "o") {
      this.readyState = 1;
      this.onopen?.();
    } else if (frame[0] === "a") {
      for (const data of JSON.parse(frame.slice(1))) this.onmessage?.({ data });
    } else if (frame[0] === "c") {
      const [code, reason] = JSON.parse(frame.slice(1));
      this.end(code, reason);
    }
    this.onactivity?.();
  }

  end(code, reason) {
    if (this.readyState === 3) return;
    this.readyState = 3;
    this.stopped.abort();
    this.onclose?.({ code, reason, wasClean: code === 1000 });
  }

  send(message) {
    const body = JSON.stringify([message]);
    if (this.socket) {
      this.socket.send(body);
      return;
    }
    // One after the other, so that messages keep their order.
    this.sent = this.sent.then(() => this.post("xhr_send", body)).then((answer) => {
      if (!answer.ok) this.end(1006, `a send was answered ${answer.status}`);
    }).catch(() => this.end(1006, "a send failed"));
  }

  close(code = 1000, reason = "") {
    this.socket?.close();
    this.events?.close();
    this.end(code, reason);
  }

  post(path, body = "") {
    return fetch(`${this.base}/${path}`, { method: "POST", body, signal: this.stopped.signal });
  }

  runSocket() {
    this.socket = new WebSocket(`${this.base.replace(/^http/, "ws")}/websocket`);
    this.socket.onmessage = ({ data }) => this.accept(data);
    this.socket.onclose = () => this.end(1006, "the connection ended");
  }

  /** Answers whose lines are frames; the next request follows the end of an answer. */
  async runLines(path) {
    try {
      while (this.readyState < 2) {
        const answer = await this.post(path);
        if (!answer.ok) throw new Error(`answered ${answer.status}`);
        const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
        let rest = "";
        for (;;) {
          const { done, value } = await reader.read();
          if (done) break;
          const lines = (rest + value).split("\n");
          rest = lines.pop();
          lines.filter(Boolean).forEach((line) => this.accept(line));
        }
      }
    } catch (error) {
      this.end(1006, String(error));
    }
  }

  runStream() {
    return this.runLines("xhr_streaming");
  }

  runPolls() {
    return this.runLines("xhr");
  }

  runEvents() {
    this.events = new EventSource(`${this.base}/eventsource`);
    this.events.onmessage = ({ data }) => this.accept(data);
    this.events.onerror = () => {
      this.events.close();
      this.end(1006, "the stream of events ended");
    };
    this.stopped.signal.addEventListener("abort", () => this.events.close());
  }
}

window.SockJS = SockJS;
