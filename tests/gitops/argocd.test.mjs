// Argo CD's own comparison of a manifest with the live object: defaults of the schema and the operator's status are no difference.
import assert from "node:assert/strict";
import { before, test } from "node:test";

import { exchangeLines } from "../conformance/processes.mjs";
import { parseObjects } from "../chart/helm.mjs";
import { apply, applyCrds, file, get, kubectl, KUBECONFIG } from "../cluster/harness.mjs";
import { readRecording, writeStatus } from "./replay.mjs";

const NAMESPACE = "channels";

before(async () => {
  await applyCrds();
  await apply({ apiVersion: "v1", kind: "Namespace", metadata: { name: NAMESPACE } });
});

/** Whether the engine calls each pair of manifest and live object out of sync. */
const compare = (pairs) => exchangeLines(process.env.ARGO_DIFF, pairs, { env: { ...process.env, KUBECONFIG } });

/** The manifests of a user: the smallest ones, and a cluster with every kind of field. */
const manifests = parseObjects(file("examples/eu.yaml"));

for (const [mode, ...flags] of [["client"], ["structured", "--server-side", "--field-manager=argocd-controller"]]) {
  test(`a manifest stays in sync from its first moment to its last status: ${mode}`, { timeout: 120_000 }, async () => {
    await kubectl(["apply", ...flags, "-f", "-"], { input: file("examples/eu.yaml") });
    for (const config of manifests) {
      const { kind, metadata: { name } } = config;
      const live = () => get(kind, NAMESPACE, name);
      assert.equal((await live()).status.observedGeneration, -1, "the default of the schema");
      const pairs = [{ config, live: await live() }];
      for (const { object, type } of readRecording(kind === "RealtimeCluster" ? "cluster" : "app")) {
        if (type === "DELETED" || object.status.observedGeneration < 0) continue;
        await writeStatus(kind, NAMESPACE, name, object);
        pairs.push({ config, live: await live() });
      }
      assert.ok(pairs.length > 3, `${pairs.length} statuses of ${kind}`);
      for (const found of await compare(pairs)) assert.equal(found[mode], false, kind);
      const edited = structuredClone(config);
      if (kind === "RealtimeCluster") edited.spec.websocket.replicas = 5;
      else edited.spec.clientEvents = "Disabled";
      const [changed] = await compare([{ config: edited, live: await live() }]);
      assert.equal(changed[mode], true, `an edit of ${kind} is a difference`);
    }
    await kubectl(["delete", "realtimecluster,realtimeapp", "--all", "-n", NAMESPACE]);
  });
}
