//! Slips of the pen in a manifest that would end a Service without a word.
//!
//! A member under another name than its own, or one that is not indented, is no member: to whoever reduces the object
//! the Service has no port, or the slice no endpoint. The API server refuses all of this, by its strict decoding and in
//! `pkg/apis/core/validation` and `pkg/apis/discovery/validation`, so that who reduces need not.

use serde::Serialize;
use serde_json::Value;

use super::refuse::is_served;
use crate::{
    model::ObjectKind,
    source::reduce::{Problem, Reduce, cut, quote},
};

/// The protocols that a port may have. That SCTP is not balanced is said where objects are reduced.
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// The first slip in an object that has the shape of its kind, if there is one.
pub(super) fn slip<K: Reduce + Serialize>(object: &Value) -> Result<(), Problem> {
    known_fields::<K>(object)?;
    match K::KIND {
        ObjectKind::Service if is_served(object) => service(&object["spec"]),
        ObjectKind::EndpointSlice => slice(object),
        ObjectKind::Service | ObjectKind::Node | ObjectKind::ServiceCidr => Ok(()),
    }
}

/// A field that the type does not have is not in what the type is written as. A status is written by controllers, which
/// may be newer than our types.
fn known_fields<K: Reduce + Serialize>(object: &Value) -> Result<(), Problem> {
    let Some(known) = K::deserialize(object).ok().and_then(|typed| serde_json::to_value(typed).ok()) else {
        return Ok(());
    };
    let members = object.as_object().into_iter().flatten().filter(|(name, _)| *name != "status");
    match members.into_iter().find_map(|(name, value)| unknown(name, value, known.get(name))) {
        Some(field) => Err(Problem::new(cut(&field), format!("is no field of {}", K::KIND.name()))),
        None => Ok(()),
    }
}

/// The path of the first field in `value` that is not in `known`. What is null is as good as absent.
fn unknown(path: &str, value: &Value, known: Option<&Value>) -> Option<String> {
    match (value, known) {
        (Value::Null, _) => None,
        (_, None) => Some(path.to_owned()),
        (Value::Object(members), Some(known)) => {
            members.iter().find_map(|(name, member)| unknown(&format!("{path}.{name}"), member, known.get(name)))
        }
        (Value::Array(items), Some(known)) => {
            let mut items = items.iter().enumerate();
            items.find_map(|(index, item)| unknown(&format!("{path}[{index}]"), item, known.get(index)))
        }
        _ => None,
    }
}

fn service(spec: &Value) -> Result<(), Problem> {
    if spec.is_null() {
        return Err(Problem::new("spec", "is missing"));
    }
    let service_type = spec["type"].as_str().unwrap_or("ClusterIP");
    let headless = spec["clusterIP"] == "None";
    if headless && matches!(service_type, "NodePort" | "LoadBalancer") {
        return Err(Problem::new("spec.clusterIP", format!("is None, but type is {service_type}")));
    }
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    if ports.is_empty() && !headless {
        let found = if spec["ports"].is_null() { "is missing" } else { "is empty, expected a port" };
        return Err(Problem::new("spec.ports", found));
    }
    for (index, port) in ports.iter().enumerate() {
        protocol(|| format!("spec.ports[{index}].protocol"), port)?;
        if let Some(number) = port["nodePort"].as_i64().filter(|number| *number != 0 && service_type == "ClusterIP") {
            let problem = format!("is {number}, but type is ClusterIP, expected NodePort or LoadBalancer");
            return Err(Problem::new(format!("spec.ports[{index}].nodePort"), problem));
        }
    }
    Ok(())
}

/// Nobody slips into `endpoints: null`: it is how an API server writes a slice without any.
fn slice(slice: &Value) -> Result<(), Problem> {
    let Some(endpoints) = slice.get("endpoints") else { return Err(Problem::new("endpoints", "is missing")) };
    for (index, endpoint) in endpoints.as_array().into_iter().flatten().enumerate() {
        if endpoint["addresses"].as_array().is_none_or(Vec::is_empty) {
            return Err(Problem::new(format!("endpoints[{index}].addresses"), "is empty, expected an address"));
        }
    }
    let mut ports = slice["ports"].as_array().into_iter().flatten().enumerate();
    ports.try_for_each(|(index, port)| protocol(|| format!("ports[{index}].protocol"), port))
}

/// Empty is TCP to an API server.
fn protocol(field: impl FnOnce() -> String, port: &Value) -> Result<(), Problem> {
    match port["protocol"].as_str() {
        Some(name) if !name.is_empty() && !PROTOCOLS.contains(&name) => {
            Err(Problem::new(field(), format!("is {}, expected TCP, UDP or SCTP", quote(name))))
        }
        _ => Ok(()),
    }
}
