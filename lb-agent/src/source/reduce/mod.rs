//! Kubernetes' objects to the model's, by the rules of kube-proxy.
//!
//! Three things can become of an object. It is *taken*; it is *skipped*, which is a deletion to the model (headless,
//! `ExternalName`, another proxy's); or it is *rejected*, and its last good state stays in force.
//!
//! What is rejected whole: whatever the API server's own validation would refuse in a field that we use, so that
//! somebody who edits a manifest sees what `kubectl apply` would have said. Two things are left out of an object that is
//! otherwise taken, with a rejection that names the field: a port of a protocol that is not balanced, known or not, or
//! of number 0 in a slice, because it must not break the others, and a broken address in a status, which another
//! controller wrote.
//!
//! Everything here takes bytes from others: nothing panics, texts that are quoted back are cut, and what an object
//! keeps is at most proportional to its own size.

mod endpoint_slice;
mod node;
mod service;
mod service_cidr;

#[cfg(test)]
mod tests;

pub(super) use endpoint_slice::HEADLESS_LABEL;
pub(super) use service::PROXY_NAME_LABEL;

use std::{fmt, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::model::{Change, ObjectKey, ObjectKind, Protocol, Rejection};

/// Longest name of a port, a namespace or a Service: a label of RFC 1123, and what the maps hold.
const MAX_LABEL: usize = 63;
/// Longest name of any other object: a subdomain of RFC 1123.
const MAX_SUBDOMAIN: usize = 253;
/// How much of a value is quoted back in a message, in characters.
const MAX_QUOTE: usize = 64;
/// How much of somebody else's message is passed on, in characters.
const MAX_MESSAGE: usize = 256;
/// How many parts of one object are reported, so that one object cannot flood the log.
const MAX_PARTS: usize = 8;

/// A field that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the field, for example `spec.ports[0].port`.
    pub field: String,
    /// What was found and what was expected.
    pub problem: String,
}

impl Problem {
    pub(super) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    /// The problem as one of an object.
    pub fn rejection(self, kind: ObjectKind, object: ObjectKey) -> Rejection {
        Rejection { kind, object, uid: None, origin: None, field: self.field, problem: self.problem }
    }
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reduced {
    /// The object, as far as its metadata names it.
    pub key: ObjectKey,
    /// Its new state; `None` where it was rejected whole.
    pub change: Option<Change>,
    /// What was rejected.
    pub rejections: Vec<Rejection>,
}

/// A kind of Kubernetes object that is reduced.
pub trait Reduce: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + 'static {
    /// The kind.
    const KIND: ObjectKind;
    /// Whether an API server may do without: older ones do not have the kind, or its rights were never given to us.
    const OPTIONAL: bool = false;

    /// The object's new state, or what makes it unusable. Parts that are left out are pushed to `left_out`.
    fn change(&self, key: &ObjectKey, left_out: &mut Vec<Problem>) -> Result<Change, Problem>;
}

/// Reduces an object.
pub fn reduce<K: Reduce>(object: &K) -> Reduced {
    let key = key(object.meta());
    let mut problems = Vec::new();
    let change = match named::<K>(&key).and_then(|()| object.change(&key, &mut problems)) {
        Ok(change) => Some(change),
        Err(problem) => {
            problems = vec![problem];
            None
        }
    };
    problems.truncate(MAX_PARTS);
    let uid: Option<Arc<str>> = object.meta().uid.as_deref().map(Arc::from);
    let rejection = |problem: Problem| Rejection { uid: uid.clone(), ..problem.rejection(K::KIND, key.clone()) };
    let rejections = problems.into_iter().map(rejection).collect();
    Reduced { key, change, rejections }
}

/// Reduces an object as it came, of whose shape nothing is known.
pub fn reduce_json<K: Reduce>(object: &Value) -> Reduced {
    match serde_path_to_error::deserialize::<_, K>(object) {
        Ok(object) => reduce(&object),
        Err(error) => {
            let named = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
            let key = key(&ObjectMeta { namespace: named("namespace"), name: named("name"), ..ObjectMeta::default() });
            let problem = Problem::new(error.path().to_string(), cut(&error.inner().to_string()));
            let uid = object["metadata"]["uid"].as_str().map(Arc::from);
            let rejection = Rejection { uid, ..problem.rejection(K::KIND, key.clone()) };
            Reduced { rejections: vec![rejection], key, change: None }
        }
    }
}

/// Namespace and name, empty where absent. An illegal name only serves messages, so it is escaped, and cut where it is
/// longer than any legal one.
pub(super) fn key(metadata: &ObjectMeta) -> ObjectKey {
    let tame = |text: Option<&str>| -> String {
        text.unwrap_or_default().chars().flat_map(char::escape_debug).take(MAX_SUBDOMAIN + 1).collect()
    };
    ObjectKey::new(tame(metadata.namespace.as_deref()), tame(metadata.name.as_deref()))
}

/// Checks that an object is named as the API server would have it named. Names reach logs, terminals and maps.
fn named<K: Reduce>(key: &ObjectKey) -> Result<(), Problem> {
    let (in_namespace, longest) = match K::KIND {
        ObjectKind::Service => (true, MAX_LABEL),
        ObjectKind::EndpointSlice => (true, MAX_SUBDOMAIN),
        ObjectKind::Node | ObjectKind::ServiceCidr => (false, MAX_SUBDOMAIN),
    };
    check_name("metadata.name", &key.name, longest)?;
    if in_namespace { check_name("metadata.namespace", &key.namespace, MAX_LABEL) } else { Ok(()) }
}

/// Checks a name: lower-case letters, digits, dashes and dots, as RFC 1123 has them.
fn check_name(field: &str, name: &str, longest: usize) -> Result<(), Problem> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    if name.is_empty() {
        Err(Problem::new(field, "is missing"))
    } else if name.len() > longest || !name.bytes().all(legal) {
        let expected = format!("at most {longest} lower-case letters, digits, dashes and dots");
        Err(Problem::new(field, format!("is {}, expected {expected}", quote(name))))
    } else {
        Ok(())
    }
}

/// A port number, where it is one.
fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// What is wrong with a number that is no port.
fn not_a_port(field: String, number: i32) -> Problem {
    Problem::new(field, format!("is {number}, expected 1 to 65535"))
}

/// The protocol of a port, TCP where absent or empty, as an API server reads it; `None` where it is not one that is balanced.
fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some(_) => None,
    }
}

fn not_a_network(field: String, text: &str) -> Problem {
    Problem::new(field, format!("is {}, expected a network such as 192.0.2.0/24", quote(text)))
}

/// A port's name, empty where absent.
fn port_name(field: impl FnOnce() -> String, name: Option<&str>) -> Result<Arc<str>, Problem> {
    let name = name.unwrap_or_default();
    if !name.is_empty() {
        check_name("", name, MAX_LABEL).map_err(|problem| Problem { field: field(), ..problem })?;
    }
    Ok(name.into())
}

/// Notes a part that is left out, unless there are too many already.
fn leave_out(left_out: &mut Vec<Problem>, problem: Problem) {
    if left_out.len() < MAX_PARTS {
        left_out.push(problem);
    }
}

/// A value of somebody else's, for a message: escaped and cut.
pub(super) fn quote(value: &str) -> String {
    let start: String = value.chars().take(MAX_QUOTE).collect();
    let more = if start.len() < value.len() { "…" } else { "" };
    format!("{start:?}{more}")
}

/// Somebody else's message on one line, cut.
pub(super) fn cut(message: &str) -> String {
    let start: String = message.chars().take(MAX_MESSAGE).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if start.len() < message.len() { format!("{start}…") } else { start }
}
