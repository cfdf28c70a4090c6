//! What an API server would have refused in an object, where no API server is.
//!
//! Only what contradicts itself, in fields that decide where a Service is found: the rest is judged by what reduces
//! objects, from wherever they come. The rules are those of `ValidateServiceClusterIPsRelatedFields` and of the port
//! numbers in `pkg/apis/core/validation` and `pkg/apis/discovery/validation`.

use std::net::IpAddr;

use serde_json::Value;

use crate::{
    model::ObjectKind,
    source::{
        address::parse_ip_sloppy,
        reduce::{PROXY_NAME_LABEL, Problem, quote},
    },
};

/// The two IP families, as Kubernetes spells them.
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// The first contradiction in an object, if there is one. What is not of its field's type is left to others.
pub(super) fn contradiction(kind: ObjectKind, object: &Value) -> Result<(), Problem> {
    match kind {
        ObjectKind::Service if is_served(object) => cluster_ips(&object["spec"]),
        ObjectKind::EndpointSlice => slice_ports(&object["ports"]),
        ObjectKind::Service | ObjectKind::Node | ObjectKind::ServiceCidr => Ok(()),
    }
}

/// Whether the Service is for us, headless or not.
pub(super) fn is_served(service: &Value) -> bool {
    service["spec"]["type"] != "ExternalName" && service["metadata"]["labels"].get(PROXY_NAME_LABEL).is_none()
}

/// A slice's port may be absent, which is any port and not served. 0 is a mistake.
fn slice_ports(ports: &Value) -> Result<(), Problem> {
    let zero = ports.as_array().and_then(|ports| ports.iter().position(|port| port["port"] == 0));
    zero.map_or(Ok(()), |index| Err(Problem::new(format!("ports[{index}].port"), "is 0, expected 1 to 65535")))
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap_or_default()).collect()
}

/// `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy` must agree.
fn cluster_ips(spec: &Value) -> Result<(), Problem> {
    let (ips, families) = (texts(&spec["clusterIPs"]), texts(&spec["ipFamilies"]));
    let single = spec["clusterIP"].as_str().filter(|text| !text.is_empty());
    if let (Some(single), Some(first)) = (single, ips.first())
        && !is_same(single, first)
    {
        let problem = format!("is {}, but clusterIPs[0] is {}", quote(single), quote(first));
        return Err(Problem::new("spec.clusterIP", problem));
    }
    if single.or(ips.first().copied()) == Some("None") {
        return match ips.get(1) {
            Some(other) => Err(Problem::new("spec.clusterIPs[1]", format!("is {} behind None", quote(other)))),
            None => Ok(()),
        };
    }
    for (index, family) in families.iter().enumerate() {
        let field = || format!("spec.ipFamilies[{index}]");
        if !FAMILIES.contains(family) {
            return Err(Problem::new(field(), format!("is {}, expected IPv4 or IPv6", quote(family))));
        }
        if families[..index].contains(family) {
            return Err(Problem::new(field(), format!("is {family} again")));
        }
    }
    let addresses: Vec<Option<IpAddr>> = ips.iter().map(|text| parse_ip_sloppy(text)).collect();
    if addresses.len() > FAMILIES.len() {
        return Err(Problem::new("spec.clusterIPs", format!("holds {}, expected one of each family", addresses.len())));
    }
    if let [Some(first), Some(second)] = addresses[..]
        && family(first) == family(second)
    {
        let problem = format!("is {second}, of the same family as clusterIPs[0]");
        return Err(Problem::new("spec.clusterIPs[1]", problem));
    }
    // Without a list, the one address is the first.
    let single = single.filter(|_| ips.is_empty()).and_then(parse_ip_sloppy);
    let fields = if ips.is_empty() { vec![("spec.clusterIP".to_owned(), single)] } else { numbered(&addresses) };
    for ((field, address), expected) in fields.into_iter().zip(&families) {
        if let Some(address) = address.filter(|address| family(*address) != *expected) {
            let problem = format!("is {address}, but ipFamilies has {expected} in its place");
            return Err(Problem::new(field, problem));
        }
    }
    policy(spec["ipFamilyPolicy"].as_str(), ips.len().max(families.len()))
}

/// `ipFamilyPolicy`, of a Service that has this many families.
fn policy(policy: Option<&str>, families: usize) -> Result<(), Problem> {
    match policy {
        Some("SingleStack") if families > 1 => {
            let problem = "is SingleStack, but clusterIPs or ipFamilies has two";
            Err(Problem::new("spec.ipFamilyPolicy", problem))
        }
        None | Some("" | "SingleStack" | "PreferDualStack" | "RequireDualStack") => Ok(()),
        Some(other) => {
            let expected = "SingleStack, PreferDualStack or RequireDualStack";
            Err(Problem::new("spec.ipFamilyPolicy", format!("is {}, expected {expected}", quote(other))))
        }
    }
}

