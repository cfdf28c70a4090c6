//! Puts the XDP program on uplinks, where the device can have it. It is never needed: what it does not do, TC does.

use std::{collections::BTreeSet, fs, io, path::Path, thread};

use aya::{
    maps::{HashMap, Map, MapData, MapError},
    programs::{
        Program, ProgramError, Xdp,
        links::{FdLink, PinnedLink},
        xdp::XdpMode as Flags,
    },
};
use futures::TryStreamExt as _;
use lb_common::abi::{Interface, XdpDevice, XdpFlags, XdpState, maps::XDP_DEVICES};
use nix::libc;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};

use super::{
    Attached, Device, Loaded, LoaderError, Pins, XDP_PROGRAM, XdpPlace,
    attach::{held, pin, raw_os_error},
    netdev,
    pins::pin_error,
    syscall,
};

/// Where XDP is to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Nowhere.
    #[default]
    Off,
    /// In the drivers of NICs.
    Auto,
    /// In the drivers of all uplinks.
    Native,
    /// In the kernel's stand-in for drivers without XDP, on all uplinks.
    Generic,
}

/// What keeps XDP off a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Other ends may send it packets with unfinished checksums (veth), or it has none of its own to run XDP in (bridge).
    /// Who asks for [`XdpMode::Native`] says that checksums are finished.
    Virtual,
    /// Its packets have no Ethernet header, for which the program looks.
    Bare,
    /// It has VLAN devices. Packets for these may come without their tags, which the device hands on beside them.
    Vlans,
}

impl XdpMode {
    /// Where the program is to be on a device, or why it is not.
    fn place(self, obstacle: Option<Obstacle>) -> Result<XdpPlace, XdpState> {
        match (self, obstacle) {
            (Self::Off, _) => Err(XdpState::Off),
            (_, Some(Obstacle::Bare)) => Err(XdpState::Bare),
            (_, Some(Obstacle::Vlans)) => Err(XdpState::Vlans),
            (Self::Auto, Some(Obstacle::Virtual)) => Err(XdpState::Virtual),
            (Self::Auto | Self::Native, _) => Ok(XdpPlace::Native),
            (Self::Generic, _) => Ok(XdpPlace::Generic),
        }
    }

    /// Whether trying again would come to no other result than `found`: not where somebody else's program may have gone,
    /// or something about the device may have changed.
    pub fn is_settled(self, found: XdpDevice, obstacle: Option<Obstacle>) -> bool {
        let state = match self.place(obstacle) {
            Ok(XdpPlace::Native) => XdpState::Native,
            Ok(XdpPlace::Generic) => XdpState::Generic,
            Err(state) => state,
        };
        found.state == state as u32
    }
}

/// What `XDP_DEVICES` says of a device, for people.
pub fn describe(device: XdpDevice) -> String {
    let XdpDevice { state, flags: _, detail } = device;
    match XdpState::from_number(state) {
        Some(XdpState::Occupied) if detail != 0 => format!("{} (program {detail})", XdpState::Occupied.meaning()),
        Some(state) if detail != 0 => {
            let error = io::Error::from_raw_os_error(detail.cast_signed());
            format!("{}: {error}", state.meaning())
        }
        Some(state) => state.meaning().to_owned(),
        None => format!("unknown state {state}, of another version"),
    }
}

impl Loaded {
    /// Puts the program on an uplink, in place of what an earlier agent attached there, or takes it off. Says what came
    /// of it, as `XDP_DEVICES` does from now on. That a device cannot have it is no error.
    pub fn attach_xdp(
        &mut self,
        device: &Device,
        mode: XdpMode,
        obstacle: Option<Obstacle>,
    ) -> Result<XdpDevice, LoaderError> {
        let result = match mode.place(obstacle) {
            Err(state) => {
                self.remove_xdp_links(device.index, None)?;
                XdpDevice { state: state as u32, ..XdpDevice::default() }
            }
            Ok(place) => {
                let adopt = self.remove_xdp_links(device.index, Some(place))?;
                match self.attach_xdp_at(device.index, place, adopt) {
                    Ok(()) => {
                        let state = match place {
                            XdpPlace::Native => XdpState::Native,
                            XdpPlace::Generic => XdpState::Generic,
                        };
                        // Asked when the program is there: with some drivers it depends on that.
                        let sends = place == XdpPlace::Native && netdev::sends_redirected(device.index);
                        let flags = if sends { XdpFlags::REDIRECT } else { 0 };
                        XdpDevice { state: state as u32, flags, detail: 0 }
                    }
                    Err(error) => refused(device.index, &error).ok_or_else(|| LoaderError::Attach {
                        program: XDP_PROGRAM,
                        target: format!("XDP of device {}", device.name),
                        source: error,
                    })?,
                }
            }
        };
        self.xdp_devices.set(device.index, result)?;
        Ok(result)
    }

    /// Takes the program off a device that is no uplink any more.
    pub fn detach_xdp(&mut self, index: u32) -> Result<(), LoaderError> {
        self.remove_xdp_links(index, None)?;
        self.xdp_devices.remove(index)
    }

    /// What the programs and `status` know of uplinks.
    pub fn xdp_devices(&mut self) -> &mut XdpDevices {
        &mut self.xdp_devices
    }

