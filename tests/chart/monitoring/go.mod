// The CRDs of ServiceMonitor, PodMonitor and PrometheusRule, by which an API server judges those of the chart.
module monitoring

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
