//! The image of the servers and the release that they are rendered for: by the manifest, by the record of the image that
//! the cluster runs, or that of the operator. Pure.

use std::fmt;

use super::image_reference::ImageReference;
use crate::api::cluster::ImageSpec;
use crate::config::Release;

/// Repository of the image while the operator does not know its own.
pub const DEFAULT_REPOSITORY: &str = "realtime-operator/realtime";

/// An image, and the release of the servers in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerImage {
    /// Repository without tag and digest.
    pub repository: String,
    /// Tag of the image.
    pub tag: Option<String>,
    /// Digest of the image.
    pub digest: Option<String>,
    /// Release of the servers.
    pub release: Release,
}

/// The parts of a manifest that choose the image.
#[derive(Clone, Copy, Debug)]
pub struct WantedImage<'a> {
    /// The image, whose unset parts are chosen.
    pub image: &'a ImageSpec,
    /// The release, if the manifest names one.
    pub version: Option<&'a str>,
}

impl ServerImage {
    /// The operator's own image by the reference in its pod, or the default one of its release.
    #[must_use]
    pub fn of_operator(reference: Option<&str>) -> Self {
        let release = Release::own();
        let Some(reference) = reference else {
            let tag = Some(env!("CARGO_PKG_VERSION").to_owned());
            return Self { repository: DEFAULT_REPOSITORY.to_owned(), tag, digest: None, release };
        };
        Self { release, ..Self::of_reference(reference) }
    }

    /// The image of a reference. The release is that of its tag, if the tag is one, and the first one otherwise.
    #[must_use]
    pub fn of_reference(reference: &str) -> Self {
        let parts = ImageReference::parse(reference);
        Self {
            repository: parts.repository.to_owned(),
            tag: parts.tag.map(str::to_owned),
            digest: parts.digest.map(str::to_owned),
            release: parts.tag.and_then(|tag| tag.parse().ok()).unwrap_or(Release::FIRST),
        }
    }

    /// The record of an image in a status; `None` if it is incomplete.
    #[must_use]
    pub fn of_record(image: &ImageSpec, version: &str) -> Option<Self> {
        Some(Self {
            repository: image.repository.clone()?,
            tag: image.tag.clone(),
            digest: image.digest.clone(),
            release: version.parse().ok()?,
        })
    }

    /// The record for a status.
    #[must_use]
    pub fn to_record(&self) -> ImageSpec {
        ImageSpec {
            repository: Some(self.repository.clone()),
            tag: self.tag.clone(),
            digest: self.digest.clone(),
            ..ImageSpec::default()
        }
    }

    /// Chooses the image of a cluster: a part that the manifest does not write is that of the recorded image, so that an
    /// upgrade of the operator changes no pod, and that of the operator for a new cluster.
    ///
    /// # Errors
    /// The release is one that this operator cannot render, as a clause with the remedy.
    pub fn choose(wanted: WantedImage<'_>, recorded: Option<&Self>, own: &Self) -> Result<Self, String> {
        let WantedImage { image, version } = wanted;
        let known = recorded.unwrap_or(own);
        let repository = image.repository.clone().unwrap_or_else(|| known.repository.clone());
        let version: Option<Release> = version.map(str::parse).transpose()?;
        if image.tag.is_some() || image.digest.is_some() {
            // A digest identifies the image without its tag.
            let tag = image.tag.clone().filter(|_| image.digest.is_none());
            let chosen = Self { repository, tag, digest: image.digest.clone(), release: known.release };
            let tagged = || image.tag.as_ref().and_then(|tag| tag.parse::<Release>().ok());
            let same = || recorded.filter(|known| known.to_string() == chosen.to_string()).map(|known| known.release);
            // The tags of a mirror may be other numbers than releases.
            let release = version.or_else(same).or_else(|| tagged().map(|release| release.min(own.release)));
            return Self { release: release.unwrap_or(own.release), ..chosen }.ensure_supported(own);
        }
        let source = match version {
            None => known,
            Some(version) if recorded.is_some_and(|known| known.release == version) => known,
            Some(version) if version == own.release => own,
            Some(version) => {
                let tagged = Self { repository, tag: Some(version.to_string()), digest: None, release: version };
                return tagged.ensure_supported(own);
            }
        };
        Self { repository, ..source.clone() }.ensure_supported(own)
    }

    fn ensure_supported(self, own: &Self) -> Result<Self, String> {
        if self.release > own.release {
            return Err(format!(
                "is {}, and this operator is {}: upgrade the operator first, or write an older release",
                self.release, own.release
            ));
        }
        if self.release < Release::FIRST {
            return Err(format!("is {}: write {} or a later release", self.release, Release::FIRST));
        }
        Ok(self)
    }
}

