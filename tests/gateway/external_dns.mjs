// The real external-dns, on a double of Route 53.
import { KUBECONFIG, start, wait } from "../cluster/harness.mjs";
import { bareEnvironment } from "./front.mjs";

/** Starts external-dns for the hosts of a domain in these sources of a cluster; it ends with the test. */
export function startExternalDns(route53, domain, sources, kubeconfig = KUBECONFIG) {
  const env = bareEnvironment({
    AWS_ACCESS_KEY_ID: "test", AWS_SECRET_ACCESS_KEY: "test", AWS_REGION: "us-east-1", AWS_EC2_METADATA_DISABLED: "true", AWS_ENDPOINT_URL_ROUTE_53: route53.url,
  });
  return start("external-dns", process.env.EXTERNAL_DNS, [
    `--kubeconfig=${kubeconfig}`, ...sources.map((source) => `--source=${source}`), "--provider=aws", "--registry=txt", "--txt-owner-id=tests", "--txt-prefix=owner-",
    `--domain-filter=${domain}`, "--policy=sync", "--interval=2s", "--aws-batch-change-interval=0s", "--metrics-address=127.0.0.1:0",
  ], { env });
}

/** Waits for so many whole syncs from now on. */
export async function synced(route53, count) {
  const begun = route53.reads();
  await wait(() => route53.reads() > begun + count, { what: `${count} syncs of external-dns` });
}
