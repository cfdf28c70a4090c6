//! What cannot change while a program is loaded: the constants of its `.rodata`.

use std::io;

use aya::EbpfLoader;

use super::{LoadOptions, LoaderError, syscall};
use crate::jiffies::Jiffies;

/// Their values for one load (the end of `lb-ebpf/src/maps.rs` says what each is).
#[derive(Debug)]
pub(super) struct Constants {
    ticks_per_second: u32,
    netns_cookie: u64,
    log_level: u8,
    hash_seed: u32,
    takeover: u32,
    xdp: u32,
}

impl Constants {
    pub(super) fn of(options: &LoadOptions) -> Result<Self, LoaderError> {
        let LoadOptions { pins: _, sizes: _, trace, netns_cookie, hash_seed, takeover, xdp } = options;
        let failed = |path: &str, source| LoaderError::Kernel { path: path.to_owned(), source };
        let netns_cookie = match netns_cookie {
            Some(cookie) => *cookie,
            None => syscall::netns_cookie().map_err(|source| failed("SO_NETNS_COOKIE", source))?,
        };
        let ticks_per_second = Jiffies::now()
            .and_then(|jiffies| u32::try_from(jiffies.per_second).map_err(io::Error::other))
            .map_err(|source| failed("CLOCK_MONOTONIC_COARSE", source))?;
        Ok(Self {
            ticks_per_second,
            netns_cookie,
            // At 0 the verifier removes all logging.
            log_level: if *trace { u8::MAX } else { 0 },
            hash_seed: *hash_seed,
            takeover: u32::from(*takeover),
            xdp: u32::from(*xdp),
        })
    }

    pub(super) fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        let Self { ticks_per_second, netns_cookie, log_level, hash_seed, takeover, xdp } = self;
        loader
            .override_global("TICKS_PER_SECOND", ticks_per_second, true)
            .override_global("NODE_NETNS_COOKIE", netns_cookie, true)
            .override_global(aya_log::LEVEL, log_level, true)
            .override_global("HASH_SEED", hash_seed, true)
            .override_global("TAKEOVER", takeover, true)
            .override_global("XDP", xdp, true);
    }
}
