// The requests of an account in the audit log.
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