fn numbered(addresses: &[Option<IpAddr>]) -> Vec<(String, Option<IpAddr>)> {
    addresses.iter().enumerate().map(|(index, address)| (format!("spec.clusterIPs[{index}]"), *address)).collect()
}

/// Whether two texts are the same address, or the same text.
fn is_same(one: &str, other: &str) -> bool {
    one == other || parse_ip_sloppy(one).is_some_and(|address| parse_ip_sloppy(other) == Some(address))
}

const fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => FAMILIES[0],
        IpAddr::V6(_) => FAMILIES[1],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_contradicts_itself_is_refused_by_field() {
        for (spec, expected) in [
            (
                json!({ "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2"] }),
                r#"spec.clusterIP: is "10.0.0.1", but clusterIPs[0] is "10.0.0.2""#,
            ),
            (
                json!({ "clusterIP": "None", "clusterIPs": ["10.0.0.2"] }),
                r#"spec.clusterIP: is "None", but clusterIPs[0] is "10.0.0.2""#,
            ),
            (json!({ "clusterIPs": ["None", "fd00::1"] }), r#"spec.clusterIPs[1]: is "fd00::1" behind None"#),
            (
                json!({ "clusterIPs": ["10.0.0.1", "10.0.0.2"] }),
                "spec.clusterIPs[1]: is 10.0.0.2, of the same family as clusterIPs[0]",
            ),
            (
                json!({ "clusterIPs": ["10.0.0.1", "fd00::1", "fd00::2"] }),
                "spec.clusterIPs: holds 3, expected one of each family",
            ),
            (
                json!({ "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv6", "IPv4"] }),
                "spec.clusterIPs[0]: is 10.0.0.1, but ipFamilies has IPv6 in its place",
            ),
            (
                json!({ "clusterIP": "10.0.0.1", "ipFamilies": ["IPv6"] }),
                "spec.clusterIP: is 10.0.0.1, but ipFamilies has IPv6 in its place",
            ),
            (json!({ "ipFamilies": ["IPv4", "IPv4"] }), "spec.ipFamilies[1]: is IPv4 again"),
            (json!({ "ipFamilies": ["ipv4"] }), r#"spec.ipFamilies[0]: is "ipv4", expected IPv4 or IPv6"#),
            (
                json!({ "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilyPolicy": "SingleStack" }),
                "spec.ipFamilyPolicy: is SingleStack, but clusterIPs or ipFamilies has two",
            ),
            (
                json!({ "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack" }),
                "spec.ipFamilyPolicy: is SingleStack, but clusterIPs or ipFamilies has two",
            ),
            (
                json!({ "ipFamilyPolicy": "Dual" }),
                r#"spec.ipFamilyPolicy: is "Dual", expected SingleStack, PreferDualStack or RequireDualStack"#,
            ),
        ] {
            let found = contradiction(ObjectKind::Service, &json!({ "spec": spec })).expect_err(&spec.to_string());
            assert_eq!(format!("{}: {}", found.field, found.problem), expected, "{spec}");
        }
    }

    #[test]
    fn what_an_api_server_accepts_is_accepted() {
        for spec in [
            json!({}),
            json!({ "clusterIP": "", "clusterIPs": ["10.0.0.1"] }),
            json!({ "clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv6", "IPv4"] }),
            json!({ "clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack" }),
            json!({
                "clusterIP": "fd00::1",
                "clusterIPs": ["fd00:0::1", "10.0.0.1"],
                "ipFamilies": ["IPv6", "IPv4"],
                "ipFamilyPolicy": "RequireDualStack",
            }),
            // Others say what is wrong with these.
            json!({ "clusterIPs": ["nonsense"], "ipFamilies": ["IPv4"] }),
            json!({ "clusterIPs": 7, "ipFamilies": {}, "ipFamilyPolicy": [] }),
            json!(null),
        ] {
            assert_eq!(contradiction(ObjectKind::Service, &json!({ "spec": spec })), Ok(()), "{spec}");
        }
        let both = json!(["10.0.0.1", "10.0.0.2"]);
        let external = json!({ "spec": { "type": "ExternalName", "clusterIPs": both } });
        assert_eq!(contradiction(ObjectKind::Service, &external), Ok(()));
    }

    #[test]
    fn a_slice_s_port_of_zero_is_refused_and_an_absent_one_is_not() {
        let slice = json!({ "ports": [{ "name": "a" }, { "port": null }, { "port": 1 }, { "port": 0 }] });
        let found = contradiction(ObjectKind::EndpointSlice, &slice).expect_err("zero");
        assert_eq!((&*found.field, &*found.problem), ("ports[3].port", "is 0, expected 1 to 65535"));
        assert_eq!(contradiction(ObjectKind::EndpointSlice, &json!({ "ports": [{ "name": "a" }] })), Ok(()));
    }
}
