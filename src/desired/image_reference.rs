//! The reference of an image: `REPOSITORY[:TAG][@DIGEST]`. Pure.

/// The parts of an image's reference.
pub struct ImageReference<'a> {
    pub repository: &'a str,
    pub tag: Option<&'a str>,
    pub digest: Option<&'a str>,
}

impl<'a> ImageReference<'a> {
    /// Splits a reference such as `registry.example.com/a/b:1@sha256:…`.
    pub fn parse(text: &'a str) -> Self {
        let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
        // A colon before the last slash belongs to the registry's port.
        match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => Self { repository, tag: Some(tag), digest },
            _ => Self { repository: name, tag: None, digest },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_split_into_repository_tag_and_digest() {
        for (text, expected) in [
            ("a", ("a", None, None)),
            ("registry.test:5000/a/b", ("registry.test:5000/a/b", None, None)),
            ("registry.test:5000/a/b:1", ("registry.test:5000/a/b", Some("1"), None)),
            ("a/b:1@sha256:0", ("a/b", Some("1"), Some("sha256:0"))),
            ("a/b@sha256:0", ("a/b", None, Some("sha256:0"))),
        ] {
            let found = ImageReference::parse(text);
            assert_eq!((found.repository, found.tag, found.digest), expected, "{text}");
        }
    }
}
