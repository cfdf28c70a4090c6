//! Which devices hold our programs.

use std::{
    collections::{BTreeMap, BTreeSet},
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
                "--devices {name}: there is no such device, it is served when it comes; there are {present}"
            );
        }
        if let Err(error) = self.pins.note_missing_devices(&missing) {
            tracing::error!("`lb-agent status` does not know which devices are missing: {error}");
        }
        self.missing_noted = Some(missing);
    }

    fn uplinks(&self) -> usize {
        self.attached.values().filter(|role| **role == Role::Uplink).count()
    }
}
