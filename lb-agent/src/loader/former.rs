//! What devices were to a former agent.

use std::collections::BTreeMap;

use super::{
    Attached, Direction, LinkLayer, LoaderError, Pins, Role, attached, filters::clsact_filters, pinned_programs,
};

/// The devices that hold our programs, by index, and what they are by these; `None` where the programs are of an agent
/// that another one began to replace and did not come to its end. To be asked before [`Loaded::load`], which pins its
/// programs in the place of the former ones.
///
/// [`Loaded::load`]: super::Loaded::load
pub async fn former_devices(pins: &Pins) -> Result<BTreeMap<u32, Option<Role>>, LoaderError> {
    let links = attached(pins)?.into_iter().filter_map(|(_, attached, program)| match attached {
        // 0 is a device that is gone.
        Attached::Device(_, index) if index != 0 => Some((index, program)),
        Attached::Device(..) | Attached::Cgroup(..) | Attached::Xdp(..) => None,
    });
    let mut held: Vec<_> = links.collect();
    // An agent has either the ones or the others, and the filters of all devices take longer to list.
    if held.is_empty() {
        held.extend(clsact_filters().await?.into_iter().map(|(_, index, program)| (index, program)));
    }
    let kinds =
        [(Role::Pod, LinkLayer::Ethernet), (Role::Uplink, LinkLayer::Ethernet), (Role::Uplink, LinkLayer::Bare)];
    let roles: BTreeMap<&str, Role> = kinds
        .into_iter()
        .flat_map(|(role, link)| Direction::ALL.map(|direction| (role.program(link, direction), role)))
        .collect();
    let names = pinned_programs(pins);
    let role = |program| roles.get(names.get(&program)?).copied();
    Ok(held.into_iter().map(|(index, program)| (index, role(program))).collect())
}
