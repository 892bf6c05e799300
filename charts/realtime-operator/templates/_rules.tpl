{{- /* The comment of each rule names the controller that needs it, and why. The rules are those of examples/operator.yaml; a
test compares. */}}

{{- /* Reads of whole kinds: a watch spans all namespaces, in both scopes. */}}
{{- define "realtime-operator.watchRules" -}}
# Every controller: reads the desired state.
- apiGroups: [realtime-operator.dev]
  resources: [realtimeclusters, realtimeapps]
  verbs: [get, list, watch]
# workload: reverts and prunes a cluster's children.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch]
# Leadership: the Leases of operators in other namespaces are read too, so that no two watch one cluster.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, list, watch]
# gate: observes pods.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# gate: finds the revision of a pod.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get, list, watch]
# stream: the UID of kube-system identifies this Kubernetes in a stream's tags.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
{{- end }}

{{- /* Writes, and reads by name, in the namespaces with clusters. */}}
{{- define "realtime-operator.writeRules" -}}
# Every controller: finalizers.
- apiGroups: [realtime-operator.dev]
  resources: [realtimeclusters, realtimeapps]
  verbs: [patch]
# Every controller: writes the observed state.
- apiGroups: [realtime-operator.dev]
  resources: [realtimeclusters/status, realtimeapps/status]
  verbs: [get, patch, update]
# workload: children have their cluster as owner. OwnerReferencesPermissionEnforcement allows that only to accounts that
# may update finalizers.
- apiGroups: [realtime-operator.dev]
  resources: [realtimeclusters/finalizers, realtimeapps/finalizers]
  verbs: [update]
# workload: applies, reverts and prunes a cluster's children.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [create, patch, update, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [create, patch, update, delete]
# workload: writes the admin token and keys. apps: writes the registry and the keys of apps. gate, stream: read keys. Read
# by name only: without list and watch, a Secret that no cluster references is never read.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, update, delete]
# workload: bounds how many pods can be evicted at once.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [create, patch, update, delete]
# workload: grants a cluster's dispatchers the right to hold Leases in their own namespace.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [create, patch, update, delete]
# Granted to dispatchers: an account can grant only permissions that it has itself.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, list, watch, create, patch, update, delete]
# gate: admits pods by an annotation, replaces a pod with another configuration. apps: annotates pods when the registry has
# changed, so that kubelet updates the mounted files at once.
- apiGroups: [""]
  resources: [pods]
  verbs: [patch, delete]
# gate: sets the condition of the readiness gate, which Services wait for.
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
# Every controller: Events, as `kubectl describe` shows them. patch: repeats of an Event.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{- /* In the operator's own namespace. */}}
{{- define "realtime-operator.ownRules" -}}
# Leadership: holds the Lease.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, create, update]
# Leadership: the receiver's only endpoint is the replica that leads.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch, create, patch, update, delete]
# Platform policy: reads the image of its own pod, which clusters may name.
- apiGroups: [""]
  resources: [pods]
  verbs: [get]
{{- end }}