impl fmt::Display for ServerImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(reference: &str, release: &str) -> ServerImage {
        ServerImage { release: release.parse().expect("a release"), ..ServerImage::of_reference(reference) }
    }

    /// Manifest (repository, tag, digest, version), the recorded image, and the chosen reference and release.
    type ImageCase<'a> =
        (&'a str, [Option<&'a str>; 4], Option<(&'a str, &'a str)>, Result<(&'a str, &'a str), &'a str>);

    #[test]
    fn an_upgrade_of_the_operator_changes_no_image_and_the_manifest_does() {
        let own = image("reg.test/realtime:0.3.0@sha256:3", "0.3.0");
        let before = Some(("reg.test/realtime:0.2.0@sha256:2", "0.2.0"));
        let cases: [ImageCase<'_>; 14] = [
            (
                "a new cluster runs the operator's image",
                [None; 4],
                None,
                Ok(("reg.test/realtime:0.3.0@sha256:3", "0.3.0")),
            ),
            (
                "an upgraded operator changes nothing",
                [None; 4],
                before,
                Ok(("reg.test/realtime:0.2.0@sha256:2", "0.2.0")),
            ),
            (
                "the version moves it",
                [None, None, None, Some("0.3.0")],
                before,
                Ok(("reg.test/realtime:0.3.0@sha256:3", "0.3.0")),
            ),
            (
                "the recorded version is the recorded image",
                [None, None, None, Some("0.2.0")],
                before,
                Ok(("reg.test/realtime:0.2.0@sha256:2", "0.2.0")),
            ),
            (
                "an older version is a tag",
                [None, None, None, Some("0.1.0")],
                before,
                Ok(("reg.test/realtime:0.1.0", "0.1.0")),
            ),
            (
                "a newer one than the operator's",
                [None, None, None, Some("0.4.0")],
                before,
                Err("upgrade the operator first"),
            ),
            ("one before the first", [None, None, None, Some("0.0.9")], before, Err("write 0.1.0 or a later release")),
            (
                "a mirror has the recorded tag and digest",
                [Some("mirror.test/r"), None, None, None],
                before,
                Ok(("mirror.test/r:0.2.0@sha256:2", "0.2.0")),
            ),
            (
                "a tag that is a release",
                [None, Some("0.1.0"), None, None],
                before,
                Ok(("reg.test/realtime:0.1.0", "0.1.0")),
            ),
            (
                "a tag of a mirror's own",
                [None, Some("2026.11.1"), None, None],
                before,
                Ok(("reg.test/realtime:2026.11.1", "0.3.0")),
            ),
            (
                "a tag with its release",
                [None, Some("stable"), None, Some("0.2.0")],
                None,
                Ok(("reg.test/realtime:stable", "0.2.0")),
            ),
            (
                "a recorded tag keeps its release",
                [None, Some("stable"), None, None],
                Some(("reg.test/realtime:stable", "0.2.0")),
                Ok(("reg.test/realtime:stable", "0.2.0")),
            ),
            (
                "a digest goes before a tag",
                [None, Some("0.1.0"), Some("sha256:9"), None],
                None,
                Ok(("reg.test/realtime@sha256:9", "0.1.0")),
            ),
            (
                "an operator that was downgraded",
                [None; 4],
                Some(("reg.test/realtime:0.4.0", "0.4.0")),
                Err("upgrade the operator first"),
            ),
        ];
        for (name, [repository, tag, digest, version], recorded, expected) in cases {
            let [repository, tag, digest] = [repository, tag, digest].map(|part| part.map(str::to_owned));
            let spec = ImageSpec { repository, tag, digest, ..ImageSpec::default() };
            let recorded = recorded.map(|(reference, release)| image(reference, release));
            let found = ServerImage::choose(WantedImage { image: &spec, version }, recorded.as_ref(), &own);
            match (found, expected) {
                (Ok(found), Ok((reference, release))) => {
                    assert_eq!(
                        (found.to_string().as_str(), found.release.to_string().as_str()),
                        (reference, release),
                        "{name}"
                    );
                }
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{name}: {found}"),
                (found, expected) => panic!("{name}: {found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn a_record_is_read_back_as_it_was_written() {
        let written = image("reg.test:5000/realtime:0.2.0@sha256:2", "0.2.0");
        let read = ServerImage::of_record(&written.to_record(), &written.release.to_string());
        assert_eq!(read, Some(written));
        assert_eq!(ServerImage::of_record(&ImageSpec::default(), "0.2.0"), None);
        let own = ServerImage::of_operator(None);
        assert_eq!(own.to_string(), format!("{DEFAULT_REPOSITORY}:{}", env!("CARGO_PKG_VERSION")));
    }
}
