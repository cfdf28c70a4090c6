//! `networking.k8s.io/v1` `ServiceCIDR`, by `ServiceCIDRConfig` of kube-proxy: its networks, whatever its conditions.

use k8s_openapi::api::networking::v1 as api;

use super::{Problem, Reduce, not_a_network};
use crate::{
    model::{Change, ObjectKey, ObjectKind},
    source::address::parse_cidr_sloppy,
};

impl Reduce for api::ServiceCIDR {
    const KIND: ObjectKind = ObjectKind::ServiceCidr;
    const OPTIONAL: bool = true;

    fn change(&self, key: &ObjectKey, _left_out: &mut Vec<Problem>) -> Result<Change, Problem> {
        let texts = self.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
        let network = |(index, text): (usize, &String)| {
            parse_cidr_sloppy(text).ok_or_else(|| not_a_network(format!("spec.cidrs[{index}]"), text))
        };
        Ok(Change::ServiceCidr(key.clone(), Some(texts.iter().enumerate().map(network).collect::<Result<_, _>>()?)))
    }
}
