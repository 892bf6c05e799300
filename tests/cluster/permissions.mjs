// The requests of an account in the audit log.
import assert from "node:assert/strict";

import { audit } from "./harness.mjs";

const requestsOf = (account, began) =>
  audit(({ user, requestReceivedTimestamp }) => user.username === account && new Date(requestReceivedTimestamp) >= began);

/** Requests of the account that the API server refused since this moment. */
export const refusedRequests = (account, began) =>
  requestsOf(account, began).filter(({ responseStatus }) => responseStatus?.code === 403)
    .map(({ verb, objectRef, responseStatus }) => `${verb} ${objectRef?.resource} in ${objectRef?.namespace}: ${responseStatus.message}`);

/** The permissions that the account has used since this moment. */
export function usedPermissions(account, began) {
  const used = new Set();
  for (const { verb, objectRef, responseStatus } of requestsOf(account, began)) {
    if (!objectRef?.resource) continue;
    const resource = [objectRef.resource, objectRef.subresource].filter(Boolean).join("/");
    // A server-side apply that creates its object needs both.
    for (const one of verb === "patch" && responseStatus?.code === 201 ? ["patch", "create"] : [verb]) used.add(`${objectRef.apiGroup ?? ""}/${resource} ${one}`);
  }
  return used;
}

/** The calls that the account has completed since this moment, watches left out: how often each, by `VERB RESOURCE NAME`. */
export function countCalls(account, began) {
  const counts = new Map();
  const calls = audit(({ user, stage, stageTimestamp, verb }) =>
    user.username === account && stage === "ResponseComplete" && verb !== "watch" && Date.parse(stageTimestamp) > began);
  for (const { verb, objectRef } of calls) {
    const call = `${verb} ${objectRef.resource}${objectRef.subresource ? `/${objectRef.subresource}` : ""} ${objectRef.name ?? ""}`;
    counts.set(call, (counts.get(call) ?? 0) + 1);
  }
  return counts;
}

/**
 * Checks the operator's calls in seconds without a change: each Secret is read once a minute, each status written once in five
 * minutes, and the Lease renewed every 2 s by the leader; the other replica reads it from a watch.
 */
export function assertQuiet(counts, seconds) {
  for (const [call, times] of counts) {
    const text = `${call}: ${times} times`;
    if (/^get secrets /.test(call)) assert.ok(times <= Math.ceil(seconds / 60) + 1, text);
    else if (/^patch realtimeclusters\/status /.test(call)) assert.ok(times <= Math.ceil(seconds / 300), text);
    else if (call === "update leases realtime-operator") assert.ok(times <= seconds / 2 + 1, text);
    else assert.fail(`${text} in ${seconds} s without a change`);
  }
}
