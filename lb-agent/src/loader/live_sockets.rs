//! The sockets that the socket hooks gave a backend, and that are still there: a walk of the kernel's over `SOCKETS`.
//!
//! It needs a program of its own, whose type is one of the kernel's BTF. To look it up takes a tenth of a second and some
//! megabytes for the moment, so it is loaded when it is first needed and not with the others. It is pinned nowhere: who counts
//! is the agent.

use std::{
    fs::File,
    io::{self, Read as _},
    mem,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::MapData,
    programs::{Program, ProgramError},
};
use lb_common::abi::{LiveSocket, maps::SOCKETS};

use super::{LoaderError, PINNED, Pins, syscall};
use crate::object::EBPF_OBJECT;

/// Name of the program, and what it walks over.
const PROGRAM: &str = "live_sockets";
const WALK: &str = "bpf_sk_storage_map";
/// What the program writes of a socket, in words of 4 bytes.
const WORDS: usize = mem::size_of::<LiveSocket>() / 4;
/// Maps of one load that the program knows nothing of: as small as they can be.
const UNUSED: [&str; 2] = ["FRAGMENTS4", "FRAGMENTS6"];

/// What walks over the sockets of a data plane.
#[derive(Debug)]
pub struct LiveSockets {
    link: OwnedFd,
}

impl LiveSockets {
    /// Loads the program on the pinned maps.
    pub fn load(pins: &Pins) -> Result<Self, LoaderError> {
        let mut loader = EbpfLoader::new();
        for name in PINNED {
            // As in a rehearsal: the loader would make and pin a map that is not there.
            let found = pins.data(name)?.info().map_err(|source| LoaderError::Map { map: name, source })?;
            loader.map_max_entries(name, found.max_entries()).map_pin_path(name, pins.map(name));
        }
        for name in UNUSED {
            loader.map_max_entries(name, 1);
        }
        let mut ebpf = loader.load(EBPF_OBJECT).map_err(LoaderError::Object)?;
        Self::of(&mut ebpf, &pins.data(SOCKETS)?)
    }

    /// Loads the program of an object whose sockets are in this map.
    pub(super) fn of(ebpf: &mut Ebpf, sockets: &MapData) -> Result<Self, LoaderError> {
        let failed = |source: ProgramError| LoaderError::Program { program: PROGRAM, source };
        let Some(Program::Iter(program)) = ebpf.program_mut(PROGRAM) else {
            return Err(failed(ProgramError::UnexpectedProgramType));
        };
        let btf = Btf::from_sys_fs().map_err(|error| failed(error.into()))?;
        program.load(WALK, &btf).map_err(failed)?;
        let link = syscall::walk_over(program.fd().map_err(failed)?.as_fd(), sockets.fd().as_fd());
        Ok(Self { link: link.map_err(|source| failed(ProgramError::IOError(source)))? })
    }

    /// Every socket that has a backend. Sockets come and go meanwhile: one may be missed.
    pub fn read(&self) -> io::Result<Vec<LiveSocket>> {
        let mut bytes = Vec::new();
        File::from(syscall::begin_walk(self.link.as_fd())?).read_to_end(&mut bytes)?;
        let (words, _) = bytes.as_chunks().0.as_chunks::<WORDS>();
        let socket = |words: &[[u8; 4]; WORDS]| {
            let [backend, generation, is_v4] = words.map(u32::from_ne_bytes);
            LiveSocket { backend, generation, is_v4 }
        };
        Ok(words.iter().map(socket).collect())
    }
}
