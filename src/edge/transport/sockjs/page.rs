//! The iframe page: a page of this origin that loads the client's script.
//!
//! `js_path` in the query is chosen by whoever made the link, so a script is loaded only when an operator listed it to
//! the letter. The content of the page comes from that list, never from the request, and a policy lets nothing else run.

use bytes::Bytes;
use md5::{Digest, Md5};
use url::form_urlencoded;

use crate::protocol::sockjs::iframe_page;

/// The digest of the page's inline script.
const INLINE_SCRIPT_DIGEST: &str = "sha256-lYmFXEsqdsgpRcqXPmVFJyV4CiaTNuS5IK/HjT7/fdk=";

/// A page for one script.
#[derive(Clone, Debug)]
pub struct IframePage {
    script: String,
    /// The HTML of the page.
    pub body: Bytes,
    /// The digest of the page, in quotes.
    pub tag: String,
    /// The content security policy of the page.
    pub policy: String,
}

/// One page per listed script.
pub struct IframePages(Vec<IframePage>);

impl IframePages {
    /// Builds the pages of these scripts, the default one first.
    pub fn new<'a>(scripts: impl Iterator<Item = &'a str>) -> Self {
        Self(scripts.map(IframePage::new).collect())
    }

    /// Returns the page that a query asks for; `None` for a script that is not listed.
    pub fn find_by_query(&self, query: &str) -> Option<&IframePage> {
        match form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "js_path") {
            Some((_, wanted)) => self.0.iter().find(|page| page.script == wanted),
            None => self.0.first(),
        }
    }
}

impl IframePage {
    fn new(script: &str) -> Self {
        let body = iframe_page(script);
        let tag = format!("\"{}\"", hex::encode(Md5::digest(&body)));
        // The page reaches this origin only, by requests and frames; any page may embed it.
        let policy = format!(
            "default-src 'none'; script-src {script} '{INLINE_SCRIPT_DIGEST}'; connect-src 'self'; frame-src 'self'; \
             form-action 'self'; base-uri 'none'"
        );
        Self { script: script.to_owned(), body: body.into(), tag, policy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::sockjs::IFRAME_SCRIPT;
    use sha2::Sha256;

    fn encode_base64(bytes: &[u8]) -> String {
        const BASE64_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let bits =
                chunk.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte)) << (8 * (3 - chunk.len()));
            for n in 0..=chunk.len() {
                text.push(char::from(BASE64_ALPHABET[bits >> (18 - 6 * n) & 63]));
            }
            text.push_str(&"=".repeat(3 - chunk.len()));
        }
        text
    }

    #[test]
    fn the_policy_knows_the_script_in_the_page() {
        assert_eq!(INLINE_SCRIPT_DIGEST, format!("sha256-{}", encode_base64(&Sha256::digest(IFRAME_SCRIPT))));
        assert!(iframe_page("x").contains(&format!("<script>{IFRAME_SCRIPT}</script>")));
    }

    #[test]
    fn a_script_is_loaded_only_when_it_is_listed_to_the_letter() {
        let pages = IframePages::new(["https://a/s.js", "https://b/s.js?v=1"].into_iter());
        for (query, found) in [
            ("", Some("https://a/s.js")),
            ("t=123", Some("https://a/s.js")),
            ("js_path=https%3A%2F%2Fb%2Fs.js%3Fv%3D1", Some("https://b/s.js?v=1")),
            ("js_path=https://a/s.js&js_path=https://evil/", Some("https://a/s.js")),
            ("js_path=https://evil/&js_path=https://a/s.js", None),
            ("js_path=https://A/s.js", None),
            ("js_path=https://a/s.js%20", None),
            ("js_path=https://a/s.js%23", None),
            ("js_path=", None),
            ("js_path", None),
        ] {
            assert_eq!(pages.find_by_query(query).map(|page| page.script.as_str()), found, "{query}");
        }
    }

    #[test]
    fn each_page_has_a_digest_and_a_policy_of_its_own() {
        let pages = IframePages::new(["https://a/s.js", "https://b/s.js"].into_iter());
        assert_ne!(pages.0[0].tag, pages.0[1].tag);
        assert!(pages.0[0].policy.contains("script-src https://a/s.js 'sha256-"));
        assert!(!pages.0[0].policy.contains("https://b/"));
    }
}
