{{- define "realtime-cluster.name" -}}
{{- $name := default .Release.Name .Values.name }}
{{- if gt (len $name) 40 }}
{{- fail (printf "the name of the cluster, %q, has more than 40 characters: set `name`" $name) }}
{{- end }}
{{- $name }}
{{- end }}

{{- define "realtime-cluster.metadata" -}}
{{- $labels := dict "app.kubernetes.io/name" .root.Chart.Name "app.kubernetes.io/managed-by" .root.Release.Service "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_") }}
{{- $annotations := merge (ternary (dict "helm.sh/resource-policy" "keep") (dict) .root.Values.keep) (default (dict) .annotations) -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- toYaml (merge $labels .root.Values.labels) | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
