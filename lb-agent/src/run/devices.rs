//! Which devices hold our programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use lb_agent::loader::{self, Device, LoaderError, Obstacle, Role, XdpMode};
use lb_common::abi::{XdpDevice, XdpState};

use super::dataplane::Dataplane;

/// Pause before a device that could not be attached to is tried again.
const ATTACH_RETRY: Duration = Duration::from_secs(1);

/// A device that holds our programs.
pub(super) struct Attached {
    /// As it was called when they were attached: it may be gone when it is told of.
    name: String,
    role: Role,
}

impl Dataplane {
    /// Attaches what is to be attached, and detaches the rest.
    pub(super) fn attach(&mut self) {
        let network = self.channels.network.borrow().clone();
        self.attach_again = None;
        let mut wanted = BTreeMap::new();
        let uplinks_before = self.uplinks();
        for (devices, role) in [(&network.uplinks, Role::Uplink), (&network.pods, Role::Pod)] {
            for device in devices {
                wanted.insert(device.index, role);
                let is_attached = self.attached.get(&device.index).is_some_and(|attached| attached.role == role);
                let obstacle = network.obstacles.get(&device.index).copied();
                let result = match role {
                    Role::Uplink => self.attach_uplink(device, obstacle, is_attached),
                    Role::Pod if is_attached => Ok(()),
                    Role::Pod => self.attach_pod(device),
                };
                match result {
                    Ok(()) if is_attached => {}
                    Ok(()) => {
                        tracing::info!(device = device.name, index = device.index, ?role, "attached");
                        self.attached.insert(device.index, Attached { name: device.name.clone(), role });
                    }
                    // A device that has gone meanwhile: the event is under way.
                    Err(error) if !device.exists() => {
                        tracing::debug!(device = device.name, %error, "gone before it was attached to");
                        self.others_detached = false;
                    }
                    Err(error) => {
                        self.log.failed(&error.to_string());
                        self.others_detached = false;
                        self.attach_again = Some(Instant::now() + ATTACH_RETRY);
                    }
                }
            }
        }
        self.xdp_devices.retain(|index, _| wanted.get(index) == Some(&Role::Uplink));
        let attached_before = self.attached.len();
        self.attached.retain(|index, Attached { name, role }| {
            let stays = wanted.contains_key(index);
            if !stays {
                tracing::info!(
                    device = name,
                    index,
                    ?role,
                    "detached: the device is gone, or is neither a pod's nor an uplink any more"
                );
            }
            stays
        });
        let uplinks = self.uplinks();
        if uplinks == 0 && uplinks_before > 0 {
            tracing::warn!("no uplink is left: packets from outside are not balanced");
        }
        self.channels.metrics.devices(uplinks, self.attached.len() - uplinks, network.missing.len());
        self.note_missing(network.missing);
        if self.attached.len() == attached_before && self.others_detached {
            return;
        }
        self.others_detached = true;
        if let Err(error) = self.loaded.detach_devices_except(&wanted.keys().copied().collect()) {
            self.log.failed(&error.to_string());
            self.others_detached = false;
            self.attach_again = Some(Instant::now() + ATTACH_RETRY);
        }
    }

    fn attach_pod(&mut self, device: &Device) -> Result<(), LoaderError> {
        self.loaded.detach_xdp(device.index)?;
        self.loaded.attach_device(device, Role::Pod)
    }

    /// Puts the programs on an uplink, those at TC if they are not `attached`, and tries XDP again where it failed before.
    fn attach_uplink(
        &mut self,
        device: &Device,
        obstacle: Option<Obstacle>,
        attached: bool,
    ) -> Result<(), LoaderError> {
        // While XDP translates, TC must know: it comes before it, and goes after it.
        if self.xdp == XdpMode::Off {
            self.attach_xdp(device, obstacle)?;
        }
        if !attached {
            self.loaded.attach_device(device, Role::Uplink)?;
        }
        if self.xdp != XdpMode::Off {
            self.attach_xdp(device, obstacle)?;
        }
        Ok(())
    }

    fn attach_xdp(&mut self, device: &Device, obstacle: Option<Obstacle>) -> Result<(), LoaderError> {
        let before = self.xdp_devices.get(&device.index).copied();
        let is_settled = |found: XdpDevice| self.xdp.is_settled(found, obstacle);
        if before.is_some_and(is_settled) {
            return Ok(());
        }
        let found = self.loaded.attach_xdp(device, self.xdp, obstacle)?;
        self.xdp_devices.insert(device.index, found);
        if before == Some(found) {
            return Ok(());
        }
        let state = XdpState::from_number(found.state).unwrap_or(XdpState::Failed);
        let reason = loader::describe_xdp(found);
        match state {
            XdpState::Off => {}
            XdpState::Native | XdpState::Generic => {
                tracing::info!(device = device.name, mode = state.name(), "XDP attached");
            }
            XdpState::NotSupported
            | XdpState::Occupied
            | XdpState::Virtual
            | XdpState::Vlans
            | XdpState::Failed
            | XdpState::Bare => {
                tracing::warn!(device = device.name, reason, "no XDP: packets are balanced at TC");
            }
        }
        Ok(())
    }

    /// Names the devices of `--devices` that are not there: each once, and again when it has gone meanwhile.
    fn note_missing(&mut self, missing: BTreeSet<String>) {
        if self.missing_noted.as_ref() == Some(&missing) {
            return;
        }
        let before = self.missing_noted.take().unwrap_or_default();
        for name in missing.difference(&before) {
            let present = nix::net::if_::if_nameindex().map(|all| {
                all.iter().map(|device| device.name().to_string_lossy().into_owned()).collect::<Vec<_>>().join(", ")
            });
            let present = present.unwrap_or_default();
            tracing::error!(
                "--devices {name}: there is no such device, or none that can be served; it is served when it comes; there are \
                 {present}"
            );
        }
        if let Err(error) = self.pins.note_missing_devices(&missing) {
            tracing::error!("`lb-agent status` does not know which devices are missing: {error}");
        }
        self.missing_noted = Some(missing);
    }

    fn uplinks(&self) -> usize {
        self.attached.values().filter(|attached| attached.role == Role::Uplink).count()
    }
}
