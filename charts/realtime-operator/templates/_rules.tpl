{{- /* The comment of each rule names the controller that needs it, and why. The rules are those of examples/operator.yaml; a
test compares. Another one compares them with the requests of a run: a permission without a request fails, unless the comment
of its rule begins with "On failure", "On upgrade", "Granted" or "Checked". */}}

{{- /* Reads of whole kinds, in the namespaces with clusters. */}}
{{- define "realtime-operator.watchRules" -}}
# Every controller: reads the desired state.
- apiGroups: [realtime-operator.dev]
  resources: [realtimeclusters, realtimeapps, realtimemigrations]
  verbs: [list, watch]
# On failure: an object that this version cannot read is read again before it is reported.
- apiGroups: [realtime-operator.dev]
  resources: [realtimeclusters, realtimeapps]
  verbs: [get]
# migration: reads a move again before it writes its finalizer.
- apiGroups: [realtime-operator.dev]
  resources: [realtimemigrations]
  verbs: [get]
# workload: reverts and prunes a cluster's children. get: an object that the watch does not have yet. migration: finds external-dns.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch]
- apiGroups: [networking.k8s.io]
  resources: [ingresses]
  verbs: [get, list, watch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch]
# gate: observes pods.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# gate: finds the revision of a pod.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [list, watch]
{{- end }}

{{- /* In every namespace. */}}
{{- define "realtime-operator.leaseRules" -}}
# Leadership: the Leases of operators in other namespaces are read too, so that no two watch one cluster.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [list, watch]
{{- end }}

{{- /* In the namespace kube-system. */}}
{{- define "realtime-operator.clusterIDRules" -}}
# stream: the UID of kube-system identifies this Kubernetes in a stream's tags.
- apiGroups: [""]
  resources: [namespaces]
  resourceNames: [kube-system]
  verbs: [get]
{{- end }}

{{- /* Writes, and reads by name, in the namespaces with clusters. A server-side apply is a patch, and a create where the object
does not exist. */}}
{{- define "realtime-operator.writeRules" -}}
# workload, stream, migration: finalizers.
- apiGroups: [realtime-operator.dev]
  resources: [realtimeclusters, realtimemigrations]
  verbs: [patch]
# Every controller: writes the observed state.
- apiGroups: [realtime-operator.dev]
  resources: [realtimeclusters/status, realtimeapps/status, realtimemigrations/status]
  verbs: [patch]
# Checked by OwnerReferencesPermissionEnforcement, where it is switched on: children have their cluster as owner, which only
# an account may write that may update its finalizers.
- apiGroups: [realtime-operator.dev]
  resources: [realtimeclusters/finalizers]
  verbs: [update]
# workload: applies, reverts and prunes a cluster's children.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [create, patch, delete]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [create, patch]
# On upgrade: prunes an account that a new version does not render any more.
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [delete]
# workload: writes the admin token and keys. apps: writes the registry and the keys of apps. gate, stream: read keys. Read
# by name only: without list and watch, a Secret that no cluster references is never read. delete: copies that no pod reads.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
# workload: leads clients to a cluster whose manifest has `expose`.
- apiGroups: [networking.k8s.io]
  resources: [ingresses]
  verbs: [create, patch, delete]
# Checked where the API server has the kind, by name: routes of Gateways.
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, create, patch, delete]
# Checked where the API server has the kind, by name: addresses of Gateways, for journeys through them.
- apiGroups: [gateway.networking.k8s.io]
  resources: [gateways]
  verbs: [get]
# Checked where the API server has the kind, by name: policies of Envoy Gateway.
- apiGroups: [gateway.envoyproxy.io]
  resources: [backendtrafficpolicies]
  verbs: [get, create, patch, delete]
# Checked where the API server has the kinds, by name: policies of NGINX Gateway Fabric.
- apiGroups: [gateway.nginx.org]
  resources: [proxysettingspolicies, clientsettingspolicies]
  verbs: [get, create, patch, delete]
# Checked where the API server has the kind, by name: records of moves, from which external-dns writes those of the zone.
- apiGroups: [externaldns.k8s.io]
  resources: [dnsendpoints]
  verbs: [get, create, patch, delete]
# migration: reads the snapshot of the other cluster, by the name that the move or the cluster has.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get]
# Checked where a cluster asks for it: its snapshot is published beside it.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create, patch]
# workload: bounds how many pods can be evicted at once.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [create, patch, delete]
# workload: grants a cluster's dispatchers the right to hold Leases in their own namespace.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [create, patch, delete]
# Granted to dispatchers: an account can grant only permissions that it has itself.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, list, create, update, delete]
# gate: admits pods by an annotation. apps: annotates pods when the registry has changed, so that kubelet updates the mounted
# files at once.
- apiGroups: [""]
  resources: [pods]
  verbs: [patch]
# On failure: replaces a pod with another configuration.
- apiGroups: [""]
  resources: [pods]
  verbs: [delete]
# gate: sets the condition of the readiness gate, which Services wait for.
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
# Every controller: Events, as `kubectl describe` shows them.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
# On failure: repeats of an Event.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [patch]
{{- end }}

{{- /* In the operator's own namespace. */}}
{{- define "realtime-operator.ownRules" -}}
# Leadership: holds the Lease, which it finds among those of its namespace.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, list, watch, create, update]
# Leadership: the receiver's only endpoint is the replica that leads.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch, create, patch]
# On failure: a slice whose leader had an address of another family is written anew.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, delete]
# Platform policy: reads the image of its own pod, which clusters may name.
- apiGroups: [""]
  resources: [pods]
  verbs: [get]
{{- end }}
