//! What a document says that it is, and whether it says so by mistake.
//!
//! A directory of manifests may hold anything that Kubernetes knows, and most of it is none of our business. But a
//! Service whose kind is mistyped must not look like a Service that somebody deleted. Groups of Kubernetes itself have
//! kinds that are known: what is not among them is a mistake. Other groups are other people's, and may have a Service of
//! their own (Knative does).

use crate::model::ObjectKind;

/// What a document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An object of a kind that is used.
    Used(ObjectKind),
    /// An object of another kind.
    Other,
    /// Something that nobody can have meant, and what is wrong with it.
    Mistaken(String),
}

/// The kinds that are used, with the versions that they must have.
const USED: [(ObjectKind, &str); 4] = [
    (ObjectKind::Service, "v1"),
    (ObjectKind::EndpointSlice, "discovery.k8s.io/v1"),
    (ObjectKind::Node, "v1"),
    (ObjectKind::ServiceCidr, "networking.k8s.io/v1"),
];

/// All kinds of `v1` (`pkg/apis/core/register.go` of Kubernetes), and a kubeconfig, which calls itself one.
const CORE: [&str; 17] = [
    "Binding",
    "ComponentStatus",
    "Config",
    "ConfigMap",
    "Endpoints",
    "Event",
    "LimitRange",
    "Namespace",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "ServiceAccount",
    "Status",
];

/// The longest text that is compared letter by letter.
const LONGEST: usize = 32;

/// Judges `apiVersion` and `kind` of a document, of which the former may be empty.
pub(super) fn classify(version: &str, kind: &str) -> Kind {
    let mistaken = |expected: &str| Kind::Mistaken(format!("kind is {kind:?}, expected {expected}"));
    let of_kubernetes = is_of_kubernetes(version);
    if let Some((used, expected)) = USED.into_iter().find(|(used, _)| used.name() == kind) {
        return if version.is_empty() || version == expected {
            Kind::Used(used)
        } else if of_kubernetes || used == ObjectKind::EndpointSlice {
            Kind::Mistaken(format!("apiVersion of kind {kind} is {version:?}, expected {expected:?}"))
        } else {
            Kind::Other
        };
    }
    let singular = kind.strip_suffix("List").unwrap_or(kind);
    if !of_kubernetes || CORE.contains(&singular) {
        return Kind::Other;
    }
    if let Some((used, _)) = USED.into_iter().find(|(used, _)| is_near(kind, used.name())) {
        return mistaken(used.name());
    }
    match version {
        "" | "v1" => mistaken("a kind of v1"),
        "discovery.k8s.io/v1" => mistaken("EndpointSlice"),
        _ => Kind::Other,
    }
}

/// Whether a version is of a group of Kubernetes itself, or of one that was meant to be: their names have no dot, or end
/// with `k8s.io`, which is reserved for them.
fn is_of_kubernetes(version: &str) -> bool {
    let group = version.split_once('/').map_or("", |(group, _)| group);
    !group.contains('.') || group.ends_with(".k8s.io") || is_near(group, "discovery.k8s.io")
}

/// Whether two names differ by capitals and by as little as a slip of the finger: letters that are missing, too many,
/// wrong, or exchanged with the next. Two in a long name, one in a short one.
fn is_near(name: &str, meant: &str) -> bool {
    let letters = |text: &str| text.chars().take(LONGEST).flat_map(char::to_lowercase).collect::<Vec<_>>();
    distance(&letters(name), &letters(meant)) <= if meant.len() < 7 { 1 } else { 2 }
}

/// How many such slips there are between two texts ("optimal string alignment").
fn distance(one: &[char], other: &[char]) -> usize {
    // Row i holds the distances of the first i letters of `one` to each beginning of `other`.
    let mut rows: Vec<Vec<usize>> = vec![(0..=other.len()).collect()];
    for (i, letter) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, against) in other.iter().enumerate() {
            let substituted = rows[i][j] + usize::from(letter != against);
            let mut best = substituted.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *letter == other[j - 1] && one[i - 1] == *against {
                best = best.min(rows[i - 1][j - 1] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_kinds_are_used_with_the_right_version_or_none() {
        for (version, kind, expected) in [
            ("v1", "Service", ObjectKind::Service),
            ("", "Service", ObjectKind::Service),
            ("v1", "Node", ObjectKind::Node),
            ("discovery.k8s.io/v1", "EndpointSlice", ObjectKind::EndpointSlice),
            ("", "EndpointSlice", ObjectKind::EndpointSlice),
            ("networking.k8s.io/v1", "ServiceCIDR", ObjectKind::ServiceCidr),
        ] {
            assert_eq!(classify(version, kind), Kind::Used(expected), "{version} {kind}");
        }
    }

    #[test]
    fn other_peoples_kinds_are_none_of_our_business() {
        for (version, kind) in [
            ("v1", "ConfigMap"),
            ("v1", "ConfigMapList"),
            ("v1", "Endpoints"),
            ("v1", "ServiceAccount"),
            ("apps/v1", "Deployment"),
            ("batch/v1", "Job"),
            ("networking.k8s.io/v1", "Ingress"),
            ("rbac.authorization.k8s.io/v1", "Role"),
            ("node.k8s.io/v1", "RuntimeClass"),
            ("kustomize.config.k8s.io/v1beta1", "Kustomization"),
            ("serving.knative.dev/v1", "Service"),
            ("example.com/v1", "Servce"),
            ("example.com/v1", "Node"),
        ] {
            assert_eq!(classify(version, kind), Kind::Other, "{version} {kind}");
        }
    }

    #[test]
    fn slips_of_the_finger_are_mistakes() {
        for (version, kind, expected) in [
            ("v1", "Servise", r#"kind is "Servise", expected Service"#),
            ("v1", "Sevrice", r#"kind is "Sevrice", expected Service"#),
            ("v1", "service", r#"kind is "service", expected Service"#),
            ("v1", "Services", r#"kind is "Services", expected Service"#),
            ("", "Servce", r#"kind is "Servce", expected Service"#),
            ("apps/v1", "Servicr", r#"kind is "Servicr", expected Service"#),
            ("discovery.k8s.io/v1", "EndpointsSlice", r#"kind is "EndpointsSlice", expected EndpointSlice"#),
            ("discovery.k8s.io/v1", "Slice", r#"kind is "Slice", expected EndpointSlice"#),
            ("v1", "Nodes", r#"kind is "Nodes", expected Node"#),
            ("v1", "Whatever", r#"kind is "Whatever", expected a kind of v1"#),
            ("v2", "Service", r#"apiVersion of kind Service is "v2", expected "v1""#),
            ("V1", "Service", r#"apiVersion of kind Service is "V1", expected "v1""#),
            ("apps/v1", "Service", r#"apiVersion of kind Service is "apps/v1", expected "v1""#),
            (
                "discovery.k8s.io/v1beta1",
                "EndpointSlice",
                r#"apiVersion of kind EndpointSlice is "discovery.k8s.io/v1beta1", expected "discovery.k8s.io/v1""#,
            ),
            ("discvery.k8s.io/v1", "EndpointSlise", r#"kind is "EndpointSlise", expected EndpointSlice"#),
        ] {
            assert_eq!(classify(version, kind), Kind::Mistaken(expected.to_owned()), "{version} {kind}");
        }
    }

    #[test]
    fn a_name_of_any_length_is_compared_in_no_time() {
        assert_eq!(classify("v1", &"é".repeat(1_000_000)), {
            Kind::Mistaken(format!("kind is {:?}, expected a kind of v1", "é".repeat(1_000_000)))
        });
    }
}
