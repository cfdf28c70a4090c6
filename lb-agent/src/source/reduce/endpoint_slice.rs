//! `discovery.k8s.io/v1` `EndpointSlice`, by `endpointslicecache.go` of kube-proxy.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::{api::discovery::v1 as api, jiff::Timestamp};

use super::{MAX_LABEL, Problem, Reduce, check_name, leave_out, not_a_port, port_name, port_number, protocol, quote};
use crate::{
    model::{Change, ChangeTrigger, Endpoint, EndpointSlice, ObjectKey, ObjectKind, SlicePort},
    source::address::{parse_ip_sloppy, special},
};

/// A slice with this label, whatever its value, is not for proxies.
pub(in crate::source) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Names the Service that a slice belongs to.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// When the change happened that the slice was written for.
const TRIGGER_TIME_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

impl Reduce for api::EndpointSlice {
    const KIND: ObjectKind = ObjectKind::EndpointSlice;

    fn change(&self, key: &ObjectKey, left_out: &mut Vec<Problem>) -> Result<Change, Problem> {
        Ok(Change::EndpointSlice(key.clone(), slice(self, key, left_out)?))
    }
}

/// The slice, or `None` where it is not for us.
fn slice(
    slice: &api::EndpointSlice,
    key: &ObjectKey,
    left_out: &mut Vec<Problem>,
) -> Result<Option<EndpointSlice>, Problem> {
    let label = |name| slice.metadata.labels.as_ref().and_then(|labels| labels.get(name)).map(String::as_str);
    if label(HEADLESS_LABEL).is_some() {
        return Ok(None);
    }
    let is_ipv4 = match slice.address_type.as_str() {
        "IPv4" => true,
        "IPv6" => false,
        "FQDN" => return Ok(None),
        other => {
            return Err(Problem::new("addressType", format!("is {}, expected IPv4, IPv6 or FQDN", quote(other))));
        }
    };
    let service = label(SERVICE_NAME_LABEL).unwrap_or_default();
    check_name(&format!("metadata.labels[{SERVICE_NAME_LABEL}]"), service, MAX_LABEL)?;
    Ok(Some(EndpointSlice {
        service: ObjectKey::new(key.namespace.clone(), service),
        ports: ports(slice.ports.as_deref().unwrap_or_default(), left_out)?,
        endpoints: endpoints(slice.endpoints.as_deref().unwrap_or_default(), is_ipv4)?,
        trigger: trigger_time(slice).map(|at| ChangeTrigger { at, is_ipv4 }),
    }))
}

/// One that is not a time serves nobody, and breaks nothing.
fn trigger_time(slice: &api::EndpointSlice) -> Option<Timestamp> {
    slice.metadata.annotations.as_ref()?.get(TRIGGER_TIME_ANNOTATION)?.parse().ok()
}

/// The ports that have a number. Those without are left out in silence, as they mean any port; 0 is left out as
/// kube-proxy does, but said. Those of protocols that are not balanced are left out in silence: their Service says so.
fn ports(listed: &[api::EndpointPort], left_out: &mut Vec<Problem>) -> Result<Vec<SlicePort>, Problem> {
    let mut ports = Vec::with_capacity(listed.len());
    for (index, listed) in listed.iter().enumerate() {
        let name = port_name(|| format!("ports[{index}].name"), listed.name.as_deref())?;
        let Some(number) = listed.port else { continue };
        if number == 0 {
            let problem = "is 0, expected 1 to 65535; this port is left out";
            leave_out(left_out, Problem::new(format!("ports[{index}].port"), problem));
            continue;
        }
        let port = port_number(number).ok_or_else(|| not_a_port(format!("ports[{index}].port"), number))?;
        if let Some(protocol) = protocol(listed.protocol.as_deref()) {
            ports.push(SlicePort { name, protocol, port });
        }
    }
    Ok(ports)
}

fn endpoints(listed: &[api::Endpoint], is_ipv4: bool) -> Result<Vec<Endpoint>, Problem> {
    let mut endpoints = Vec::with_capacity(listed.len());
    for (index, listed) in listed.iter().enumerate() {
        // Further addresses are the same endpoint's and have never been used by a proxy.
        let Some(text) = listed.addresses.first() else { continue };
        let address = address(text, is_ipv4)
            .map_err(|problem| Problem::new(format!("endpoints[{index}].addresses[0]"), problem))?;
        let conditions = listed.conditions.as_ref();
        let hints = listed.hints.as_ref();
        endpoints.push(Endpoint {
            address,
            ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
            serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
            terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
            node_name: listed.node_name.as_deref().map(Arc::from),
            zone_hints: hints
                .and_then(|hints| hints.for_zones.as_deref())
                .unwrap_or_default()
                .iter()
                .map(|zone| zone.name.as_str().into())
                .collect(),
            node_hints: hints
                .and_then(|hints| hints.for_nodes.as_deref())
                .unwrap_or_default()
                .iter()
                .map(|node| node.name.as_str().into())
                .collect(),
        });
    }
    Ok(endpoints)
}

/// An endpoint's address, or what is wrong with it.
fn address(text: &str, is_ipv4: bool) -> Result<IpAddr, String> {
    let Some(address) = parse_ip_sloppy(text) else {
        return Err(format!("is {}, expected an IP address", quote(text)));
    };
    if address.is_ipv4() != is_ipv4 {
        return Err(format!("is {address}, but the slice's addressType is {}", if is_ipv4 { "IPv4" } else { "IPv6" }));
    }
    special(address).map_or(Ok(address), |what| Err(format!("is {address}, {what}")))
}
