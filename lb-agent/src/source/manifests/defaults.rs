//! What an API server would have written into an object, where no API server is.

use serde_json::{Value, json};

use crate::{
    model::ObjectKind,
    source::reduce::{PROXY_NAME_LABEL, Problem},
};

/// What an API server would have allocated.
pub(super) struct Missing {
    /// The field, and that it is missing.
    pub(super) problem: Problem,
    /// Whether nothing is left to serve without it.
    pub(super) fatal: bool,
}

/// Gives an object the defaults of the API server that matter here. Returns what only an API server can give.
pub(super) fn give_defaults(kind: ObjectKind, object: &mut Value) -> Vec<Missing> {
    let Value::Object(members) = object else { return Vec::new() };
    let Some(Value::Object(metadata)) = members.get_mut("metadata") else { return Vec::new() };
    if matches!(kind, ObjectKind::Node | ObjectKind::ServiceCidr) {
        metadata.remove("namespace");
        return Vec::new();
    }
    if metadata.get("namespace").is_none_or(|namespace| matches!(namespace.as_str(), Some("")) || namespace.is_null()) {
        metadata.insert("namespace".to_owned(), json!("default"));
    }
    let another_proxy = metadata.get("labels").is_some_and(|labels| labels.get(PROXY_NAME_LABEL).is_some());
    let Some(Value::Object(spec)) = members.get_mut("spec").filter(|_| kind == ObjectKind::Service) else {
        return Vec::new();
    };
    let service_type = spec.get("type").and_then(Value::as_str).unwrap_or("ClusterIP").to_owned();
    if another_proxy || service_type == "ExternalName" {
        return Vec::new();
    }
    let absent = |value: Option<&Value>| value.is_none_or(|value| value.is_null() || value.as_str() == Some(""));
    let mut missing = Vec::new();
    if absent(spec.get("clusterIP")) {
        match spec.get("clusterIPs").and_then(|addresses| addresses.get(0)).cloned() {
            Some(first) => drop(spec.insert("clusterIP".to_owned(), first)),
            None => missing.push(Missing {
                problem: Problem::new(
                    "spec.clusterIP",
                    "is missing, and no API server is there to allocate one: give an address, or None",
                ),
                fatal: true,
            }),
        }
    }
    if service_type == "NodePort" && spec.get("clusterIP").and_then(Value::as_str) != Some("None") {
        let ports = spec.get("ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for (index, port) in ports.iter().enumerate() {
            if port.get("nodePort").is_none_or(|port| port.is_null() || *port == 0) {
                missing.push(Missing {
                    problem: Problem::new(
                        format!("spec.ports[{index}].nodePort"),
                        "is missing, and no API server is there to allocate one: the port is served without it",
                    ),
                    fatal: false,
                });
            }
        }
    }
    missing
}
