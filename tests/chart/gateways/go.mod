// The CRDs of the Gateway API and of Envoy Gateway, by which an API server judges rendered routes and policies.
module gateways

go 1.26.6

require (
	github.com/envoyproxy/gateway v1.9.0
	sigs.k8s.io/gateway-api v1.6.1
)
