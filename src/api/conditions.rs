//! Types and reasons of conditions. A test keeps `docs/reasons.md` complete.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

use super::documented_words::documented_words;
use super::migration::obstacles_table;

documented_words! {
    /// Reason of a condition: one stable word for users, alerts and programs.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
    pub enum Reason {
        /// Every dimension is proven on this fingerprint.
        Proven,
        /// Webhooks are off by the manifest; hops 1 to 6 are proven.
        ReadyWithoutWebhooks,
        /// The first proof is in progress.
        Proving,
        /// The edge accepts no connection.
        EdgeUnreachable,
        /// The transport's own handshake failed.
        HandshakeRejected,
        /// The connection was not established for the app's key.
        SessionRefused,
        /// A signed subscription was refused or not answered.
        SubscribeRejected,
        /// A client event was refused.
        PublishRejected,
        /// A send reached a server that does not know the session.
        AffinityBroken,
        /// Another session did not get the event.
        FanoutBroken,
        /// The event did not reach the stream, and no component reported an error.
        RecordMissing,
        /// The stream refused the event.
        RecordRefused,
        /// Events of an app are due, and the stream acknowledges none of them, although journeys pass.
        Silent,
        /// The event is in the stream and its shard is not read.
        DispatcherStuck,
        /// The event was read and no webhook arrived.
        WebhookMissing,
        /// A webhook arrived whose signature does not verify.
        SignatureInvalid,
        /// A webhook arrived whose content differs from the event.
        PayloadWrong,
        /// No webhook reported that the channel was vacated.
        VacatedMissing,
        /// A record that no dispatcher can parse was read, and no dead letter of it was written.
        DeadLetterBroken,
        /// The gate passed a journey that it must refuse.
        GateBroken,
        /// A server runs a configuration that differs from the rendered one.
        ConfigurationDrift,
        /// A server refused its configuration.
        ConfigurationRefused,
        /// EKS injected no AWS identity into a new pod.
        IdentityNotInjected,
        /// A server has an app that differs from the rendered one.
        AppsInconsistent,
        /// A server's clock is off by more than 30 s.
        ClockSkew,
        /// A transport, a shard or a server has no pod.
        NoPods,
        /// The stream does not exist.
        StreamMissing,
        /// The stream is being created.
        StreamCreating,
        /// The stream exists, and the cluster owns or observes it.
        StreamActive,
        /// The stream can be used, and a setting of it differs from the manifest.
        StreamDiffers,
        /// The stream waits until AWS allows a further change or a further stream.
        WaitingForQuota,
        /// The stream is being deleted, by somebody else.
        StreamDeleting,
        /// The KMS key of the stream does not exist, is disabled, or may not be used.
        StreamKeyUnusable,
        /// A stream of the wanted name belongs to another owner, and was not changed.
        StreamNotOurs,
        /// Kinesis refuses the stream as it is specified.
        StreamInvalid,
        /// Kinesis does not answer.
        StreamUnreachable,
        /// The operator's identity lacks a permission.
        AccessDenied,
        /// Every child is applied and up to date.
        Applied,
        /// An object of a child's name belongs to another owner, and was not changed.
        ChildNotOurs,
        /// A Secret that the manifest references does not exist, or lacks the key.
        SecretMissing,
        /// The manifest contradicts itself in a way that the schema cannot express.
        SpecInvalid,
        /// The manifest names an image, an endpoint, a region or a role that the platform policy does not allow in its
        /// namespace.
        NotAllowedByPolicy,
        /// The API server refused an object.
        ApplyFailed,
        /// Pods of the rendered template are still starting.
        RollingOut,
        /// Every load balancer, Ingress and route has an address or a Gateway.
        AddressPublished,
        /// A load balancer, Ingress or route has no address, or no Gateway, yet.
        LoadBalancerPending,
        /// The API server lacks a kind that the entrance needs, or refuses the object.
        ExposureUnavailable,
        /// A pod behind a load balancer has no readiness gate of its controller; all else about the entrance is in order.
        ReadinessGateMissing,
        /// Another cluster answers at the address of this cluster's load balancer.
        WrongCluster,
        /// The certificate at a load balancer does not cover the host, is not valid now, or is of an unknown authority.
        CertificateInvalid,
        /// The load balancers take no connection from the operator, while pods and Services work.
        NotReachableFromHere,
        /// The manifest switches the journeys through load balancers off.
        ExternalDisabled,
        /// The app is served.
        AppAccepted,
        /// Another app has this id or key.
        KeyConflict,
        /// A field or a Secret of the app is missing or invalid.
        AppInvalid,
        /// A Secret that is not ours has the name of the one for the app's generated credentials, and was not changed.
        CredentialsNotOurs,
        /// A cluster sends no webhook to an endpoint of the app, by scheme, port, address or headers; its clients are served.
        EndpointNotAllowed,
        /// No cluster serves the app.
        NoCluster,
        /// Some pods do not have the latest registry yet.
        AppsStale,
        /// The proof is too old to be trusted.
        EvidenceStale,
        /// The proof did not complete within the gate's deadline.
        DeadlineExceeded,
        /// The cluster is being deleted.
        Deleting,
        /// A pod was admitted because its configuration was proven before, while the path behind the edges fails for all.
        AdmittedOnRecord,
        /// Journeys run at a longer interval than the manifest's, above five minutes: the clusters of an operator share its pace.
        IntervalStretched,
        /// The operator's own code failed at this object; other objects go on.
        OperatorFault,
        /// This version of the operator cannot read the object, and does not act on it; other objects go on.
        VersionUnsupported,
        /// Nothing is created or changed, because the manifest says `suspend: true`.
        Suspended,
        /// The operator of a move's target reports, by the copy of its snapshot at the source.
        TargetReports,
        /// The operator of a move's target, or the copy of its snapshots, has stopped: the latest one is older than six minutes.
        TargetSilent,
        /// No snapshot of a move's target can be used at the source.
        TargetUnread,
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The types of conditions.
pub mod condition {
    /// Whether the cluster is operational: the only condition to wait for.
    pub const READY: &str = "Ready";
    /// Present while a change or a proof is in progress.
    pub const RECONCILING: &str = "Reconciling";
    /// Present while only a user can fix the cluster.
    pub const STALLED: &str = "Stalled";
    /// Whether the stream exists and this cluster owns or observes it.
    pub const STREAM_READY: &str = "StreamReady";
    /// Whether the dead-letter stream exists and this cluster owns or observes it; present while the manifest asks for one. Not part of
    /// Ready, which asks for the letter of a test record instead.
    pub const DEAD_LETTER_READY: &str = "DeadLetterReady";
    /// Whether every child is applied and every pod has the rendered template and is ready.
    pub const WORKLOADS_AVAILABLE: &str = "WorkloadsAvailable";
    /// Whether every load balancer, Ingress and route is there and has an address; present while the manifest asks for one. Not
    /// part of Ready: journeys enter the cluster behind it.
    pub const EXPOSED: &str = "Exposed";
    /// Whether the registry with every app was pushed to every pod.
    pub const APPS_SYNCED: &str = "AppsSynced";
    /// Whether journeys through the published addresses of the load balancers pass, by the hosts; present while the manifest has such a
    /// load balancer.
    pub const EXTERNAL_PATH_PROVEN: &str = "ExternalPathProven";
    /// Whether journeys prove the delivery of webhooks.
    pub const WEBHOOKS_DELIVERED: &str = "WebhooksDelivered";
    /// Whether webhooks are enabled in the manifest.
    pub const WEBHOOKS_ENABLED: &str = "WebhooksEnabled";
    /// Whether the operator's own calls to the API server and to AWS succeed. A failed one is no finding about the cluster.
    pub const OPERATOR_HEALTHY: &str = "OperatorHealthy";
    /// Present while the manifest says `suspend: true`: changes wait. Its transition time is the start of the suspension.
    pub const SUSPENDED: &str = "Suspended";
    /// On the source of a move: whether the operator of the target reports; present while the cluster names the copy of its snapshot.
    /// Not part of Ready: the source serves its clients whatever happens at the target.
    pub const TARGET_REPORTING: &str = "TargetReporting";
    /// On an app: whether every cluster of its namespace accepts it.
    pub const ACCEPTED: &str = "Accepted";
}

/// Renders `docs/reasons.md`: every reason with its meaning and its remedy.
#[must_use]
pub fn reasons_page() -> String {
    let mut page = String::from(
        "<!-- Generated by `realtime reasons`; a test compares. -->\n\
         # Reasons\n\n\
         Why a cluster is, or is not, Ready. The message of the condition names transport, hop, pod and, if a variable is the\n\
         cause, the variable with its rendered and its actual value.\n\n\
         | reason | meaning | remedy |\n|---|---|---|\n",
    );
    for reason in Reason::ALL {
        // Writing to a String cannot fail.
        let _ = writeln!(page, "| `{reason}` | {} | {} |", reason.about(), reason.remedy());
    }
    page.push_str(
        "\n## Before the first record of a move\n\n\
         The message of a `RealtimeMigration` whose reason is `PreflightFailed` begins with one of these words.\n\n",
    );
    page.push_str(&obstacles_table());
    page
}

impl Reason {
    /// The reason of that name, as written into conditions.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.name() == name)
    }

    /// Whether the operator's own call failed, so that nothing is known about the cluster.
    #[must_use]
    pub fn is_operator_call(self) -> bool {
        matches!(self, Self::ApplyFailed | Self::AccessDenied | Self::StreamUnreachable | Self::OperatorFault)
    }

    /// Status of a condition that a failure with this reason sets: Unknown if the operator's own call failed, False
    /// otherwise. A denied call is False too, because an administrator must grant the permission.
    #[must_use]
    pub fn failure_status(self) -> &'static str {
        if self.is_operator_call() && self != Self::AccessDenied { "Unknown" } else { "False" }
    }

    /// The user's remedy in one sentence.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Proven
            | Self::Proving
            | Self::StreamCreating
            | Self::StreamActive
            | Self::Applied
            | Self::AddressPublished
            | Self::AppAccepted
            | Self::TargetReports
            | Self::Deleting => "Nothing.",
            Self::ReadyWithoutWebhooks => "Nothing, if this is intended; otherwise set `webhooks.mode: Kinesis`.",
            Self::EdgeUnreachable => {
                "Check that the pod named runs and listens. In a namespace whose NetworkPolicies isolate pods, apply the one that \
                 `realtime check FILE` prints."
            }
            Self::HandshakeRejected => {
                "Find a proxy that answers instead of the server, buffers, or refuses the upgrade."
            }
            Self::SessionRefused => "Compare the app's key at the server with the registry.",
            Self::SubscribeRejected => "Compare the app's secret at the edge with the registry.",
            Self::PublishRejected => "Read the edge's answer in the message: client events or a limit of the app.",
            Self::AffinityBroken => "Route requests of one session to the pod that owns it.",
            Self::FanoutBroken => {
                "Check the bus: its address, its credentials, and that every pod uses the bus of the same cluster or group."
            }
            Self::RecordMissing => {
                "Check that the edge writes: `REALTIME_WEBHOOKS`, the stream's name, a proxy in between."
            }
            Self::RecordRefused => "Read the stream's error in the message: name, region, permission or throughput.",
            Self::Silent => {
                "Read `recorder.lastError` in `/flow` of the pod named: the stream refuses the app's records. Without an error, \
                 delete the pod."
            }
            Self::DispatcherStuck => "Check that a dispatcher holds the shard named and reads this stream.",
            Self::WebhookMissing => {
                "Read the dispatcher's last error: resolving, connecting, or the endpoint's answer."
            }
            Self::SignatureInvalid => "Compare the app's secret at the dispatcher with the registry.",
            Self::PayloadWrong => "Compare the releases of edge and dispatcher.",
            Self::VacatedMissing => "Check the dispatcher's debounce and the clock of the edge.",
            Self::DeadLetterBroken => {
                "Read the message: create the dead-letter stream, correct its name, or allow `kinesis:PutRecords` on it to the dispatchers."
            }
            Self::GateBroken => "Restart the operator; report it if it comes again.",
            Self::ConfigurationDrift => {
                "Revert the change of the variable named: a manual edit, a policy, or an injector."
            }
            Self::ConfigurationRefused => "Follow the server's message: it names the variable and the remedy.",
            Self::IdentityNotInjected => {
                "Run the command in the message; the pods are replaced, at most five minutes later, without a further step."
            }
            Self::AppsInconsistent => "Find out why the server named has another copy of the registry.",
            Self::ClockSkew => "Set the clock of the node.",
            Self::NoPods => "Scale up the server without a pod, or find out why its pods do not start.",
            Self::StreamMissing
            | Self::StreamDiffers
            | Self::WaitingForQuota
            | Self::StreamDeleting
            | Self::StreamKeyUnusable
            | Self::StreamNotOurs
            | Self::StreamInvalid
            | Self::StreamUnreachable => self.stream_remedy(),
            Self::AccessDenied => "Grant the operator's identity the permission that the message names.",
            Self::ChildNotOurs => "Rename or delete the object named, or rename the cluster.",
            Self::SecretMissing => "Create the Secret with the key named; no restart is needed.",
            Self::SpecInvalid => "Correct the field named.",
            Self::NotAllowedByPolicy => "Write an allowed value, or extend the operator's platform policy.",
            Self::ApplyFailed => "Read the API server's error: a quota, a policy or a missing permission.",
            Self::RollingOut => "Wait; if it persists, check the newest pod of the Deployment named.",
            Self::LoadBalancerPending
            | Self::ExposureUnavailable
            | Self::ReadinessGateMissing
            | Self::WrongCluster
            | Self::CertificateInvalid
            | Self::NotReachableFromHere
            | Self::ExternalDisabled => self.entrance_remedy(),
            Self::KeyConflict
            | Self::AppInvalid
            | Self::CredentialsNotOurs
            | Self::EndpointNotAllowed
            | Self::NoCluster
            | Self::AppsStale => self.app_remedy(),
            Self::EvidenceStale => "Wait for the next round.",
            Self::DeadlineExceeded => "Read the message: it names the hop that fails.",
            Self::AdmittedOnRecord => "Fix the parts behind the edges; Ready stays False until they work.",
            Self::IntervalStretched => {
                "Raise `--journeys-per-second` of the operator, or `gate.intervalSeconds` of large clusters."
            }
            Self::OperatorFault => {
                "Report the message and the operator's log; the reconcile is repeated with a back-off."
            }
            Self::VersionUnsupported => "Upgrade the operator, or correct the field named.",
            Self::Suspended => "Remove `suspend: true` from the manifest to apply the changes that wait.",
            Self::TargetSilent | Self::TargetUnread => self.target_remedy(),
        }
    }

    /// The remedy for a reason of an app.
    fn app_remedy(self) -> &'static str {
        match self {
            Self::KeyConflict => "Give the younger app another id or key.",
            Self::AppInvalid => "Correct the field named, or the Secret that the message names.",
            Self::CredentialsNotOurs => {
                "Rename or delete the Secret named, or reference a Secret with `key` and `secret` in the app's `credentials`."
            }
            Self::EndpointNotAllowed => {
                "Correct the field named: the URL to https on port 443 or 8443, or its network in `webhooks.allowedNetworks` of \
                 the cluster named; or the Secret of `headersSecretRef`."
            }
            Self::NoCluster => "Create a RealtimeCluster in the app's namespace, or delete the app.",
            Self::AppsStale => "Check the pods named: they read apps from their mounted Secrets.",
            _ => "Nothing.",
        }
    }

    /// The remedy for a reason of the target of a move, at its source.
    fn target_remedy(self) -> &'static str {
        match self {
            Self::TargetSilent => {
                "Start the operator of the target again; otherwise stop external-dns there, and make the change of Route 53 that the \
                 message names: it brings the clients back."
            }
            Self::TargetUnread => {
                "Publish the snapshot at the target, and copy it into the ConfigMap that the annotation names; the message has the obstacle."
            }
            _ => "Nothing.",
        }
    }

    /// The remedy for a reason of an entrance.
    fn entrance_remedy(self) -> &'static str {
        match self {
            Self::LoadBalancerPending => {
                "Wait some minutes; if it persists, read the events of the object named: its controller is missing, or refuses it."
            }
            Self::ExposureUnavailable => {
                "Install the CRDs that the message names, or choose another `expose.controller`; correct what the API server refuses."
            }
            Self::ReadinessGateMissing => {
                "Label the namespace `elbv2.k8s.aws/pod-readiness-gate-inject=enabled`, then restart the pods by the annotation \
                 `realtime-operator.dev/restarted-at`."
            }
            Self::WrongCluster => {
                "Compare the object that the message names with the load balancer, listener or rule that answers for the host."
            }
            Self::CertificateInvalid => {
                "Give the load balancer a certificate for the host named; for an authority of your own, add it to the operator's trust \
                 by `SSL_CERT_FILE`, or write `gate.external: Disabled`."
            }
            Self::NotReachableFromHere => {
                "Allow the address that the message names at the load balancer, or write `gate.external: Disabled`."
            }
            Self::ExternalDisabled => "Nothing, if this is intended; otherwise write `gate.external: Auto`.",
            _ => "Nothing.",
        }
    }

    /// The remedy for a reason of a stream.
    fn stream_remedy(self) -> &'static str {
        match self {
            Self::StreamMissing => "Create the stream, or correct its name.",
            Self::StreamDiffers => {
                "Read `status.stream.pendingSteps`: each has the line to write or the change to make."
            }
            Self::WaitingForQuota => {
                "Nothing, if the message has a time; otherwise have the quota of the account raised."
            }
            Self::StreamDeleting => {
                "Find out who deletes the stream; once it is gone, create it again or choose another name."
            }
            Self::StreamKeyUnusable => {
                "Write a key that exists and is enabled in `webhooks.stream.encryption.kmsKey`, or grant its use."
            }
            Self::StreamNotOurs => {
                "Write `management: Adopt` in `webhooks.stream`, choose another `webhooks.stream.name`, or remove the stream if it \
                 is not needed."
            }
            Self::StreamInvalid => {
                "Correct `webhooks.stream`: its name, or the number of shards; if the endpoint does not support on-demand \
                 streams, write `mode: Provisioned`. The operator's log has Kinesis's own text at level debug."
            }
            Self::StreamUnreachable => {
                "Check the region, the endpoint and the network between the operator and Kinesis."
            }
            _ => "Nothing.",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_meaning_and_a_remedy() {
        for reason in Reason::ALL {
            assert!(reason.about().ends_with('.'), "{reason}");
            assert!(reason.remedy().ends_with(['.', '?']), "{reason}");
        }
    }
}
