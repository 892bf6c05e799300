//! Errors of calls to Kinesis, classed by their remedy.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};

/// The class of an error, by its remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KinesisErrorClass {
    /// The stream does not exist in this region and account: create it, or correct the name.
    NotFound,
    /// The identity may not do this, or there is none: a person must change a policy or a variable.
    Denied,
    /// The rate limit is exceeded: back off and try again.
    Throttled,
    /// Another operation is in progress, or the resource exists: describe it again.
    Busy,
    /// An iterator is too old: get a new one.
    Expired,
    /// The request can never succeed.
    Invalid,
    /// No answer, or a failure of the service: try again.
    Transient,
}

/// A call to Kinesis that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation} on stream {stream} in {region}: {code}{message}")]
pub struct KinesisError {
    /// The API's name of the call.
    pub operation: &'static str,
    /// The name of the stream.
    pub stream: String,
    /// The region of the stream.
    pub region: String,
    /// The class of the error, by its remedy.
    pub class: KinesisErrorClass,
    /// The service's code with `: ` after it, or nothing when the service did not answer.
    pub code: String,
    /// Our own sentence for the code, or the message of the network. The text of the service is not part of it: it can hold
    /// account ids, ARNs and whatever a server at a wrong endpoint answers, and errors are shown in status.
    pub message: String,
}

/// Longest error code that is shown.
const CODE_LEN_MAX: usize = 64;

/// The code, if it is a plain word; a server at a wrong endpoint may answer anything.
pub(super) fn plain_code(code: Option<&str>) -> Option<&str> {
    let is_word = |code: &&str| {
        (1..=CODE_LEN_MAX).contains(&code.len())
            && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.')
    };
    code.filter(is_word)
}

/// States in one sentence what a code of the service means.
pub(super) fn explain_code(code: Option<&str>) -> &'static str {
    match code {
        Some("ResourceNotFoundException") => "there is no such stream in this region and account",
        Some("AccessDeniedException") => {
            "the identity may not make this call: grant it the action, which is in the policy that `realtime iam` prints"
        }
        Some("InvalidSignatureException") => "the signature is wrong: check the secret key and the clock",
        Some("UnrecognizedClientException") => "AWS does not know the access key",
        Some("MissingAuthenticationTokenException") => "the request was not signed",
        Some("ExpiredTokenException") => "the credentials have expired",
        Some(code) if code.starts_with("KMS") => {
            "the KMS key of the stream cannot be used: check the key and its policy"
        }
        Some("ProvisionedThroughputExceededException") => "the shard takes no more records or bytes in this second",
        Some("LimitExceededException") => "a limit of the account is reached: streams, shards, or calls in a second",
        Some("ThrottlingException") => "too many calls in this second",
        Some("ResourceInUseException") => "the stream exists already, or is being changed",
        Some("ExpiredIteratorException") => "the iterator is too old",
        Some("InvalidArgumentException" | "ValidationException" | "SerializationException") => {
            "Kinesis does not accept a value of the request"
        }
        Some("InternalFailure" | "InternalFailureException" | "InternalServerError" | "ServiceUnavailable") => {
            "the service failed"
        }
        Some(_) => "the service refused the call",
        None => "the service refused the call without an error code: check that the endpoint is Kinesis",
    }
}

/// The action that AWS names in a refusal: a call can need another one than its own, as `CreateStream` with tags does. The rest
/// of the text has an account id and ARNs.
fn find_denied_action(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("is not authorized to perform: ")?;
    let action = rest.split_whitespace().next()?;
    let (service, name) = action.split_once(':')?;
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_word(service) && is_word(name) && action.len() <= CODE_LEN_MAX).then_some(action)
}

/// Classes a service's error code, including codes that the SDK's model lacks.
pub(super) fn classify_code(code: Option<&str>) -> KinesisErrorClass {
    match code {
        Some("ResourceNotFoundException") => KinesisErrorClass::NotFound,
        Some(
            "AccessDeniedException"
            | "InvalidSignatureException"
            | "UnrecognizedClientException"
            | "MissingAuthenticationTokenException"
            | "ExpiredTokenException"
            | "KMSAccessDeniedException"
            | "KMSDisabledException"
            | "KMSNotFoundException"
            | "KMSOptInRequired"
            | "KMSInvalidStateException",
        ) => KinesisErrorClass::Denied,
        Some(
            "ProvisionedThroughputExceededException"
            | "LimitExceededException"
            | "ThrottlingException"
            | "KMSThrottlingException",
        ) => KinesisErrorClass::Throttled,
        Some("ResourceInUseException") => KinesisErrorClass::Busy,
        Some("ExpiredIteratorException") => KinesisErrorClass::Expired,
        Some("InvalidArgumentException" | "ValidationException" | "SerializationException") => {
            KinesisErrorClass::Invalid
        }
        _ => KinesisErrorClass::Transient,
    }
}

