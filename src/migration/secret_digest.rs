//! Digests of secrets under a key that both clusters' people share: equal secrets have equal digests, and a reader without
//! the key can neither read a secret nor try guesses.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Shortest key, in bytes. A shorter one could be guessed together with a weak secret.
pub const KEY_BYTES_MIN: usize = 16;

/// Hexadecimal digits of a digest: 64 bits, so that two different secrets of a fleet do not meet by chance.
const DIGEST_DIGITS: usize = 16;

/// A key with fewer than [`KEY_BYTES_MIN`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key has {0} bytes, and needs {KEY_BYTES_MIN} at least: write one with `openssl rand -hex 32`")]
pub struct ShortKeyError(usize);

/// Digests secrets under one key.
#[derive(Clone)]
pub struct SecretDigester {
    keyed: Hmac<Sha256>,
}

impl SecretDigester {
    /// Takes the key; blanks around it are those of an editor.
    ///
    /// # Errors
    /// The key is too short.
    pub fn new(key: &str) -> Result<Self, ShortKeyError> {
        let key = key.trim().as_bytes();
        let short = ShortKeyError(key.len());
        if key.len() < KEY_BYTES_MIN {
            return Err(short);
        }
        Ok(Self { keyed: Hmac::new_from_slice(key).map_err(|_| short)? })
    }

    /// Digests a text. The purpose keeps equal texts of two purposes apart.
    #[must_use]
    pub fn digest(&self, purpose: &str, text: &str) -> String {
        let mut digits = self.sign(purpose, text);
        digits.truncate(DIGEST_DIGITS);
        digits
    }

    /// Signs a text, in 64 hexadecimal digits.
    #[must_use]
    pub fn sign(&self, purpose: &str, text: &str) -> String {
        hex::encode(self.keyed_text(purpose, text).finalize().into_bytes())
    }

    /// Whether a text has this signature, compared in constant time.
    #[must_use]
    pub fn is_signature(&self, purpose: &str, text: &str, signature: &str) -> bool {
        let signature = hex::decode(signature).unwrap_or_default();
        self.keyed_text(purpose, text).verify_slice(&signature).is_ok()
    }

    fn keyed_text(&self, purpose: &str, text: &str) -> Hmac<Sha256> {
        let mut keyed = self.keyed.clone();
        keyed.update(purpose.as_bytes());
        keyed.update(b"\0");
        keyed.update(text.as_bytes());
        keyed
    }

    /// Identifies the key: digests under two keys cannot be compared.
    #[must_use]
    pub fn key_id(&self) -> String {
        self.digest("key", "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_depend_on_key_purpose_and_text_and_a_short_key_is_refused() {
        let one = SecretDigester::new("0123456789abcdef\n").expect("a key");
        let two = SecretDigester::new("0123456789abcdeX").expect("a key");
        assert_eq!(one.digest("a", "s"), one.digest("a", "s"));
        let digests = [one.digest("a", "s"), one.digest("b", "s"), one.digest("a", "t"), two.digest("a", "s")];
        assert_eq!(digests.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        assert!(digests.iter().all(|digest| digest.len() == DIGEST_DIGITS));
        assert_ne!(one.key_id(), two.key_id());
        assert_eq!(SecretDigester::new(" 012345678901234 \n").err(), Some(ShortKeyError(15)));
    }
}
