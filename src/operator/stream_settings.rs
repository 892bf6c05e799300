//! The settings of the connection to the stream of a cluster. Pure.

use crate::desired::{AwsIdentity, SecretTexts, ValidStream};
use crate::kinesis::{AwsCredentials, StreamSettings};

/// Builds the settings with the static keys of the cluster, or with the credentials of this process.
///
/// # Errors
/// The Secret with the static keys is missing or lacks one of them: its name.
pub fn build_stream_settings<'a>(stream: &'a ValidStream, secrets: &SecretTexts) -> Result<StreamSettings, &'a str> {
    let credentials = match &stream.identity {
        AwsIdentity::StaticKeys(name) => {
            let text = |key: &str| secrets.get(name).and_then(|texts| texts.get(key)).cloned();
            let (Some(access_key_id), Some(secret_access_key)) = (text("accessKeyID"), text("secretAccessKey")) else {
                return Err(name);
            };
            AwsCredentials::Static { access_key_id, secret_access_key }
        }
        AwsIdentity::Irsa(_) | AwsIdentity::PodIdentity | AwsIdentity::WebIdentity(_) | AwsIdentity::NodeRole => {
            AwsCredentials::Chain
        }
    };
    Ok(StreamSettings {
        stream: stream.name.clone(),
        region: stream.region.clone(),
        endpoint: stream.endpoint_url.clone(),
        credentials,
    })
}
