//! Words of a status, each with its meaning: one list for the type, the names and the documentation.

/// Declares an enum of words, with the list of all, and the name and the meaning of each. A word's doc comment is its meaning, in one
/// sentence.
macro_rules! documented_words {
    ($(#[$attribute:meta])* pub enum $words:ident { $($(#[doc = $doc:literal])+ $name:ident),+ $(,)? }) => {
        $(#[$attribute])*
        pub enum $words {
            $($(#[doc = $doc])+ $name),+
        }

        impl $words {
            /// All words, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Meaning of the word in one sentence.
            #[must_use]
            pub fn about(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),+ }
            }

            /// The word as a status has it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }
        }
    };
}

pub(in crate::api) use documented_words;
