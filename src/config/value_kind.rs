//! The form of a variable's value, and when it is required.

/// The form of a variable's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// Any text that is not empty.
    Text,
    /// A whole number within bounds, both included.
    Number(u64, u64),
    /// `ADDRESS:PORT` of a listener.
    Address,
    /// Absolute path of a file or directory.
    Path,
    /// An `http://` or `https://` URL.
    Url,
    /// A comma-separated list of URLs that can stand in a page without escaping, not empty.
    Scripts,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A comma-separated list of these words, not empty.
    Words(&'static [&'static str]),
    /// A comma-separated list of networks in CIDR form.
    Networks,
    /// A comma-separated list of `HOST:PORT`.
    Endpoints,
    /// An IPv4 or IPv6 address.
    Ip,
    /// The name of a host, in which `{pod}` may stand for the pod's.
    Host,
    /// A prefix of public paths, which none of the server's own paths begins with.
    BasePath,
}

/// The condition under which a variable is required.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// Required on every server that reads it.
    Required,
    /// Optional; absent means this value.
    Default(&'static str),
    /// Required exactly when another variable has this value.
    When(&'static str, &'static str),
    /// Required by servers that reach AWS with one of these identities, and refused with any other: the platform injects it into
    /// the pod, or the manifest sets it.
    Identity(&'static [&'static str]),
    /// Read by a library when the platform or the manifest sets it, with one of these identities.
    Optional(&'static [&'static str]),
}
