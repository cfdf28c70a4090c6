//! Watching new flows, refusals and drops: the reader of `EVENTS`.
//!
//! The programs write events only while `MONITOR` says that somebody watches, and that says so for a few seconds only: a watcher
//! that was killed is soon nobody. There is one at a time, which a lock on the directory of the pinned maps sees to; a ring
//! buffer has one reader, and what is asked of the programs is one thing.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    ptr, slice,
};

use aya::maps::{Array, Map, MapData, MapError as AyaError, MapInfo, PerCpuArray, RingBuf};
use lb_common::abi::{
    Event, EventCounts, Monitor, ServiceIndex, ServiceName,
    maps::{EVENT_COUNTS, EVENTS, MONITOR},
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    dataplane::HashTable,
    jiffies::Jiffies,
    loader::{LoaderError, Lock, Pins},
    model::Family,
};

/// For how many seconds the programs go on when the watcher is heard of no more; about, for [`Jiffies`] are counted from boot
/// by the kernel, and reckoned here.
pub const HOLD: u64 = 3;

/// What is asked of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Bits of [`EventKind`](lb_common::abi::EventKind).
    pub kinds: u32,
    /// One event of so many, by chance.
    pub sample: u32,
    /// So many events a second at most, on each CPU.
    pub rate: u32,
}

/// Events that were not written although they were to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Because there were more of them in a second than asked for.
    pub over_rate: u64,
    /// Because the ring buffer was full.
    pub no_room: u64,
}

/// Why the watch is over.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// A map could not be opened.
    #[error(transparent)]
    Open(#[from] LoaderError),
    /// A map could not be read or written.
    #[error("map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What aya said.
        source: AyaError,
    },
    /// A clock could not be read.
    #[error("the clock: {0}")]
    Clock(#[from] io::Error),
    /// The data plane is another one now.
    #[error("the data plane was removed or made anew: watch again")]
    Gone,
}

/// A watch. The programs are told of its end when it is dropped.
pub struct Watch {
    pins: Pins,
    asked: Asked,
    switch: Array<MapData, Monitor>,
    counts: PerCpuArray<MapData, EventCounts>,
    events: RingBuf<MapData>,
    id: u32,
    names: [HashTable<ServiceIndex, ServiceName>; 2],
    begun: u64,
    lost: Lost,
    _lock: Lock,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("asked", &self.asked).finish_non_exhaustive()
    }
}

impl Watch {
    /// Begins a watch on the pinned maps. What is left of a former one is not shown.
    pub fn begin(pins: &Pins, asked: Asked) -> Result<Self, WatchError> {
        // Opened first: without a data plane that is what to say.
        let events = pins.data(EVENTS)?;
        let lock = pins.lock_events()?;
        let id = id(&events)?;
        let failed = |map| move |source| WatchError::Map { map, source };
        let names = [<[u8; 4]>::TABLES, <[u8; 16]>::TABLES];
        let [names4, names6] = names.map(|names| HashTable::open(&mut |map| pins.open(map), names.service_names));
        let mut watch = Self {
            pins: pins.clone(),
            asked,
            switch: pins.open(MONITOR)?.try_into().map_err(failed(MONITOR))?,
            counts: pins.open(EVENT_COUNTS)?.try_into().map_err(failed(EVENT_COUNTS))?,
            events: RingBuf::try_from(Map::RingBuf(events)).map_err(failed(EVENTS))?,
            id,
            names: [names4?, names6?],
            begun: monotonic()?,
            lost: Lost::default(),
            _lock: lock,
        };
        watch.lost = watch.read_lost()?;
        watch.renew()?;
        Ok(watch)
    }

    /// Says that the watch goes on for [`HOLD`] seconds: to be done every second.
    pub fn renew(&mut self) -> Result<(), WatchError> {
        let pinned = MapInfo::from_pin(self.pins.map(EVENTS)).map_err(|_| WatchError::Gone)?;
        if pinned.id() != self.id {
            return Err(WatchError::Gone);
        }
        let Asked { kinds, sample, rate } = self.asked;
        self.set(Monitor { until: Jiffies::now()?.after(HOLD), kinds, sample, rate, pad: 0 })
    }

    fn set(&mut self, monitor: Monitor) -> Result<(), WatchError> {
        self.switch.set(0, &monitor, 0).map_err(|source| WatchError::Map { map: MONITOR, source })
    }

    /// The next event, if there is one.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            let event = read(&self.events.next()?);
            if let Some(event) = event.filter(|event| event.time >= self.begun) {
                return Some(event);
            }
        }
    }

    /// What was lost since the last time that this was asked.
    pub fn lost(&mut self) -> Result<Lost, WatchError> {
        let before = self.lost;
        self.lost = self.read_lost()?;
        Ok(Lost {
            over_rate: self.lost.over_rate.saturating_sub(before.over_rate),
            no_room: self.lost.no_room.saturating_sub(before.no_room),
        })
    }

    fn read_lost(&self) -> Result<Lost, WatchError> {
        let counts = self.counts.get(&0, 0).map_err(|source| WatchError::Map { map: EVENT_COUNTS, source })?;
        Ok(counts.iter().fold(Lost::default(), |lost, cpu| Lost {
            over_rate: lost.over_rate + cpu.over_rate,
            no_room: lost.no_room + cpu.no_room,
        }))
    }

    /// Whose service an event is about; `None` where the index has no name any more.
    pub fn service(&self, event: &Event) -> Option<ServiceName> {
        let [names4, names6] = &self.names;
        let names = if event.family == 4 { names4 } else { names6 };
        // What cannot be read has no name either.
        names.get(&ServiceIndex { service: event.service }).ok().flatten()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Where it cannot be said, it ends by itself.
        drop(self.set(Monitor::default()));
    }
}

/// Ready to be read when there are events.
impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the ring buffer, which `self` owns.
        unsafe { BorrowedFd::borrow_raw(self.events.as_raw_fd()) }
    }
}

/// An event from the bytes of a record.
fn read(record: &[u8]) -> Option<Event> {
    if record.len() < size_of::<Event>() {
        return None;
    }
    let mut event = Event::default();
    // SAFETY: `Event` is integers without padding (`layout` pins it), and the record has as many bytes.
    unsafe { slice::from_raw_parts_mut(ptr::from_mut(&mut event).cast::<u8>(), size_of::<Event>()) }
        .copy_from_slice(record.get(..size_of::<Event>())?);
    Some(event)
}

fn id(map: &MapData) -> Result<u32, WatchError> {
    map.info().map(|info| info.id()).map_err(|source| WatchError::Map { map: EVENTS, source })
}

/// `CLOCK_MONOTONIC` in nanoseconds, as events are stamped.
pub fn monotonic() -> io::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let [seconds, nanoseconds] = [now.tv_sec(), now.tv_nsec()].map(|part| u64::try_from(part).unwrap_or_default());
    Ok(seconds * 1_000_000_000 + nanoseconds)
}
