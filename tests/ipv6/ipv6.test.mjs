// A node whose addresses, and those of its pods and Services, are of IPv6 alone: a cluster is proven, serves clients that we
// did not write over both Services, and delivers their webhooks.
import assert from "node:assert/strict";
import { isIPv6 } from "node:net";
import { test } from "node:test";
import PusherClient from "pusher-js";

import { apply, get, kubectl, pods, realtime, service, URL_HOST, wait } from "../cluster/harness.mjs";
import { credentials, manifest, outside, ready, TRANSPORTS } from "../cluster/operator_fixtures.mjs";

const NAMESPACE = "rt-ipv6";

test("a cluster is Ready on IPv6 alone", async () => {
  await kubectl(["create", "namespace", NAMESPACE]);
  const began = Date.now();
  await apply(manifest(NAMESPACE));
  await ready(NAMESPACE);
  console.log(`# apply to Ready: ${((Date.now() - began) / 1000).toFixed(1)} s`);
  const { status } = await get("realtimecluster", NAMESPACE, "eu");
  assert.deepEqual(status.transports.map(({ name, state, pods }) => [name, state, pods]), TRANSPORTS.map((name) => [name, "Passing", "2/2"]));
  const addresses = (await pods(NAMESPACE)).flatMap(({ status }) => status.podIPs.map(({ ip }) => ip));
  assert.ok(addresses.length >= 6 && addresses.every(isIPv6), `${addresses}`);
});

test("clients are served through both Services, and their webhooks arrive", async () => {
  const [key] = await credentials(NAMESPACE);
  for (const [name, transport] of [["eu-websocket", "ws"], ["eu-sockjs", "xhr_streaming"]]) {
    const { host, port } = await service(NAMESPACE, name);
    assert.ok(isIPv6(host), host);
    const client = new PusherClient(key, {
      cluster: "", wsHost: `[${host}]`, wsPort: port, httpHost: `[${host}]`, httpPort: port, forceTLS: false, enableStats: false, enabledTransports: [transport],
    });
    const channel = `news-${transport}`;
    const arrived = (event) => () => outside.receiver.events().some((one) => one.name === event && one.channel === channel);
    try {
      client.subscribe(channel);
      await wait(arrived("channel_occupied"), { what: `the webhook of a subscription over ${transport}` });
    } finally {
      client.disconnect();
    }
    await wait(arrived("channel_vacated"), { what: `the webhook of a leave over ${transport}` });
  }
});

test("the command line reaches the pods", async () => {
  const shown = await realtime("status", "eu", "-n", NAMESPACE);
  assert.equal(shown.code, 0, shown.stderr);
  assert.match(shown.stdout, new RegExp(`^${NAMESPACE}/eu: Ready \\(Proven\\)\n`));
  const { spec } = await get("realtimecluster", NAMESPACE, "eu");
  assert.ok(spec.aws.endpointURL.startsWith(`http://${URL_HOST}:`), spec.aws.endpointURL);
});
