//! The clusters that share the channels of a bus.

/// The cluster of a process, and the group of clusters with which it shares channels, presence, limits and order.
///
/// Sessions of the HTTP fallbacks are found over the whole group, and relayed within the cluster only: the networks of
/// two clusters need not reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusScope<'a> {
    /// UID of the process's own cluster.
    pub cluster: &'a str,
    /// Name of the group; empty for the cluster alone.
    pub group: &'a str,
}

impl BusScope<'_> {
    /// The part of key names that the members of the group share. The dot keeps a group apart from every UID.
    pub(super) fn shared_key(&self) -> String {
        if self.group.is_empty() { self.cluster.to_owned() } else { format!("group.{}", self.group) }
    }
}

impl<'a> From<&'a str> for BusScope<'a> {
    fn from(cluster: &'a str) -> Self {
        Self { cluster, group: "" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_the_key_of_no_cluster() {
        let scope = |cluster, group| BusScope { cluster, group }.shared_key();
        assert_eq!(scope("1a2b-3c", ""), "1a2b-3c");
        assert_eq!(scope("1a2b-3c", "fleet"), scope("4d5e-6f", "fleet"));
        assert_ne!(scope("1a2b-3c", "1a2b-3c"), scope("1a2b-3c", ""));
    }
}