impl KinesisError {
    /// Whether a quota of the account or of the stream is reached, which time or a person raises.
    #[must_use]
    pub fn is_quota(&self) -> bool {
        self.code.starts_with("LimitExceededException")
    }

    /// Whether the KMS key of the stream is the cause.
    #[must_use]
    pub fn is_key_failure(&self) -> bool {
        self.code.starts_with("KMS")
    }

    pub(super) fn new<E, R>(operation: &'static str, stream: &str, region: &str, error: &SdkError<E, R>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        R: std::fmt::Debug + 'static,
    {
        let code = plain_code(error.code());
        tracing::debug!(operation, stream, region, code, text = innermost_message(error), "call to Kinesis failed");
        let identity = find_identity_failure(error);
        let message = match error {
            SdkError::ServiceError(_) => match error.message().and_then(find_denied_action) {
                Some(action) if code == Some("AccessDeniedException") => format!(
                    "the identity may not make this call: grant it {action}, which is in the policy that `realtime iam` prints"
                ),
                _ => explain_code(code).to_owned(),
            },
            SdkError::TimeoutError(_) => "no answer in time".to_owned(),
            SdkError::ResponseError(_) => "the answer cannot be read: check that the endpoint is Kinesis".to_owned(),
            // The error of a credentials provider can hold the answer of STS.
            SdkError::DispatchFailure(_) if identity == Some(IdentityFailure::Missing) => {
                "no request was sent: there are no AWS credentials, or their configuration is invalid".to_owned()
            }
            SdkError::DispatchFailure(_) if identity == Some(IdentityFailure::Unavailable) => {
                "no request was sent: the AWS credentials provider failed; check the identity's role, its trust policy, and \
                 the network to the provider"
                    .to_owned()
            }
            other => innermost_message(other),
        };
        // Any other failure without an answer of the service counts as an outage.
        let class = match identity {
            Some(IdentityFailure::Missing) => KinesisErrorClass::Denied,
            _ => classify_code(code),
        };
        Self {
            operation,
            stream: stream.to_owned(),
            region: region.to_owned(),
            class,
            code: code.map(|code| format!("{code}: ")).unwrap_or_default(),
            message,
        }
    }
}

/// A failure before any request, because the process has no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IdentityFailure {
    /// Nothing provides credentials, or their configuration is invalid: waiting does not help.
    Missing,
    /// The provider of credentials does not answer, or failed.
    Unavailable,
}

/// Finds the error of a credentials provider in a chain of errors.
fn find_identity_failure(error: &(dyn std::error::Error + 'static)) -> Option<IdentityFailure> {
    let mut chain = std::iter::successors(Some(error), |error| error.source());
    let failure = chain.find_map(|error| error.downcast_ref::<CredentialsError>())?;
    Some(match failure {
        CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_) => {
            IdentityFailure::Missing
        }
        _ => IdentityFailure::Unavailable,
    })
}

