// Sets of values for the operator's chart.
import { IMAGE_VALUES } from "./helm.mjs";

/** Everything that can be switched on, at once; `podMonitor` excludes `serviceMonitor`. */
export const EVERYTHING = {
  ...IMAGE_VALUES,
  global: { imageRegistry: "registry.example.com", imagePullSecrets: ["shared"] },
  replicaCount: 3,
  commonLabels: { team: "platform" },
  commonAnnotations: { "example.com/owner": "platform" },
  imagePullSecrets: ["own", { name: "shared" }],
  platformPolicy: { rules: [{ namespaces: ["*"], images: ["registry.example.com/realtime"], endpoints: [], regions: ["eu-west-1"], roleARNs: [] }] },
  knownInjectors: { injectors: [{ name: "Vault", initContainers: ["vault-agent*"], volumes: ["vault-*"] }], imageRegistries: ["mirror.example.com"] },
  log: "debug",
  listenAddress: "0.0.0.0",
  receiver: { port: 8091, ipFamily: "IPv4", annotations: { "example.com/a": "b" } },
  extraArgs: ["--log=info"],
  extraEnv: [{ name: "HTTPS_PROXY", value: "http://proxy.example.com:3128" }],
  extraVolumes: [{ name: "ca", configMap: { name: "ca" } }],
  extraVolumeMounts: [{ name: "ca", mountPath: "/etc/ca" }],
  extraObjects: [
    { apiVersion: "v1", kind: "ConfigMap", metadata: { name: "{{ .Release.Name }}-object", namespace: "{{ .Release.Namespace }}" } },
    "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-text\n  namespace: {{ .Release.Namespace }}\n",
  ],
  serviceAccount: { annotations: { "eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/operator" }, labels: { a: "b" } },
  rbac: { extraRules: [{ apiGroups: [""], resources: ["nodes"], verbs: ["get"] }] },
  crds: { annotations: { "argocd.argoproj.io/sync-options": "ServerSideApply=true" } },
  podLabels: { zone: "a" },
  podAnnotations: { "example.com/p": "q" },
  deploymentAnnotations: { "example.com/d": "e" },
  priorityClassName: "system-cluster-critical",
  tolerations: [{ key: "dedicated", operator: "Equal", value: "system", effect: "NoSchedule" }],
  affinity: { nodeAffinity: { requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: [{ matchExpressions: [{ key: "arch", operator: "Exists" }] }] } } },
  topologySpreadConstraints: [{ maxSkew: 1, topologyKey: "topology.kubernetes.io/zone", whenUnsatisfiable: "DoNotSchedule" }],
  livenessProbe: { failureThreshold: 5 },
  readinessProbe: { failureThreshold: 5 },
  networkPolicy: {
    enabled: true,
    apiServerCIDRs: ["10.0.0.0/16"],
    metricsFrom: [{ namespaceSelector: { matchLabels: { "kubernetes.io/metadata.name": "monitoring" } } }],
    ingress: [{ ports: [{ port: 1234 }] }],
    egress: [{ ports: [{ port: 3128 }] }],
  },
  metrics: {
    port: 9091,
    serviceMonitor: {
      enabled: true,
      labels: { release: "prometheus" },
      relabelings: [{ targetLabel: "x", replacement: "y" }],
      metricRelabelings: [{ action: "labeldrop", regex: "z" }],
    },
    serversPodMonitor: {
      enabled: true,
      labels: { release: "prometheus" },
      relabelings: [{ targetLabel: "x", replacement: "y" }],
      metricRelabelings: [{ action: "labeldrop", regex: "z" }],
    },
    prometheusRule: {
      enabled: true,
      labels: { release: "prometheus" },
      disabled: ["RealtimeWebhooksLate"],
      alertLabels: { team: "platform" },
      additional: [{ record: "realtime:leaders", expr: "sum(realtime_operator_held_leases)" }],
    },
    grafanaDashboard: { enabled: true, annotations: { grafana_folder: "Realtime" } },
  },
};

/** Two namespaces with clusters, and no more. */
export const NAMESPACED = { ...IMAGE_VALUES, watch: { scope: "Namespaces", namespaces: ["team-a", "team-b"] } };

/** Sets that every template is tried with. */
export const MATRIX = {
  "the defaults": IMAGE_VALUES,
  "two namespaces": NAMESPACED,
  "everything at once": EVERYTHING,
  "everything, in two namespaces": { ...EVERYTHING, watch: NAMESPACED.watch },
  "a pod monitor": { ...EVERYTHING, metrics: { ...EVERYTHING.metrics, serviceMonitor: { enabled: false }, podMonitor: { ...EVERYTHING.metrics.serviceMonitor } } },
  "a digest": { image: { ...IMAGE_VALUES.image, registry: "registry.example.com", digest: `sha256:${"0".repeat(64)}` } },
  "one replica": { ...IMAGE_VALUES, replicaCount: 1 },
  "an account and roles of others": { ...IMAGE_VALUES, serviceAccount: { create: false, name: "own" }, rbac: { create: false, userRoles: false } },
  "without CRDs": { ...IMAGE_VALUES, crds: { enabled: false } },
  "IPv6": { ...IMAGE_VALUES, listenAddress: "[::]", networkPolicy: { enabled: true, awsCIDRs: ["::/0"] } },
};
