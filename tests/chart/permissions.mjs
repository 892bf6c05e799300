// The roles of the operator's chart compared with its requests.
import { parseAllDocuments } from "yaml";

import { usedPermissions } from "../cluster/permissions.mjs";

/** Rules whose comment begins so are not expected to be used in a run without faults. */
const EXCUSED = /^ ?(On failure|On upgrade|Granted|Checked)\b/;

/** The permissions of the Roles and ClusterRoles in YAML, each once, as `{ permission: "GROUP/RESOURCE VERB", excused }`. */
export function readPermissions(text) {
  const found = new Map();
  for (const document of parseAllDocuments(text)) {
    if (!["Role", "ClusterRole"].includes(document.get("kind"))) continue;
    const rules = document.get("rules");
    rules.items.forEach((rule, index) => {
      // The comment above the first item of a list stands at the list.
      const comment = rule.commentBefore ?? (index === 0 ? rules.commentBefore : undefined) ?? "";
      const { apiGroups, resources, verbs } = rule.toJSON();
      for (const group of apiGroups) for (const resource of resources) for (const verb of verbs) {
        const permission = `${group}/${resource} ${verb}`;
        found.set(permission, { permission, excused: EXCUSED.test(comment) && (found.get(permission)?.excused ?? true) });
      }
    });
  }
  return [...found.values()];
}

/** The permissions of these roles, those that are excused left out, that the account has not used since this moment. */
export function unusedPermissions(text, account, began) {
  const used = usedPermissions(account, began);
  return readPermissions(text).filter(({ permission, excused }) => !excused && !used.has(permission)).map(({ permission }) => permission).sort();
}
