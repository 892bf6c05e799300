// The actions that Argo CD offers on a cluster, on a recorded one.
import assert from "node:assert/strict";
import { before, test } from "node:test";

import { parse } from "yaml";

import { applyCrds, kubectl } from "../cluster/harness.mjs";
import { actionsOf, generateConfigMap, GROUP, readYaml, restoreMaps, runScripts, script } from "./argocd.mjs";

const CLUSTER = "RealtimeCluster";

/** Time that the expected files of actions have, and that scripts take from the clock. */
const [FIXED_TIME, TIME] = ["0001-01-01T00:00:00Z", /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/];

before(applyCrds);

/** Replaces the times that actions write. */
function fixTimes(object) {
  const annotations = object.metadata.annotations ?? {};
  for (const name of ["prove-now", "restarted-at"].map((one) => `${GROUP}/${one}`)) {
    if (TIME.test(annotations[name])) annotations[name] = FIXED_TIME;
  }
  return object;
}

test("actions change the one field that they name, as the API server accepts it", async () => {
  const { actionTests } = readYaml(`${CLUSTER}/actions/action_test.yaml`);
  assert.deepEqual(actionTests.map(({ action }) => action).sort(), actionsOf(CLUSTER).sort());
  for (const { action, inputPath, expectedOutputPath } of actionTests) {
    const [input, expected] = [inputPath, expectedOutputPath].map((path) => readYaml(`${CLUSTER}/actions/${path}`));
    const [answered] = await runScripts([{ script: script(CLUSTER, `actions/${action}/action.lua`), object: input }]);
    const changed = restoreMaps(answered, input);
    assert.deepEqual(fixTimes(changed), expected, action);
    assert.notDeepEqual(changed, input, action);
    const { uid, resourceVersion, generation, creationTimestamp, finalizers, ...metadata } = changed.metadata;
    const { status, ...object } = { ...changed, metadata: { ...metadata, namespace: "default" } };
    await kubectl(["create", "--dry-run=server", "--validate=strict", "-f", "-"], { input: JSON.stringify(object) });
  }
});

test("an action is offered where it does something", async () => {
  const [ready, suspended] = ["ready", "suspended"].map((name) => readYaml(`${CLUSTER}/actions/testdata/${name}.yaml`));
  const discovery = script(CLUSTER, "actions/discovery.lua");
  const offered = await runScripts([ready, suspended].map((object) => ({ script: discovery, object })));
  const enabled = (actions) => Object.keys(actions).filter((name) => !actions[name].disabled).sort();
  assert.deepEqual(Object.keys(offered[0]).sort(), actionsOf(CLUSTER).sort());
  assert.deepEqual(offered.map(enabled), [["prove-now", "restart", "suspend"], ["prove-now", "resume"]]);
});

test("the ConfigMap for Argo CD has these actions", () => {
  for (const text of Object.values(generateConfigMap())) {
    const { definitions } = parse(parse(text).data[`resource.customizations.actions.${GROUP}_${CLUSTER}`]);
    assert.deepEqual(definitions.map(({ name }) => name), actionsOf(CLUSTER));
  }
});