    /// Removes what is known of all devices but these.
    pub(super) fn forget_xdp_except(&mut self, keep: &BTreeSet<u32>) -> Result<(), LoaderError> {
        for (index, _) in self.xdp_devices.read()? {
            if !keep.contains(&index) {
                self.xdp_devices.remove(index)?;
            }
        }
        Ok(())
    }

    /// Removes our links to a device but the one of this place, and returns whether that one is there.
    fn remove_xdp_links(&self, index: u32, wanted: Option<XdpPlace>) -> Result<bool, LoaderError> {
        let mut adopt = false;
        for place in XdpPlace::ALL {
            let Some(path) = self.pin(&place.pin(index)) else { continue };
            let Some(held) = held(&path, "an XDP link of this device")? else { continue };
            if wanted == Some(place) && held == Attached::Xdp(place, index) {
                adopt = true;
            } else {
                remove_link(&path)?;
            }
        }
        Ok(adopt)
    }

    fn attach_xdp_at(&mut self, index: u32, place: XdpPlace, adopt: bool) -> Result<(), ProgramError> {
        let path = self.pin(&place.pin(index));
        let program: &mut Xdp = match self.ebpf.program_mut(XDP_PROGRAM) {
            Some(Program::Xdp(program)) => program,
            _ => return Err(ProgramError::UnexpectedProgramType),
        };
        if let (Some(path), true) = (&path, adopt) {
            let link = FdLink::from(PinnedLink::from_pin(path)?);
            let id = program.attach_to_link(link.try_into()?)?;
            // The pin keeps the link, whoever drops it here.
            return program.take_link(id).map(drop);
        }
        let flags = match place {
            XdpPlace::Native => Flags::Driver,
            XdpPlace::Generic => Flags::Skb,
        };
        let id = program.attach(index, flags)?;
        match path {
            Some(path) => pin(program.take_link(id)?, &path),
            None => Ok(()),
        }
    }
}

/// Takes a link of ours away at once.
pub(super) fn remove_link(path: &Path) -> Result<(), LoaderError> {
    syscall::detach(path).map_err(|source| pin_error("detaching", path, source))?;
    fs::remove_file(path).map_err(|source| pin_error("removing", path, source))
}

/// What an error of attaching says of the device, if the kernel gave it.
fn refused(index: u32, error: &ProgramError) -> Option<XdpDevice> {
    let number = raw_os_error(error)?;
    let (state, detail) = match number {
        // Another program, or another one at the other place (`dev_xdp_attach` in net/core/dev.c).
        libc::EBUSY | libc::EEXIST => (XdpState::Occupied, program_of(index).unwrap_or_default()),
        // A driver without XDP; too large an MTU (veth); no queues or headers that it could use (drivers differ).
        libc::EOPNOTSUPP | libc::ERANGE | libc::EINVAL => (XdpState::NotSupported, number.unsigned_abs()),
        libc::ENODEV => return None,
        _ => (XdpState::Failed, number.unsigned_abs()),
    };
    Some(XdpDevice { state: state as u32, flags: 0, detail })
}

/// Id of the XDP program of a device, whoever attached it.
fn program_of(index: u32) -> Option<u32> {
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().ok()?;
            tokio::spawn(connection);
            let mut links = std::pin::pin!(handle.link().get().match_index(index).execute());
            program_at(&links.try_next().await.ok()??)
        })
    };
    // Not in this thread, which may be a runtime's.
    thread::scope(|scope| scope.spawn(ask).join().ok().flatten())
}

/// Id of the XDP program that a device is said to have.
pub(crate) fn program_at(link: &LinkMessage) -> Option<u32> {
    let attributes = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(attributes) => Some(attributes),
        _ => None,
    })?;
    attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) => Some(*id).filter(|id| *id != 0),
        _ => None,
    })
}

/// The map `XDP_DEVICES`.
#[derive(Debug)]
pub struct XdpDevices(HashMap<MapData, Interface, XdpDevice>);

fn map_error(source: MapError) -> LoaderError {
    LoaderError::Map { map: XDP_DEVICES, source }
}

impl XdpDevices {
    pub(super) fn new(map: Map) -> Result<Self, LoaderError> {
        Ok(Self(map.try_into().map_err(map_error)?))
    }

    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, LoaderError> {
        Self::new(pins.open(XDP_DEVICES)?)
    }

    /// All devices, by index.
    pub fn read(&self) -> Result<Vec<(u32, XdpDevice)>, LoaderError> {
        let mut devices = self
            .0
            .iter()
            .map(|entry| entry.map(|(interface, device)| (interface.interface, device)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(map_error)?;
        devices.sort_by_key(|(index, _)| *index);
        Ok(devices)
    }

    /// Writes what is known of a device.
    pub fn set(&mut self, index: u32, device: XdpDevice) -> Result<(), LoaderError> {
        self.0.insert(&Interface { interface: index }, &device, 0).map_err(map_error)
    }

    fn remove(&mut self, index: u32) -> Result<(), LoaderError> {
        match self.0.remove(&Interface { interface: index }) {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(map_error),
        }
    }
}
