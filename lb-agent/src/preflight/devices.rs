//! The devices that packets from outside come by.

use std::{collections::BTreeSet, fs};

use super::{Check, driver::driver};
use crate::{
    loader::{Device, xdp_features},
    network::Network,
};

/// `NETDEV_XDP_ACT_*` of `Documentation/netlink/specs/netdev.yaml`: what the driver does with its own packets, and what it
/// does for those that XDP of another device redirects to it.
const BASIC: u64 = 1;
const REDIRECT: u64 = 1 << 1;
const NDO_XMIT: u64 = 1 << 2;

pub(super) fn checks(network: &Network, named: Option<&[String]>) -> Vec<Check> {
    let mut checks = vec![uplinks(&network.uplinks, &network.missing, named.is_some())];
    for device in &network.uplinks {
        checks.push(forwarding(&device.name).of_device(&device.name));
        checks.push(xdp(driver(&device.name).ok().as_deref(), xdp_features(device.index).ok()).of_device(&device.name));
    }
    checks
}

fn uplinks(uplinks: &BTreeSet<Device>, missing: &BTreeSet<String>, by_name: bool) -> Check {
    const CHECK: &str = "devices";
    let found = uplinks.iter().map(|device| device.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(name) = missing.first() {
        return Check::warning(
            CHECK,
            format!("--devices {name}: there is no such device, or none that can be served"),
            "correct --devices",
        );
    }
    if uplinks.is_empty() {
        let found = "no uplink: no device has a route by a gateway, and no NIC or tunnel an address";
        return Check::warning(CHECK, found, "name those that packets from outside come by: --devices");
    }
    Check::ok(CHECK, format!("{found}{}", if by_name { ", as --devices says" } else { "" }))
}

/// Whether packets that come by a device go on to pods.
fn forwarding(device: &str) -> Check {
    const CHECK: &str = "forwarding";
    let states = ["ipv4", "ipv6"].map(|family| {
        let path = format!("/proc/sys/net/{family}/conf/{}/forwarding", device.replace('/', "."));
        (family, fs::read_to_string(path).ok())
    });
    let off: Vec<_> = states
        .iter()
        .filter(|(_, value)| value.as_deref().is_some_and(|value| value.trim() == "0"))
        .map(|(family, _)| *family)
        .collect();
    if off.is_empty() {
        return Check::ok(CHECK, "on");
    }
    Check::warning(
        CHECK,
        format!("off for {}", off.join(" and ")),
        format!(
            "for families that the cluster uses, do `sysctl -w {}`, where the network plugin does not: packets for pods \
             and for other nodes' endpoints are dropped",
            off.iter().map(|family| format!("net.{family}.conf.all.forwarding=1")).collect::<Vec<_>>().join(" ")
        ),
    )
}

fn xdp(driver: Option<&str>, features: Option<u64>) -> Check {
    const CHECK: &str = "xdp";
    let driver = driver.unwrap_or("unknown driver");
    let Some(features) = features else {
        let found = format!("{driver}: the kernel does not tell (before 6.3)");
        return Check::unknown(CHECK, found, "none is needed: without XDP, TC serves the device");
    };
    let has = |feature: u64| features & feature == feature;
    if has(BASIC | REDIRECT) {
        let sends = if has(NDO_XMIT) { "" } else { "; it does not yet send what XDP of other devices redirects to it" };
        return Check::ok(CHECK, format!("{driver}: native{sends}"));
    }
    let found = format!("{driver}: {}", if has(BASIC) { "native, but cannot redirect" } else { "not native" });
    Check::ok(CHECK, format!("{found}; TC serves the device"))
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};
    use crate::loader::LinkLayer;

    #[test]
    fn native_xdp_is_what_the_driver_says() {
        for (features, verdict, said) in [
            (Some(0x7), Verdict::Ok, "virtio_net: native"),
            (Some(0x3), Verdict::Ok, "virtio_net: native; it does not yet send"),
            (Some(0x1), Verdict::Ok, "virtio_net: native, but cannot redirect; TC serves the device"),
            (Some(0), Verdict::Ok, "virtio_net: not native; TC serves the device"),
            (None, Verdict::Unknown, "virtio_net: the kernel does not tell"),
        ] {
            let check = xdp(Some("virtio_net"), features);
            assert_eq!(check.verdict, verdict, "{check:?}");
            assert!(check.found.starts_with(said), "{check:?}");
        }
        assert_eq!(xdp(None, Some(0x7)).found, "unknown driver: native");
    }

    #[test]
    fn a_node_without_uplinks_is_told_how_to_name_them() {
        let none = uplinks(&BTreeSet::new(), &BTreeSet::new(), false);
        assert_eq!(none.verdict, Verdict::Warning);
        assert!(none.remedy.is_some_and(|remedy| remedy.contains("--devices")));
        let eth0 = BTreeSet::from([Device { index: 2, name: "eth0".to_owned(), link: LinkLayer::Ethernet }]);
        assert_eq!(uplinks(&eth0, &BTreeSet::new(), true), Check::ok("devices", "eth0, as --devices says"));
        let missing = uplinks(&eth0, &BTreeSet::from(["eth7".to_owned()]), true);
        assert!(missing.found.contains("eth7"), "{missing:?}");
    }
}
