// Prints Argo CD's own comparison of a manifest with the live object, by gitops-engine: one JSON object `{"config": …,
// "live": …}` a line in, `{"client": …, "structured": …}` a line out: whether it is out of sync by a client-side comparison
// and by the one of ServerSideApply=true. KUBECONFIG names the API server.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	"github.com/argoproj/gitops-engine/pkg/diff"
	"github.com/argoproj/gitops-engine/pkg/utils/kube"
	"github.com/argoproj/gitops-engine/pkg/utils/tracing"
	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// Two objects of etcd.
	maxLineBytes = 4 << 20
	// Argo CD's field manager.
	manager = "argocd-controller"
)

type pair struct {
	Config json.RawMessage `json:"config"`
	Live   json.RawMessage `json:"live"`
}

func main() {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	check(err)
	kubectl := kube.KubectlCmd{Log: logr.Discard(), Tracer: tracing.NopTracer{}}
	_, parser, err := kubectl.LoadOpenAPISchema(config)
	check(err)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, maxLineBytes)
	output := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var one pair
		check(json.Unmarshal(lines.Bytes(), &one))
		wanted, live := &unstructured.Unstructured{}, &unstructured.Unstructured{}
		check(wanted.UnmarshalJSON(one.Config))
		check(live.UnmarshalJSON(one.Live))
		client, err := diff.Diff(wanted.DeepCopy(), live.DeepCopy(), diff.WithLogr(logr.Discard()))
		check(err)
		structured, err := diff.Diff(wanted, live, diff.WithLogr(logr.Discard()), diff.WithStructuredMergeDiff(true), diff.WithGVKParser(parser), diff.WithManager(manager))
		check(err)
		check(output.Encode(map[string]bool{"client": client.Modified, "structured": structured.Modified}))
	}
	check(lines.Err())
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "argo-diff:", err)
		os.Exit(1)
	}
}
