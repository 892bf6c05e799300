{{- define "realtime-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "realtime-operator.fullname" -}}
{{- $name := include "realtime-operator.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "realtime-operator.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{- /* Immutable in a Deployment, and the same as in examples/operator.yaml, so that Helm can take over what it created. One
operator per namespace: the names of its Lease and of its receiver's Service are fixed. */}}
{{- define "realtime-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "realtime-operator.name" . }}
{{- end }}

{{- define "realtime-operator.labels" -}}
{{- $labels := include "realtime-operator.selectorLabels" . | fromYaml }}
{{- $_ := set $labels "app.kubernetes.io/instance" .Release.Name }}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .Release.Service }}
{{- $_ := set $labels "app.kubernetes.io/version" .Chart.AppVersion }}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") }}
{{- toYaml (merge $labels .Values.commonLabels) }}
{{- end }}

{{- /* metadata ROOT, NAME, and optionally namespaced (default true), labels, annotations */}}
{{- define "realtime-operator.metadata" -}}
{{- $annotations := merge (dict) (default (dict) .annotations) .root.Values.commonAnnotations -}}
name: {{ .name }}
{{- if dig "namespaced" true . }}
namespace: {{ default (include "realtime-operator.namespace" .root) .namespace }}
{{- end }}
labels:
  {{- toYaml (merge (include "realtime-operator.labels" .root | fromYaml) (default (dict) .labels)) | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "realtime-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "realtime-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed when serviceAccount.create is false: name an account with the operator's permissions" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "realtime-operator.image" -}}
{{- $repository := required "image.repository is not set: write the image with image/build, push it to the registry that your nodes pull from, and name it" .Values.image.repository }}
{{- $registry := default .Values.image.registry .Values.global.imageRegistry }}
{{- $name := ternary (printf "%s/%s" $registry $repository) $repository (not (empty $registry)) }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $name .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "realtime-operator.pullSecrets" -}}
{{- $secrets := list }}
{{- range concat (default (list) .Values.global.imagePullSecrets) .Values.imagePullSecrets }}
{{- $secrets = append $secrets (ternary . (dict "name" .) (kindIs "map" .)) }}
{{- end }}
{{- with uniq $secrets }}{{ toYaml . }}{{ end }}
{{- end }}

{{- define "realtime-operator.isNamespaced" -}}
{{- if eq .Values.watch.scope "Namespaces" }}
{{- if not .Values.watch.namespaces }}
{{- fail "watch.scope is Namespaces and watch.namespaces is empty: name the namespaces whose clusters this operator reconciles" }}
{{- end }}true
{{- else if .Values.watch.namespaces }}
{{- fail "watch.namespaces is set and watch.scope is Cluster: set watch.scope to Namespaces, or remove the names" }}
{{- end }}
{{- end }}

{{- /* The files that the operator reads at its start, by the name of the argument: folder and content. */}}
{{- define "realtime-operator.files" -}}
{{- $files := dict }}
{{- if .Values.platformPolicy.rules }}
{{- $_ := set $files "platform-policy" (dict "folder" "/etc/realtime-operator" "content" .Values.platformPolicy) }}
{{- end }}
{{- with .Values.knownInjectors }}
{{- if or .injectors .imageRegistries }}
{{- $shipped := $.Files.Get "files/known_injectors.yaml" | fromYaml }}
{{- $content := dict "injectors" (concat $shipped.injectors .injectors) "imageRegistries" (concat $shipped.imageRegistries .imageRegistries) }}
{{- $_ := set $files "known-injectors" (dict "folder" "/etc/known-injectors" "content" $content) }}
{{- end }}
{{- end }}
{{- toYaml $files }}
{{- end }}

{{- define "realtime-operator.args" -}}
- operator
{{- if include "realtime-operator.isNamespaced" . }}
- --watch-namespaces={{ join "," .Values.watch.namespaces }}
{{- end }}
{{- range $name, $file := include "realtime-operator.files" . | fromYaml }}
- --{{ $name }}={{ $file.folder }}/{{ $name }}.yaml
{{- end }}
{{- if or (ne .Values.listenAddress "[::]") (ne (int .Values.receiver.port) 8090) }}
- --receiver={{ .Values.listenAddress }}:{{ int .Values.receiver.port }}
{{- end }}
{{- if or (ne .Values.listenAddress "[::]") (ne (int .Values.metrics.port) 9090) }}
- --admin={{ .Values.listenAddress }}:{{ int .Values.metrics.port }}
{{- end }}
{{- if ne .Values.log "info" }}
- --log={{ .Values.log }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- /* The fields of an endpoint of a monitor. honorLabels: `namespace` in the operator's series is that of a cluster. */}}
{{- define "realtime-operator.scrape" -}}
path: /metrics
honorLabels: true
interval: {{ .interval }}
scrapeTimeout: {{ .scrapeTimeout }}
{{- with .relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
