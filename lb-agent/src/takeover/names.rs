//! Which chains of iptables are kube-proxy's: its own list of what `kube-proxy --cleanup` removes
//! (`pkg/proxy/iptables/cleanup.go` and `pkg/proxy/ipvs/cleanup.go` of Kubernetes 1.36), and what versions since 1.20
//! made. `KUBE-FIREWALL`, `KUBE-MARK-DROP`, `KUBE-IPTABLES-HINT` and `KUBE-KUBELET-CANARY` are the kubelet's, and other
//! `KUBE-` names belong to others, such as kube-router.

/// The table of kube-proxy's nftables mode.
pub(super) const NFTABLES_TABLE: &str = "kube-proxy";

/// The tables of iptables that kube-proxy has chains in.
pub(super) const IPTABLES_TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// Chains that the rules of base chains lead to.
pub(super) const ENTRIES: [&str; 9] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    // Mode `ipvs`.
    "KUBE-NODE-PORT",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// Chains that they lead to.
pub(super) const INNER: [&str; 4] =
    ["KUBE-MARK-MASQ", "KUBE-PROXY-CANARY", "KUBE-LOAD-BALANCER", "KUBE-SOURCE-RANGES-FIREWALL"];

/// What the names of Services' and endpoints' chains begin with; 16 characters of base 32 follow. `KUBE-XLB-` ended with
/// Kubernetes 1.24.
pub(super) const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"];

/// Marks packets for [`MASQUERADES`], in table nat.
pub(super) const MARKS: &str = "KUBE-MARK-MASQ";
/// Masquerades marked packets.
pub(super) const MASQUERADES: &str = "KUBE-POSTROUTING";

/// Length of the hash in a name (`portProtoHash`).
const HASH: usize = 16;

/// Whether a chain of one of [`IPTABLES_TABLES`] is kube-proxy's.
pub(super) fn is_kube_proxys(chain: &str) -> bool {
    let is_hash = |text: &str| text.len() == HASH && text.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'));
    ENTRIES.contains(&chain)
        || INNER.contains(&chain)
        || PREFIXES.iter().any(|prefix| chain.strip_prefix(prefix).is_some_and(is_hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_chains_are_told_by_prefix_and_hash() {
        for own in ["KUBE-SVC-ERIFXISQEP7F7OF4", "KUBE-SEP-2222222222222222", "KUBE-FW-ABCDEFGHIJKLMNOP"] {
            assert!(is_kube_proxys(own), "{own}");
        }
        for other in ["KUBE-SVC-", "KUBE-SVC-MINE", "KUBE-SVC-erifxisqep7f7of4", "KUBE-SEP-ERIFXISQEP7F7OF4X"] {
            assert!(!is_kube_proxys(other), "{other}");
        }
    }

    #[test]
    fn what_the_kubelet_and_others_made_is_theirs() {
        for other in [
            "KUBE-FIREWALL",
            "KUBE-MARK-DROP",
            "KUBE-IPTABLES-HINT",
            "KUBE-KUBELET-CANARY",
            "KUBE-ROUTER-INPUT",
            "KUBE-POD-FW-ERIFXISQEP7F7OF4",
            "KUBE-NWPLCY-ERIFXISQEP7F7OF4",
            "POSTROUTING",
            "DOCKER",
            "",
        ] {
            assert!(!is_kube_proxys(other), "{other}");
        }
    }
}
