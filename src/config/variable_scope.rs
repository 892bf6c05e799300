//! Whether two clusters that serve the same apps should have the same value of a variable.

use super::VariableKey;

impl VariableKey {
    /// Whether clusters that serve the same apps have the same value; otherwise each has its own, such as its name, its
    /// stream or its credentials. A match without a wildcard, so that no variable is forgotten.
    #[must_use]
    pub const fn is_fleet_wide(self) -> bool {
        match self {
            Self::Admission
            | Self::Log
            | Self::Transports
            | Self::ActivityTimeoutSeconds
            | Self::KeepAliveSeconds
            | Self::BasePath
            | Self::MetricsApps
            | Self::SockjsScripts
            | Self::SockjsCookie
            | Self::Webhooks
            | Self::Bus
            | Self::BusGroup
            | Self::RedisUrl
            | Self::RetryWindowSeconds
            | Self::MaxBackoffSeconds => true,
            Self::Cluster
            | Self::ClusterUid
            | Self::Server
            | Self::Pod
            | Self::AdminAddress
            | Self::AdminToken
            | Self::AppsPath
            | Self::AnnotationsPath
            | Self::PublicAddress
            | Self::TrustedProxies
            | Self::ProxyProtocol
            | Self::PeerAddress
            | Self::PodIp
            | Self::PeerSecret
            | Self::SessionHost
            | Self::DrainHoldSeconds
            | Self::DrainWindowSeconds
            | Self::StreamName
            | Self::StreamStartMs
            | Self::DeadLetterStream
            | Self::RedisCa
            | Self::Leases
            | Self::AllowedNetworks
            | Self::AllowedEndpoints
            | Self::ConnectionsMax
            | Self::AwsIdentity
            | Self::AwsRegion
            | Self::AwsEndpointUrlKinesis
            | Self::AwsEc2MetadataDisabled
            | Self::AwsRoleArn
            | Self::AwsWebIdentityTokenFile
            | Self::AwsStsRegionalEndpoints
            | Self::AwsDefaultRegion
            | Self::AwsContainerCredentialsFullUri
            | Self::AwsContainerAuthorizationTokenFile
            | Self::AwsAccessKeyId
            | Self::AwsSecretAccessKey => false,
        }
    }
}
