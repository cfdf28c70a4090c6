//! Which devices hold our programs.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lb_agent::loader::Role;

use super::dataplane::Dataplane;

/// Pause before a device that could not be attached to is tried again.
const ATTACH_RETRY: Duration = Duration::from_secs(1);

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
                if self.attached.get(&device.index) == Some(&role) {
                    continue;
                }
                match self.loaded.attach_device(device, role) {
                    Ok(()) => {
                        tracing::info!(device = device.name, index = device.index, ?role, "attached");
                        self.attached.insert(device.index, role);
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
        let attached_before = self.attached.len();
        self.attached.retain(|index, role| {
            let stays = wanted.contains_key(index);
            if !stays {
                tracing::info!(
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
        self.metrics.devices(uplinks, self.attached.len() - uplinks);
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

    fn uplinks(&self) -> usize {
        self.attached.values().filter(|role| **role == Role::Uplink).count()
    }
}