/// The innermost message of a chain of errors: the layers around it repeat it in other words.
fn innermost_message(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::{AwsCredentials, KinesisClient, StreamSettings};
    use super::*;
    use crate::protocol::StreamName;

    #[test]
    fn codes_are_classed_by_their_remedy() {
        for (code, expected) in [
            (Some("ResourceNotFoundException"), KinesisErrorClass::NotFound),
            (Some("UnrecognizedClientException"), KinesisErrorClass::Denied),
            (Some("ProvisionedThroughputExceededException"), KinesisErrorClass::Throttled),
            (Some("ResourceInUseException"), KinesisErrorClass::Busy),
            (Some("ExpiredIteratorException"), KinesisErrorClass::Expired),
            (Some("ValidationException"), KinesisErrorClass::Invalid),
            (Some("InternalFailure"), KinesisErrorClass::Transient),
            (None, KinesisErrorClass::Transient),
        ] {
            assert_eq!(classify_code(code), expected, "{code:?}");
        }
    }

    #[tokio::test]
    async fn an_error_has_the_code_and_our_sentence_and_no_text_of_the_service() {
        crate::process::install_tls();
        let secret = "User: arn:aws:iam::123456789012:user/x";
        let refusal = |code: &str| serde_json::json!({ "__type": code, "message": secret }).to_string();
        for (name, status, body, says) in [
            (
                "a code that is known",
                400,
                refusal("AccessDeniedException"),
                "AccessDeniedException: the identity may not make this call: grant it the action, which is in the policy that \
                 `realtime iam` prints",
            ),
            ("a code that is not", 400, refusal("OddException"), "OddException: the service refused the call"),
            (
                "a code that is a text",
                400,
                refusal("account 123456789012 is odd"),
                "without an error code: check that the endpoint is Kinesis",
            ),
            ("another server", 404, format!("<p>{secret}</p>"), "check that the endpoint is Kinesis"),
            ("another server's success", 200, format!("<p>{secret}</p>"), "check that the endpoint is Kinesis"),
        ] {
            let answer = move || async move { (axum::http::StatusCode::from_u16(status).expect("a status"), body) };
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
            let served = tokio::spawn(axum::serve(listener, axum::Router::new().fallback(answer)).into_future());
            let client = KinesisClient::connect(&settings_of(&endpoint)).await;
            let error = client.list_tags().await.expect_err(name).to_string();
            served.abort();
            assert!(error.starts_with("ListTagsForStream on stream s in eu-west-1: "), "{name}: {error}");
            assert!(error.ends_with(says), "{name}: {error}");
            assert!(!error.contains("123456789012"), "{name}: {error}");
        }
    }

    #[test]
    fn a_refusal_of_aws_names_the_action_and_nothing_else_of_its_text() {
        let refusal = |action: &str| {
            format!(
                "User: arn:aws:sts::123456789012:assumed-role/r/s is not authorized to perform: {action} on resource: x"
            )
        };
        for (text, expected) in [
            (refusal("kinesis:AddTagsToStream"), Some("kinesis:AddTagsToStream")),
            (refusal("arn:aws:x"), None),
            (refusal("kinesis:"), None),
            (refusal(&format!("kinesis:{}", "A".repeat(100))), None),
            ("Access denied".to_owned(), None),
        ] {
            assert_eq!(find_denied_action(&text), expected, "{text}");
        }
    }

    fn settings_of(endpoint: &str) -> StreamSettings {
        let (stream, region) = (StreamName("s".to_owned()), "eu-west-1".to_owned());
        let credentials = AwsCredentials::Static { access_key_id: "a".to_owned(), secret_access_key: "b".to_owned() };
        StreamSettings { stream, region, endpoint: Some(endpoint.to_owned()), credentials }
    }

    #[tokio::test]
    async fn only_an_answer_of_the_service_and_a_missing_identity_are_denied() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        crate::process::install_tls();
        for (name, answer) in [
            ("a connection that is closed at once", None),
            ("a connection that is closed within the answer", Some("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")),
            ("an answer that is no HTTP", Some("SSH-2.0-x\r\n")),
            ("a status of 500", Some("HTTP/1.1 500 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
            let served = tokio::spawn(async move {
                while let Ok((mut socket, _)) = listener.accept().await {
                    if let Some(answer) = answer {
                        let _ = socket.read(&mut [0; 4096]).await;
                        let _ = socket.write_all(answer.as_bytes()).await;
                    }
                }
            });
            let client = KinesisClient::connect(&settings_of(&endpoint)).await;
            let error = client.list_tags().await.expect_err(name);
            served.abort();
            assert_eq!(error.class, KinesisErrorClass::Transient, "{name}: {error}");
            assert!(!error.to_string().contains("credentials"), "{name}: {error}");
        }
        let missing = CredentialsError::not_loaded_no_source();
        assert_eq!(find_identity_failure(&missing), Some(IdentityFailure::Missing));
        let slow = CredentialsError::provider_timed_out(std::time::Duration::from_secs(1));
        assert_eq!(find_identity_failure(&slow), Some(IdentityFailure::Unavailable));
        // A port without a listener.
        let client = KinesisClient::connect(&settings_of("http://127.0.0.1:9")).await;
        assert_eq!(client.list_tags().await.expect_err("refused").class, KinesisErrorClass::Transient);
    }
}
