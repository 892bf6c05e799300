//! Errors of calls to Kinesis, classed by their remedy.

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
    /// The message of the service or the network.
    pub message: String,
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
    pub(super) fn new<E, R>(operation: &'static str, stream: &str, region: &str, error: &SdkError<E, R>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        R: std::fmt::Debug + 'static,
    {
        let code = error.code();
        let service_message = error.message().map(str::to_owned);
        let message = service_message.unwrap_or_else(|| match error {
            SdkError::ServiceError(_) => String::new(),
            SdkError::TimeoutError(_) => "no answer in time".to_owned(),
            other => innermost_message(other),
        });
        let class = match (classify_code(code), error) {
            // A missing identity is detected before any request is sent.
            (KinesisErrorClass::Transient, SdkError::DispatchFailure(failure))
                if !failure.is_io() && !failure.is_timeout() =>
            {
                KinesisErrorClass::Denied
            }
            (class, _) => class,
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
    use super::*;

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
}
