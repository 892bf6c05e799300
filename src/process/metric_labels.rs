//! The labels of metrics. Their values come from enums, so that no client or channel can create a series; the number of
//! series per app is bounded.
//!
//! The derives of `prometheus-client` write the names of variants, in camel case; [`label_values`] writes words in snake
//! case.

use std::fmt;
use std::hash::Hash;

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};

/// The values of one label.
pub trait LabelValue: Copy + Eq + Hash + fmt::Debug + Send + Sync + 'static {
    /// The name of the label.
    const LABEL: &'static str;
    /// Every value, in the order of the documentation.
    const ALL: &'static [Self];

    /// The value in a series.
    fn name(self) -> &'static str;

    /// The meaning of the value in one sentence; empty if its name says it.
    fn meaning(self) -> &'static str {
        ""
    }
}

/// Declares an enum of label values: the comment of a variant is the value's meaning in the documentation.
macro_rules! label_values {
    (
        $(#[doc = $about:literal])+
        $visibility:vis enum $name:ident as $label:literal {
            $($(#[doc = $meaning:literal])+ $variant:ident = $word:literal,)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $visibility enum $name {
            $($(#[doc = $meaning])+ $variant,)+
        }

        impl $crate::process::metrics::LabelValue for $name {
            const LABEL: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($meaning),+).trim_ascii()),+ }
            }
        }
    };
}
pub(crate) use label_values;

/// A label with all its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricLabel {
    /// The name of the label.
    pub name: &'static str,
    /// Every value with its meaning; empty for ids of apps, and for the namespaces and names of clusters.
    pub values: Vec<(&'static str, &'static str)>,
}

/// The labels of a series: one label, or two or three as a tuple.
pub trait SeriesLabels: Copy + Eq + Hash + fmt::Debug + Send + Sync + 'static {
    /// The values of every series.
    fn all() -> Vec<Self>;

    /// Names and values, in the order of the labels.
    fn pairs(self) -> Vec<(&'static str, &'static str)>;

    /// The labels with all their values.
    fn labels() -> Vec<MetricLabel>;
}

impl<L: LabelValue> SeriesLabels for L {
    fn all() -> Vec<Self> {
        L::ALL.to_vec()
    }

    fn pairs(self) -> Vec<(&'static str, &'static str)> {
        vec![(L::LABEL, self.name())]
    }

    fn labels() -> Vec<MetricLabel> {
        let values = L::ALL.iter().map(|value| (value.name(), value.meaning())).collect();
        vec![MetricLabel { name: L::LABEL, values }]
    }
}

impl<A: LabelValue, B: LabelValue> SeriesLabels for (A, B) {
    fn all() -> Vec<Self> {
        A::ALL.iter().flat_map(|first| B::ALL.iter().map(|second| (*first, *second))).collect()
    }

    fn pairs(self) -> Vec<(&'static str, &'static str)> {
        [self.0.pairs(), self.1.pairs()].concat()
    }

    fn labels() -> Vec<MetricLabel> {
        [A::labels(), B::labels()].concat()
    }
}

impl<A: LabelValue, B: LabelValue, C: LabelValue> SeriesLabels for (A, B, C) {
    fn all() -> Vec<Self> {
        let pairs = <(A, B)>::all().into_iter();
        pairs.flat_map(|(first, second)| C::ALL.iter().map(move |third| (first, second, *third))).collect()
    }

    fn pairs(self) -> Vec<(&'static str, &'static str)> {
        [self.0.pairs(), self.1.pairs(), self.2.pairs()].concat()
    }

    fn labels() -> Vec<MetricLabel> {
        [A::labels(), B::labels(), C::labels()].concat()
    }
}

/// The label set of one series.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LabelSet<L>(pub(super) L);

impl<L: SeriesLabels> EncodeLabelSet for LabelSet<L> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        self.0.pairs().encode(encoder)
    }
}
