//! Feature gates: which kube-proxy knows, and the one that means something here.
//!
//! What gates depend on is not checked: none of those that depend on another changes anything here.

/// The gate without which kube-proxy serves no external IPs (`ExternalIPs` of `pkg/proxy/serviceport.go`). On unless it is
/// said to be off.
pub(super) const EXTERNAL_IPS: &str = "AllowServiceExternalIPs";

/// One a line, those that cannot be changed with their value.
const KNOWN: &str = include_str!("feature_gates.txt");

/// What kube-proxy expects in place of a gate that is given this value; `None`: it takes it.
pub(super) fn expected(name: &str, value: bool) -> Option<&'static str> {
    let gates = KNOWN.lines().filter(|line| !line.starts_with('#'));
    let mut gates = gates.map(|line| line.split_once(' ').unwrap_or((line, "")));
    match gates.find(|(known, _)| *known == name) {
        None => Some("a feature gate of kube-proxy 1.36"),
        Some((_, "true")) if !value => Some("true, to which it is locked"),
        Some((_, "false")) if value => Some("false, to which it is locked"),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_order_and_names_each_gate_once() {
        let names: Vec<_> = KNOWN.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(names.is_sorted() && names.len() > 200, "{}", names.len());
        for line in names {
            let (name, value) = line.split_once(' ').unwrap_or((line, "false"));
            assert!(matches!(value, "true" | "false"), "{line}");
            assert_eq!(expected(name, value == "true"), None, "{line}");
        }
    }
}
