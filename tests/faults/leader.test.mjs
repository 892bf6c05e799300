// Leaders that do not live long while no webhook is delivered: the proof of a former leader must expire.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";

import { apply, condition, get, kubectl, leaderName, OPERATOR_NAMESPACE, pods, service, tearDown, wait, watchObject } from "../cluster/harness.mjs";
import { COMPONENT, is, manifest, ready, said } from "../cluster/operator_fixtures.mjs";

const NAMESPACE = "leaders";

/**
 * Seconds for which leaders are killed, and the age that inherited evidence may have: `LEADER_KILL_SECONDS=960 ./test faults
 * -k "leader"` is the long run, with the age of the default.
 */
const KILLING = Number(process.env.LEADER_KILL_SECONDS ?? 180);
const INHERITED = KILLING >= 960 ? 900 : 120;

/** Seconds between two kills. */
const KILL_EVERY = 30;

/** Seconds in which a leader takes over and judges the age: the TTL of the Lease, and a turn. */
const TAKE_OVER = 40;

const TABLE = "realtime_test";
const nft = (rules) => execFileSync("nft", ["-f", "-"], { input: rules });

/** Drops what these addresses send to the receiver of the journeys, on connections that are open too. */
function dropWebhooks(senders, receiver) {
  nft(`table ip ${TABLE} { chain prerouting { type filter hook prerouting priority raw; ip saddr { ${senders.join(", ")} } ip daddr ${receiver} drop; }; }\n`);
}

const deliverWebhooks = () => nft(`table ip ${TABLE} {}\ndelete table ip ${TABLE}\n`);

tearDown(async () => deliverWebhooks());

/** Ends the leader's pod at once, so that it releases nothing. */
async function killLeader() {
  const leader = await leaderName();
  await kubectl(["delete", "pod", leader, "-n", OPERATOR_NAMESPACE, "--grace-period=0", "--force", "--ignore-not-found"]);
  return leader;
}

test("leaders that are killed every 30 s while no webhook is delivered do not keep a cluster Ready", { timeout: (KILLING + 700) * 1000 }, async () => {
  const argument = [{ op: "add", path: "/spec/template/spec/containers/0/args/-", value: `--inherited-evidence-max=${INHERITED}s` }];
  await kubectl(["patch", "deployment", "realtime-operator", "-n", OPERATOR_NAMESPACE, "--type=json", "-p", JSON.stringify(argument)]);
  await kubectl(["rollout", "status", "deployment/realtime-operator", "-n", OPERATOR_NAMESPACE, "--timeout=120s"]);
  await apply(manifest(NAMESPACE));
  await ready(NAMESPACE, "eu", 300);
  const watch = await watchObject("realtimeclusters", NAMESPACE, "eu");
  const dispatchers = await pods(NAMESPACE, { [COMPONENT]: "dispatcher" });
  const receiver = await service(OPERATOR_NAMESPACE, "realtime-operator-receiver");
  const began = Date.now();
  const elapsed = () => (Date.now() - began) / 1000;
  dropWebhooks(dispatchers.map(({ status }) => status.podIP), receiver.host);
  const killed = new Set();
  while (elapsed() < KILLING) {
    const turn = Date.now();
    killed.add(await killLeader());
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, KILL_EVERY * 1000 - (Date.now() - turn))));
  }
  const versions = watch.versions.filter(({ at }) => at > began);
  const late = began + (INHERITED + TAKE_OVER) * 1000;
  console.log(`# ${killed.size} leaders were killed; ${versions.map(({ object, at }) => `${((at - began) / 1000).toFixed(0)} s ${said(object)}`).join(", ")}`);
  assert.ok(killed.size >= Math.min(3, KILLING / KILL_EVERY - 2), `${killed.size} leaders were killed`);
  for (const { object } of watch.versions) {
    assert.ok(Date.parse(object.status.gate.passedAt) <= began, `passedAt moved to ${object.status.gate.passedAt}, after the last webhook`);
  }
  const last = await get("realtimecluster", NAMESPACE, "eu");
  assert.notEqual(is(last, "Ready"), "True", condition(last, "Ready").message);
  assert.deepEqual(versions.filter(({ object, at }) => at > late && is(object, "Ready") === "True").map(({ object }) => said(object)), [], "not Ready again");
  deliverWebhooks();
  await wait(async () => is(await get("realtimecluster", NAMESPACE, "eu"), "Ready") === "True", { timeout: 180_000, what: "Ready once webhooks are delivered" });
  await watch.stop();
});
